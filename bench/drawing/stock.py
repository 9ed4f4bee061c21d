"""The peer: diffusers' StableDiffusionPipeline as its users call it, all images in one batch.

The same weights in the same precision, the same schedule and noise: ``python -m
bench.drawing.stock CASE FOLDER``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from bench.drawing.scene import CASES, SEED, inference, keep
from bench.pairs import Figures, report
from bench.peak import peak_bytes
from bench.shares import Shares
from services.inferencer.generation.schedulers import make_scheduler
from shared.diffusion.noise import seeded


def main(name: str, folder: Path) -> None:
    case, shares, steps = CASES[name], Shares(), list[float]()
    on_card = torch.cuda.is_available()
    kind = torch.float16 if on_card else torch.float32
    pipe = StableDiffusionPipeline.from_pretrained(
        folder / "base", torch_dtype=kind, safety_checker=None
    )
    pipe.to("cuda" if on_card else "cpu")
    pipe.set_progress_bar_config(disable=True)
    schedule = dict(pipe.scheduler.config)

    def draw(number_of_steps: int) -> list[Image.Image]:
        asked = inference(case, number_of_steps)
        pipe.scheduler = make_scheduler(asked.scheduler, schedule, number_of_steps)
        drawn = pipe(
            asked.prompt, width=case.side, height=case.side,
            num_inference_steps=number_of_steps, guidance_scale=asked.guidance_scale,
            num_images_per_prompt=case.images, callback_on_step_end=note,
            generator=[seeded(SEED + number) for number in range(case.images)],
        )  # fmt: skip
        images: list[Image.Image] = drawn.images
        return images

    def note(_pipe: Any, _step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        steps.append(perf_counter())
        return tensors

    draw(2)
    steps.clear()
    shares.measure(pipe.unet, "forward", "network")
    shares.measure(pipe.vae, "decode", "decoding")
    began = perf_counter()
    images = draw(case.steps)
    ended = perf_counter()
    keep(images, folder / "stock")
    report(
        Figures(
            seconds=ended - began, images=len(images), first_step_seconds=steps[0] - began,
            peak_bytes=peak_bytes(), shares=shares.seconds,
        )
    )  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
