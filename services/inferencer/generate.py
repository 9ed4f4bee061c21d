"""Draw images: entry by entry, each image with a generator and a scheduler of its own.

One image at a time, so that it depends on nothing but its seed: image i of an entry is the same as
the first image of an entry whose seed is i higher.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor

from services.inferencer.order import Entry
from services.inferencer.prompts import Prompts
from services.inferencer.schedulers import make_scheduler
from shared.diffusion.loading import Parts
from shared.diffusion.noise import seeded
from shared.diffusion.saving import pipeline
from shared.errors import Refused
from shared.request import Inference

Tell = Callable[[int, int], None]
"""Called with (steps done, steps of this image)."""


@dataclass(frozen=True)
class Drawing:
    """One image."""

    image: Image.Image
    seed: int


def generate(parts: Parts, entry: Entry, *, clip_skip: int, tell: Tell) -> Iterator[Drawing]:
    """Draw an entry's images in order.

    Raises:
        Refused: an image came out as not-a-number; names the prompt and what to try.
    """
    pipe = pipeline(parts)
    pipe.set_progress_bar_config(disable=True)
    for number in range(entry.inference.num_outputs):
        yield draw(pipe, parts, entry, entry.seed + number, clip_skip=clip_skip, tell=tell)


@torch.inference_mode()
def draw(
    pipe: StableDiffusionPipeline,
    parts: Parts,
    entry: Entry,
    seed: int,
    *,
    clip_skip: int,
    tell: Tell,
) -> Drawing:
    """Draw one image."""
    asked = entry.inference
    pipe.scheduler = make_scheduler(
        asked.scheduler, parts.scheduler_config, asked.num_inference_steps
    )
    wanted, unwanted = Prompts(parts, clip_skip).embed(asked.prompt, asked.negative_prompt or "")

    def on_step(_pipe: Any, step: int, _timestep: Any, kept: dict[str, Any]) -> dict[str, Any]:
        tell(step + 1, asked.num_inference_steps)
        return kept

    pixels: Tensor = pipe(
        prompt_embeds=wanted,
        negative_prompt_embeds=unwanted,
        width=entry.side or asked.width,
        height=entry.side or asked.height,
        num_inference_steps=asked.num_inference_steps,
        guidance_scale=asked.guidance_scale,
        generator=seeded(seed),
        output_type="pt",
        callback_on_step_end=on_step,
    ).images[0]  # (3, H, W), 0 to 1
    return Drawing(_picture(pixels, asked), seed)


def _picture(pixels: Tensor, asked: Inference) -> Image.Image:
    if not torch.isfinite(pixels).all():
        raise Refused(
            f"an image of {asked.prompt[:100]!r} came out as not-a-number: the trained model has"
            " diverged (try a lower lr), or the scheduler needs more steps"
        )
    values = (pixels * 255).round().clamp(0, 255).to("cpu", torch.uint8)
    return Image.fromarray(np.ascontiguousarray(values.permute(1, 2, 0).numpy()))
