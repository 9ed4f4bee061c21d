"""The product's side: ``python -m bench.drawing.ours CASE FOLDER``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

from bench.drawing.scene import EVERY, SEED, inference
from bench.drawing.side import measure
from services.inferencer.generation.generate import FailedImage, generate
from services.inferencer.generation.pipeline_cache import PipelineCache
from services.inferencer.order import ImageRequest
from shared.child.process import keep_freed_memory


def main(name: str, folder: Path) -> None:
    case = EVERY[name]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        keep_freed_memory()  # as the inferencer's child does
    pipeline = PipelineCache(device).load(folder / "base")

    def draw(steps: int, on_step: Callable[[], None]) -> list[Image.Image]:
        asked = ImageRequest(inference=inference(case, steps), seed=SEED)
        images = []
        for outcome in generate(pipeline, [asked], clip_skip=0, on_step=lambda *_: on_step()):
            if isinstance(outcome, FailedImage):
                sys.exit(outcome.reason)
            images.append(outcome.image)
        return images

    parts = {"network": (pipeline.pipe.unet, "forward"), "decoding": (pipeline, "decode")}
    measure(case, folder / "ours", draw, parts)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
