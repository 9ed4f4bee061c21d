"""What the inferencer's child gains from its pipeline cache and its batches.

``python -m bench warm``, with the tiny model that ships with the project: the time from an order
to the first step, for a first model and for a second of the same architecture; and images a
second, four at once and one by one.
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
BATCH = 4
SIDES = (128, 256)


def main() -> None:
    """Print both; each first run is discarded, as it pays for what is loaded once."""
    import torch  # noqa: PLC0415 - slow to load

    # diffusers' schedulers pass numpy an array in a deprecated way
    warnings.filterwarnings("ignore", "__array_", DeprecationWarning)
    print(
        f"The tiny model, {RUNS} runs each, medians; torch has {torch.get_num_threads()} threads\n"
    )
    print_first_steps()
    print_batches()


def print_first_steps() -> None:
    with TemporaryDirectory(prefix="bench-warm-") as folder:
        models = models_of_one_architecture(Path(folder))
        runs = [first_steps(models) for _ in range(RUNS + 1)][1:]
    first, second = (median(seconds) for seconds in zip(*runs, strict=True))
    print(f"order to first step   {first:6.3f} s   a first model")
    print(
        f"                      {second:6.3f} s   the same architecture: x {second / first:.2f}\n"
    )


def models_of_one_architecture(folder: Path) -> list[Path]:
    """Two models whose UNets differ."""
    from safetensors.torch import load_file, save_file  # noqa: PLC0415

    models = [folder / "one", folder / "other"]
    for model in models:
        shutil.copytree(TINY, model)
    unet = models[1] / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: 0.9 * each for name, each in load_file(unet).items()}, unet)
    return models


def first_steps(models: Sequence[Path]) -> list[float]:
    """Seconds to the first step of each model, with a cache that is empty at the start."""
    import torch  # noqa: PLC0415

    from services.inferencer.generation.generate import generate  # noqa: PLC0415
    from services.inferencer.generation.pipeline_cache import PipelineCache  # noqa: PLC0415

    cache, seconds = PipelineCache(torch.device("cpu")), []
    for model in models:
        steps: list[float] = []
        begun = perf_counter()
        pipeline = cache.load(model)
        requests = [image_request(SIDES[0])]
        for _ in generate(pipeline, requests, clip_skip=0, on_step=time_into(steps)):
            pass
        seconds.append(steps[0] - begun)
    return seconds


def print_batches() -> None:
    import torch  # noqa: PLC0415

    from services.inferencer.generation.pipeline_cache import PipelineCache  # noqa: PLC0415

    pipeline = PipelineCache(torch.device("cpu")).load(TINY)
    print(f"{STEPS} steps{'one by one':>22}{f'{BATCH} at once':>16}")
    for side in SIDES:
        requests = [image_request(side, seed=seed) for seed in range(BATCH)]
        runs = [
            [rate(pipeline, requests, batch_size=size) for size in (1, BATCH)] for _ in range(RUNS)
        ]
        single, batched = (median(rates) for rates in zip(*runs[1:], strict=True))
        print(
            f"{side:>4} pixels{single:>14.2f} img/s{batched:>10.2f} img/s: x {batched / single:.2f}"
        )


def rate(pipeline: Any, requests: Sequence[Any], *, batch_size: int) -> float:
    """Images a second."""
    from services.inferencer.generation.generate import generate  # noqa: PLC0415

    starts = range(0, len(requests), batch_size)
    batches = [requests[start : start + batch_size] for start in starts]
    begun = perf_counter()
    for batch in batches:
        for _ in generate(pipeline, batch, clip_skip=0, on_step=lambda *_: None):
            pass
    return len(requests) / (perf_counter() - begun)


def image_request(side: int, *, seed: int = 0) -> Any:
    from services.inferencer.order import ImageRequest  # noqa: PLC0415
    from shared.request import Inference  # noqa: PLC0415

    inference = Inference(prompt="a red wall", num_inference_steps=STEPS, scheduler="DDIM")
    return ImageRequest(inference=inference, seed=seed, side=side)


def time_into(steps: list[float]) -> Any:
    """A callback that adds the time of each step."""
    return lambda *_: steps.append(perf_counter())
