"""Draw images: those that are alike in all but prompt and seed at once, as memory allows.

Each image has a generator of its own and prompts that were encoded by themselves, so that it
depends on nothing but its seed: image i of an entry is the same as the first image of an entry
whose seed is i higher, whatever is drawn beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from services.inferencer.generation.batching_pipeline import Model
from services.inferencer.generation.prompts import Prompts
from services.inferencer.generation.schedulers import make_scheduler
from services.inferencer.order import ImageRequest
from shared.diffusion.memory import is_out_of_memory
from shared.diffusion.noise import seeded

Tell = Callable[[int, int], None]
"""Called with (steps done, steps of these images)."""
Embeddings = tuple[Tensor, Tensor]
"""Of prompt and negative prompt, (1, 77 k, C) each."""


@dataclass(frozen=True)
class Wanted:
    """One image to draw."""

    index: int
    """Among all images of an order, from 0."""
    entry: ImageRequest
    seed: int
    embeddings: Embeddings

    @property
    def alike(self) -> tuple[Any, ...]:
        """What all images of a batch must share."""
        asked = self.entry.inference
        return (
            self.entry.size, asked.num_inference_steps, asked.scheduler, asked.guidance_scale,
            self.embeddings[0].shape[1],
        )  # fmt: skip


@dataclass(frozen=True)
class Drawing:
    """One image."""

    index: int
    entry: ImageRequest
    seed: int
    image: Image.Image


@dataclass(frozen=True)
class Failure:
    """An image that could not be drawn, and why."""

    index: int
    seed: int
    reason: str


def generate(
    model: Model, entries: Iterable[ImageRequest], *, clip_skip: int, tell: Tell
) -> Iterator[Drawing | Failure]:
    """Draw all images of the entries, those of one kind after those of another."""
    for images in _kinds(_wanted(model, entries, clip_skip)):
        yield from _draw_all(model, images, tell)


def _wanted(model: Model, entries: Iterable[ImageRequest], clip_skip: int) -> Iterator[Wanted]:
    prompts, index = Prompts(model.parts, clip_skip), count()
    for entry in entries:
        # Each by itself: beside others it would be rounded differently.
        asked = entry.inference
        embeddings = prompts.embed(asked.prompt, asked.negative_prompt or "")
        for number in range(asked.num_outputs):
            yield Wanted(next(index), entry, entry.seed + number, embeddings)


def _kinds(images: Iterable[Wanted]) -> list[list[Wanted]]:
    kinds: dict[tuple[Any, ...], list[Wanted]] = {}
    for image in images:
        kinds.setdefault(image.alike, []).append(image)
    return list(kinds.values())


def _draw_all(model: Model, images: list[Wanted], tell: Tell) -> Iterator[Drawing | Failure]:
    entry = images[0].entry
    is_guided = entry.inference.guidance_scale > 1
    while images:
        # Without guidance a single image is a single row, which no row of a batch equals.
        batch = images[: model.most(entry.size) if is_guided else 1]
        drawn = _draw_if_it_fits(model, batch, tell)
        if drawn is None and model.shrink_batch(entry.size, len(batch)):
            continue
        if drawn is None:
            yield Failure(batch[0].index, batch[0].seed, _too_large(entry))
        else:
            yield from map(_outcome, batch, drawn)
        images = images[len(batch) :]


def _draw_if_it_fits(
    model: Model, batch: Sequence[Wanted], tell: Tell
) -> list[Image.Image | None] | None:
    """None: memory ran out. What was in it is free again, as the error is gone."""
    try:
        return draw(model, batch, tell)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    return None


@torch.inference_mode()
def draw(model: Model, batch: Sequence[Wanted], tell: Tell) -> list[Image.Image | None]:
    """Draw a batch by the stock pipeline; None for an image that is no number."""
    pipe, entry = model.pipe, batch[0].entry
    asked, (width, height) = entry.inference, entry.size
    steps = asked.num_inference_steps
    pipe.scheduler = make_scheduler(asked.scheduler, model.parts.scheduler_config, steps)

    def on_step(_pipe: Any, step: int, _timestep: Any, kept: dict[str, Any]) -> dict[str, Any]:
        tell((step + 1) * steps // pipe.num_timesteps, steps)  # some take two for one
        return kept

    pixels: Tensor = pipe(
        prompt_embeds=torch.cat([image.embeddings[0] for image in batch]),
        negative_prompt_embeds=torch.cat([image.embeddings[1] for image in batch]),
        width=width,
        height=height,
        num_inference_steps=steps,
        guidance_scale=asked.guidance_scale,
        generator=[seeded(image.seed) for image in batch],
        output_type="pt",
        callback_on_step_end=on_step,
    ).images  # (B, 3, H, W), 0 to 1
    return [_picture(each) for each in pixels]


def _picture(pixels: Tensor) -> Image.Image | None:
    if not torch.isfinite(pixels).all():
        return None
    values = (pixels * 255).round().clamp(0, 255).to("cpu", torch.uint8)
    return Image.fromarray(np.ascontiguousarray(values.permute(1, 2, 0).numpy()))


def _outcome(wanted: Wanted, image: Image.Image | None) -> Drawing | Failure:
    if image is None:
        return Failure(wanted.index, wanted.seed, _no_number(wanted.entry))
    return Drawing(wanted.index, wanted.entry, wanted.seed, image)


def _no_number(entry: ImageRequest) -> str:
    return (
        f"an image of {entry.inference.prompt[:100]!r} came out as not-a-number: the trained model"
        " has diverged (try a lower lr), or the scheduler needs more steps"
    )


def _too_large(entry: ImageRequest) -> str:
    width, height = entry.size
    return (
        f"out of memory while drawing one image of {width} x {height} pixels: choose a smaller"
        " size, or a larger GPU"
    )
