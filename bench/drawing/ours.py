"""The product's side: ``python -m bench.drawing.ours CASE FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path
from time import perf_counter

import torch
from PIL import Image

from bench.drawing.scene import CASES, SEED, inference, keep
from bench.pairs import Figures, report
from bench.peak import peak_bytes
from bench.shares import Shares
from services.inferencer.generation.generate import FailedImage, generate
from services.inferencer.generation.pipeline_cache import PipelineCache
from services.inferencer.order import ImageRequest
from shared.child.process import keep_freed_memory


def main(name: str, folder: Path) -> None:
    case, shares, steps = CASES[name], Shares(), list[float]()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        keep_freed_memory()  # as the inferencer's child does
    pipeline = PipelineCache(device).load(folder / "base")

    def draw(number_of_steps: int) -> list[Image.Image]:
        asked = ImageRequest(inference=inference(case, number_of_steps), seed=SEED)
        images = []
        for outcome in generate(pipeline, [asked], clip_skip=0, on_step=note):
            if isinstance(outcome, FailedImage):
                sys.exit(outcome.reason)
            images.append(outcome.image)
        return images

    def note(_done: int, _steps: int) -> None:
        steps.append(perf_counter())

    draw(2)
    steps.clear()
    shares.measure(pipeline.pipe.unet, "forward", "network")
    shares.measure(pipeline, "decode", "decoding")
    began = perf_counter()
    images = draw(case.steps)
    ended = perf_counter()
    keep(images, folder / "ours")
    report(
        Figures(
            seconds=ended - began, images=len(images), first_step_seconds=steps[0] - began,
            peak_bytes=peak_bytes(), shares=shares.seconds,
        )
    )  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
