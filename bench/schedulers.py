"""Compare the twelve schedulers: ``python -m bench schedulers``.

Generates one prompt with each by the tiny model, measures the distance to a reference, and writes
docs/schedulers.md and docs/schedulers.png.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from time import process_time
from typing import Any, get_args

import diffusers
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image, ImageDraw
from torch import Tensor

from services.inferencer.generation.schedulers import (
    CONFIG_CHANGES,
    SCHEDULER_CLASSES,
    make_scheduler,
)
from shared.diffusion.loading import load
from shared.diffusion.noise import seeded
from shared.diffusion.saving import stock_pipeline
from shared.request import Scheduler

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "schedulers.md"
SHEET = ROOT / "docs" / "schedulers.png"

NAMES: tuple[Scheduler, ...] = get_args(Scheduler)
STOCHASTIC: tuple[Scheduler, ...] = ("DDPM", "EULER-A", "KDPM2-A")
"""They add new noise at every step, so that more steps lead to another image of the same kind."""

PROMPT = "a red circle on a blue background"
GUIDANCE = 3.0
SIDE, SHEET_SIDE = 128, 256
SEED = 3
SEEDS = tuple(range(1, 9))
COLUMNS = (1, 10, 20, 50)
"""Numbers of steps to measure."""
REFERENCE_STEPS = 125
SHEET_STEPS = 50
RUNS = 3
LABEL = 20
"""Height in pixels of the line above each image of the sheet."""


def main() -> None:
    """Write the page and the sheet; takes about two minutes of one core."""
    torch.set_num_threads(1)
    diffusers.logging.set_verbosity_error()  # no advice on odd numbers of steps
    pipe = tiny()
    PAGE.write_text(page(pipe))
    sheet(pipe).quantize(128).save(SHEET, optimize=True)
    print(f"wrote {PAGE.relative_to(ROOT)} and {SHEET.relative_to(ROOT)}")


# --- Generating and measuring -----------------------------------------------------------------


def tiny() -> StableDiffusionPipeline:
    """The stock pipeline over the tiny model."""
    pipe = stock_pipeline(load(ROOT / "shared" / "tiny"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.inference_mode()
def draw(
    pipe: StableDiffusionPipeline,
    scheduler: Any,
    steps: int,
    *,
    seeds: Sequence[int] = (SEED,),
    side: int = SIDE,
) -> Tensor:
    """An image of the prompt for each seed: (B, 3, H, W), 0 to 1."""
    pipe.scheduler = scheduler
    images: Tensor = pipe(
        PROMPT,
        width=side,
        height=side,
        num_inference_steps=steps,
        guidance_scale=GUIDANCE,
        num_images_per_prompt=len(seeds),
        generator=[seeded(seed) for seed in seeds],
        output_type="pt",
    ).images
    return images


def reference(
    pipe: StableDiffusionPipeline, config: Any, *, seeds: Sequence[int] = (SEED,)
) -> Tensor:
    """The ODE's solution: stock DDIM with many steps, from the last timestep to no noise at all.

    The number of steps divides the model's 1000, else the stock class would leave its timesteps.
    """
    scheduler = DDIMScheduler.from_config(
        config, timestep_spacing="trailing", set_alpha_to_one=True, clip_sample=False
    )
    return draw(pipe, scheduler, REFERENCE_STEPS, seeds=seeds)


def distance(images: Tensor, others: Tensor) -> float:
    """Root mean square difference over all pixels: 0 to 1."""
    return float((images - others).square().mean().sqrt())


def colour_distance(images: Tensor, others: Tensor) -> float:
    """Root mean square difference of two batches' mean colours: 0 to 1.

    It compares distributions, as the positions of things depend on the noise.
    """
    return distance(images.mean((0, 2, 3)), others.mean((0, 2, 3)))


# --- The page ---------------------------------------------------------------------------------

INTRODUCTION = f"""\
# The twelve schedulers

Made by `python -m bench schedulers` (`make pages`), with the model in `shared/tiny`, the prompt
"{PROMPT}" and guidance {GUIDANCE:g}.

![The prompt by each scheduler with {SHEET_STEPS} steps from the same noise](schedulers.png)

