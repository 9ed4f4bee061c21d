"""The peer: diffusers' StableDiffusionPipeline as its users call it, all images in one batch.

The same weights in the same precision, the same schedule and noise: ``python -m
bench.drawing.stock CASE FOLDER``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from bench.drawing.scene import EVERY, SEED, inference
from bench.drawing.side import measure
from services.inferencer.generation.schedulers import make_scheduler
from shared.diffusion.noise import seeded


def main(name: str, folder: Path) -> None:
    case, on_card = EVERY[name], torch.cuda.is_available()
    kind = torch.float16 if on_card else torch.float32
    pipe = StableDiffusionPipeline.from_pretrained(
        folder / "base", torch_dtype=kind, safety_checker=None
    )
    pipe.to("cuda" if on_card else "cpu")
    pipe.set_progress_bar_config(disable=True)
    schedule = dict(pipe.scheduler.config)

    def draw(steps: int, on_step: Callable[[], None]) -> list[Image.Image]:
        def after_step(*arguments: Any) -> dict[str, Any]:
            on_step()
            tensors: dict[str, Any] = arguments[-1]
            return tensors

        asked = inference(case, steps)
        pipe.scheduler = make_scheduler(asked.scheduler, schedule, steps)
        images: list[Image.Image] = pipe(
            asked.prompt, width=case.side, height=case.side, num_inference_steps=steps,
            guidance_scale=asked.guidance_scale, num_images_per_prompt=case.images,
            callback_on_step_end=after_step,
            generator=[seeded(SEED + number) for number in range(case.images)],
        ).images  # fmt: skip
        return images

    parts = {"network": (pipe.unet, "forward"), "decoding": (pipe.vae, "decode")}
    measure(case, folder / "stock", draw, parts)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
