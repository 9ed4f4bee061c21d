"""What the inferencer's child saves by what it keeps, and by batches: ``python -m bench warm``.

With the tiny model that ships with the project: the time from an order to the first step for a
first model, and for another of its geometry after it; and images a second, four at once against
one after another.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

TINY = Path(__file__).parents[1] / "shared" / "tiny"
RUNS = 5
STEPS = 20
TOGETHER = 4
SIDES = (128, 256)


def main() -> None:
    """Print both; the first run of each, which pays for what is loaded once, is not counted."""
    import torch  # noqa: PLC0415 - slow to load

    # diffusers' schedulers of today hand numpy an array in yesterday's way
    warnings.filterwarnings("ignore", "__array_", DeprecationWarning)
    print(
        f"The tiny model, {RUNS} runs each, medians; torch has {torch.get_num_threads()} threads\n"
    )
    print_first_steps()
    print_batches()


def print_first_steps() -> None:
    with TemporaryDirectory(prefix="bench-warm-") as folder:
        models = models_of_one_geometry(Path(folder))
        runs = [first_steps(models) for _ in range(RUNS + 1)][1:]
    first, second = (median(seconds) for seconds in zip(*runs, strict=True))
    print(f"order to first step   {first:6.3f} s   a first model")
    print(
        f"                      {second:6.3f} s   another of its geometry: x {second / first:.2f}\n"
    )


def models_of_one_geometry(folder: Path) -> list[Path]:
    """Two, whose UNets differ."""
    from safetensors.torch import load_file, save_file  # noqa: PLC0415

    models = [folder / "one", folder / "other"]
    for model in models:
        shutil.copytree(TINY, model)
    unet = models[1] / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: 0.9 * each for name, each in load_file(unet).items()}, unet)
    return models


def first_steps(models: Sequence[Path]) -> list[float]:
    """Seconds to the first step of each, by a child that had none before."""
    from services.inferencer.generation.generate import generate  # noqa: PLC0415
    from services.inferencer.generation.pipeline_cache import Pipelines  # noqa: PLC0415

    pipelines, seconds = Pipelines(), []
    for model in models:
        told: list[float] = []
        begun = perf_counter()
        ready = pipelines.model(model)
        for _ in generate(ready, [entry(SIDES[0])], clip_skip=0, tell=noting(told)):
            pass
        seconds.append(told[0] - begun)
    return seconds


def print_batches() -> None:
    from services.inferencer.generation.pipeline_cache import Pipelines  # noqa: PLC0415

    model = Pipelines().model(TINY)
    print(f"{STEPS} steps{'one by one':>22}{f'{TOGETHER} at once':>16}")
    for side in SIDES:
        alone = [entry(side, seed=seed) for seed in range(TOGETHER)]
        runs = [[rate(model, alone, at_once=most) for most in (1, TOGETHER)] for _ in range(RUNS)]
        single, batched = (median(rates) for rates in zip(*runs[1:], strict=True))
        print(
            f"{side:>4} pixels{single:>14.2f} img/s{batched:>10.2f} img/s: x {batched / single:.2f}"
        )


def rate(model: Any, entries: Sequence[Any], *, at_once: int) -> float:
    """Images a second."""
    from services.inferencer.generation.generate import generate  # noqa: PLC0415

    batches = [entries[start : start + at_once] for start in range(0, len(entries), at_once)]
    begun = perf_counter()
    for batch in batches:
        for _ in generate(model, batch, clip_skip=0, tell=lambda *_: None):
            pass
    return len(entries) / (perf_counter() - begun)


def entry(side: int, *, seed: int = 0) -> Any:
    from services.inferencer.order import ImageRequest  # noqa: PLC0415
    from shared.request import Inference  # noqa: PLC0415

    asked = Inference(prompt="a red wall", num_inference_steps=STEPS, scheduler="DDIM")
    return ImageRequest(inference=asked, seed=seed, side=side)


def noting(told: list[float]) -> Any:
    return lambda *_: told.append(perf_counter())