Each is a diffusers class with the base model's betas and prediction type. One thing is changed for
all: timestep spacing is `trailing` (Lin et al. 2023, "Common Diffusion Noise Schedules and Sample
Steps are Flawed"), because generation starts at pure noise, and so at the last training timestep.
Stable Diffusion's own configuration has `leading`, which starts lower: at 667 of 1000 for 334
steps, and at 1 for a single step. (`DPM-S` and `IPNDM` have only one spacing, evenly from the last
timestep down.)

| name | class | other changes, and why | adds noise | network calls, 50 steps | time |
|---|---|---|---|---|---|
"""

TIMES = f"""
The time is CPU time for {SHEET_STEPS} steps, relative to `DDIM`.
"""

DETERMINISTIC = f"""
## Accuracy of schedulers that add no noise

These solve one differential equation from the same noise, so all converge to the same image. The
table has the root mean square distance to it over all pixels, colours from 0 to 1; the reference is
the stock `DDIMScheduler` with {REFERENCE_STEPS} steps, {SIDE} pixels, seed {SEED}. Random pixels
have a distance of {{noise:.3f}}.

"""

RANDOM = f"""
## Accuracy of schedulers that add noise

These give a different image of the same kind for each number of steps. The table compares mean
colours (all pixels of {len(SEEDS)} images, seeds {SEEDS[0]} to {SEEDS[-1]}): the root mean square
difference from the reference's. Random pixels have {{noise:.3f}}. `EULER-A` is `DDPM` in other
variables, and gives nearly the same image.

"""

WHY: dict[Scheduler, str] = {
    "DDIM": (
        "first-order DPM-Solver is DDIM; the stock `DDIMScheduler` steps down by 1000 // steps,"
        " which for 350 steps is 2 instead of 2.86 timesteps"
    ),
    "DDPM": "latents are not limited to 1",
    "IPNDM": (
        "the stock class has its own cosine schedule, and gives the network times from 0 to 1;"
        " ours uses the model's betas and timesteps"
    ),
    "PNDM": (
        "the Runge-Kutta start needs more steps, and fails at one; ours also goes from timestep to"
        " timestep like `DDIM`, and averages noises where the network predicts velocities"
    ),
}


SAME_SEED = """
## The same seed in diffusers

A finished model's diffusers folder has `trailing` spacing in `scheduler/scheduler_config.json` (and
`clip_sample` and `skip_prk_steps` as above). The stock classes draw from it what this service
draws: with the same seed, size, number of steps, guidance and prompt, on a CPU in fp32, to 1 of
255.

```python
pipeline = StableDiffusionPipeline.from_pretrained("model")
config = pipeline.scheduler.config
pipeline.scheduler = EulerDiscreteScheduler.from_config(config)
generator = torch.Generator("cpu").manual_seed(7)
image = pipeline("a cat", num_inference_steps=20, generator=generator).images[0]
```

Image number i of an entry has the seed of the first plus i. On a GPU, or in half precision,
rounding differs a little. Weighted words, prompts of more than 75 tokens and a `clip_skip` above 1
are this service's own. `from_single_file` takes its scheduler from the hub, with `leading`: add
`timestep_spacing="trailing"` to the call of `from_config`.

| name | from the folder's configuration | the same image |
|---|---|---|
"""

SAME_CHANGES: dict[Scheduler, dict[str, Any]] = {"DDIM": {"solver_order": 1}}
"""Of the folder's configuration, for the stock class to draw the same."""

SAME: dict[Scheduler, str] = {
    "DDIM": (
        "yes; `DDIMScheduler` with `set_alpha_to_one=True` only if the number of steps divides"
        " 1000, as it steps down by 1000 // steps"
    ),
    "IPNDM": "no: the stock class has a schedule of its own, whatever the model's is",
    "PNDM": (
        "if the number of steps divides 1000, as the stock class steps down by 1000 // steps, and"
        " the model predicts noise, as it averages what the network predicts"
    ),
}


def same_seed_rows() -> list[str]:
    return [f"| `{name}` | {same_seed_call(name)} | {SAME.get(name, 'yes')} |\n" for name in NAMES]


def same_seed_call(name: Scheduler) -> str:
    """The call that makes the stock scheduler from a pipeline's own."""
    changes = "".join(f", {key}={value}" for key, value in SAME_CHANGES.get(name, {}).items())
    return f"`{stock_class(name)}.from_config(config{changes})`"


def page(pipe: StableDiffusionPipeline) -> str:
    """Measure, and return docs/schedulers.md."""
    config = dict(pipe.scheduler.config)
    one, many = (reference(pipe, config, seeds=seeds) for seeds in ((SEED,), SEEDS))
    random = torch.rand(many.shape, generator=seeded(0))
    deterministic = [name for name in NAMES if name not in STOCHASTIC]
    pixels = {
        name: [distance(draw_with(name, pipe, config, steps), one) for steps in COLUMNS]
        for name in deterministic
    }
    colours = {
        name: [
            colour_distance(draw_with(name, pipe, config, steps, seeds=SEEDS), many)
            for steps in COLUMNS
        ]
        for name in STOCHASTIC
    }
    return "".join(
        (
            INTRODUCTION,
            *table_rows(config, relative_times(pipe, config)),
            TIMES,
            SAME_SEED,
            *same_seed_rows(),
            DETERMINISTIC.format(noise=distance(random[:1], one)),
            distances(pixels),
            RANDOM.format(noise=colour_distance(random, many)),
            distances(colours),
        )
    )


def draw_with(
    name: Scheduler, pipe: StableDiffusionPipeline, config: Any, steps: int, **options: Any
) -> Tensor:
    return draw(pipe, make_scheduler(name, config, steps), steps, **options)


def table_rows(config: Any, times: dict[Scheduler, float]) -> list[str]:
    return [
        f"| `{name}` | `{stock_class(name)}` | {changed(name)} | "
        f"{'yes' if name in STOCHASTIC else 'no'} | {calls(name, config)} | {times[name]:.1f} |\n"
        for name in NAMES
    ]


def stock_class(name: Scheduler) -> str:
    """The diffusers class that a scheduler is, or is derived from."""
    classes = SCHEDULER_CLASSES[name].__mro__
    names = (str(each.__name__) for each in classes if each.__module__.startswith("diffusers."))
    return next(names)


def changed(name: Scheduler) -> str:
    settings = ", ".join(f"`{key}={value}`" for key, value in CONFIG_CHANGES.get(name, {}).items())
    return ": ".join(part for part in (settings, WHY.get(name, "")) if part)


def calls(name: Scheduler, config: Any) -> int:
    """Network calls for 50 steps."""
    return len(make_scheduler(name, config, 50).timesteps)


def relative_times(pipe: StableDiffusionPipeline, config: Any) -> dict[Scheduler, float]:
    """CPU time of 50 steps, the shortest of several runs, relative to DDIM's."""
    seconds = {name: min(timed(pipe, config, name) for _ in range(RUNS)) for name in NAMES}
    return {name: each / seconds["DDIM"] for name, each in seconds.items()}


def timed(pipe: StableDiffusionPipeline, config: Any, name: Scheduler) -> float:
    begun = process_time()
    draw_with(name, pipe, config, 50)
    return process_time() - begun


def distances(rows: dict[Scheduler, list[float]]) -> str:
    header = "".join(f" {steps} step{'s' * (steps > 1)} |" for steps in COLUMNS)
    lines = [f"| name |{header}", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, numbers in rows.items():
        lines.append(f"| `{name}` |" + "".join(f" {number:.3f} |" for number in numbers))
    return "\n".join(lines) + "\n"


# --- The sheet --------------------------------------------------------------------------------


def sheet(pipe: StableDiffusionPipeline) -> Image.Image:
    """All twelve images, four in a row, each below its name."""
    config = dict(pipe.scheduler.config)
    rows = len(NAMES) // 4
    whole = Image.new("RGB", (4 * SHEET_SIDE, rows * (SHEET_SIDE + LABEL)), "white")
    pen = ImageDraw.Draw(whole)
    for number, name in enumerate(NAMES):
        x, y = number % 4 * SHEET_SIDE, number // 4 * (SHEET_SIDE + LABEL)
        pen.text((x + 4, y + 3), name, fill="black")
        whole.paste(
            to_image(draw_with(name, pipe, config, SHEET_STEPS, side=SHEET_SIDE)), (x, y + LABEL)
        )
    return whole


def to_image(images: Tensor) -> Image.Image:
    values = (images[0].permute(1, 2, 0) * 255).round().to(torch.uint8)
    return Image.fromarray(values.numpy())


if __name__ == "__main__":
    main()
