"""Generate images, in batches as large as memory allows.

Each image has its own generator and its own encoded prompts, so it depends on its seed alone and
not on its batch: image i of a request is the first image of the same request with seed + i.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from services.inferencer.generation.batching_pipeline import BatchingPipeline
from services.inferencer.generation.prompts import PromptEncoder
from services.inferencer.generation.schedulers import make_scheduler
from services.inferencer.order import ImageRequest
from shared.diffusion.memory import held_by_others, is_out_of_memory
from shared.diffusion.noise import seeded

OnStep = Callable[[int, int], None]
"""Called with (steps done, steps in all) of the current batch."""
Embeddings = tuple[Tensor, Tensor]
"""Of prompt and negative prompt, (1, 77 k, C) each."""


@dataclass(frozen=True)
class PendingImage:
    """One image to generate."""

    index: int
    """Among all images of an order, from 0."""
    request: ImageRequest
    seed: int
    embeddings: Embeddings

    @property
    def batch_key(self) -> tuple[Any, ...]:
        """What all images of a batch share."""
        inference = self.request.inference
        return (
            self.request.size, inference.num_inference_steps, inference.scheduler,
            inference.guidance_scale, self.embeddings[0].shape[1], tuple(inference.loras),
        )  # fmt: skip


@dataclass(frozen=True)
class GeneratedImage:
    """One image."""

    index: int
    request: ImageRequest
    seed: int
    image: Image.Image


@dataclass(frozen=True)
class FailedImage:
    """An image that could not be generated, and why."""

    index: int
    seed: int
    reason: str


def generate(
    pipeline: BatchingPipeline,
    requests: Iterable[ImageRequest],
    *,
    clip_skip: int,
    weights: Sequence[float] = (),
    on_step: OnStep,
    on_cut: Callable[[str], object] = lambda _text: None,
) -> Iterator[GeneratedImage | FailedImage]:
    """Generate all images of the requests, one group after another.

    A group shares all that a batch must share; its batches may be smaller. ``on_cut`` is called
    with each prompt, or negative prompt, whose end is cut off. ``weights`` are those of the model's
    LoRAs, where a request has none of its own; empty: they count fully.
    """
    groups: dict[tuple[Any, ...], list[PendingImage]] = {}
    encoder = PromptEncoder(pipeline.parts, clip_skip)
    for image in _pending_images(pipeline, encoder, requests, weights):
        groups.setdefault(image.batch_key, []).append(image)
    for text in encoder.cut:
        on_cut(text)
    for images in groups.values():
        pipeline.weigh(images[0].request.inference.loras or weights)
        yield from _generate_group(pipeline, images, on_step)


def _pending_images(
    pipeline: BatchingPipeline,
    encoder: PromptEncoder,
    requests: Iterable[ImageRequest],
    weights: Sequence[float],
) -> Iterator[PendingImage]:
    index = count()
    for request in requests:
        # Not in batches, which would round differently.
        inference = request.inference
        pipeline.weigh(inference.loras or weights)
        embeddings = encoder.embed(inference.prompt, inference.negative_prompt or "")
        for number in range(inference.num_outputs):
            yield PendingImage(next(index), request, request.seed + number, embeddings)


def _generate_group(
    pipeline: BatchingPipeline, images: list[PendingImage], on_step: OnStep
) -> Iterator[GeneratedImage | FailedImage]:
    request = images[0].request
    is_guided = request.inference.guidance_scale > 1
    while images:
        # Without guidance a single image is a single row, which rounds differently from a batch's.
        batch = images[: pipeline.batch_size(request.size) if is_guided else 1]
        results = _generate_if_memory_suffices(pipeline, batch, on_step)
        if results is None and pipeline.shrink_batch(request.size, len(batch)):
            continue
        if results is None:
            yield FailedImage(batch[0].index, batch[0].seed, _out_of_memory_reason(request))
        else:
            yield from map(partial(_outcome, pipeline), batch, results)
        images = images[len(batch) :]


def _generate_if_memory_suffices(
    pipeline: BatchingPipeline, batch: Sequence[PendingImage], on_step: OnStep
) -> list[Image.Image | None] | None:
    """None: memory ran out. What the batch took is free again, as the error is gone."""
    try:
        return generate_batch(pipeline, batch, on_step)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    return None


@torch.inference_mode()
def generate_batch(
    pipeline: BatchingPipeline, batch: Sequence[PendingImage], on_step: OnStep
) -> list[Image.Image | None]:
    """Generate a batch by the stock pipeline; None for an image with a pixel that is not finite."""
    pipe, request = pipeline.pipe, batch[0].request
    inference, (width, height) = request.inference, request.size
    steps = inference.num_inference_steps
    pipe.scheduler = make_scheduler(inference.scheduler, pipeline.parts.scheduler_config, steps)

    def callback(_pipe: Any, step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        # Some schedulers call the network twice for a step.
        on_step((step + 1) * steps // pipe.num_timesteps, steps)
        return tensors

    latents: Tensor = pipe(
        prompt_embeds=torch.cat([image.embeddings[0] for image in batch]),
        negative_prompt_embeds=torch.cat([image.embeddings[1] for image in batch]),
        width=width,
        height=height,
        num_inference_steps=steps,
        guidance_scale=inference.guidance_scale,
        generator=[seeded(image.seed) for image in batch],
        output_type="latent",
        callback_on_step_end=callback,
    ).images  # (B, 4, H / 8, W / 8)
    return [_to_image(each) for each in pipeline.decode(latents)]


def _to_image(pixels: Tensor) -> Image.Image | None:
    if not torch.isfinite(pixels).all():
        return None
    values = (pixels * 255).round().clamp(0, 255).to("cpu", torch.uint8)
    return Image.fromarray(np.ascontiguousarray(values.permute(1, 2, 0).numpy()))


def _outcome(
    pipeline: BatchingPipeline, pending: PendingImage, image: Image.Image | None
) -> GeneratedImage | FailedImage:
    if image is None:
        reason = _not_finite_reason(pending.request, with_loras=bool(pipeline.loras))
        return FailedImage(pending.index, pending.seed, reason)
    return GeneratedImage(pending.index, pending.request, pending.seed, image)


def _not_finite_reason(request: ImageRequest, *, with_loras: bool) -> str:
    weight = " a LoRA adds too much (try a smaller weight)," if with_loras else ""
    return (
        f"an image of {request.inference.prompt[:100]!r} came out as not-a-number:{weight} the"
        " trained model has diverged (try a lower lr), or the scheduler needs more steps"
    )


def _out_of_memory_reason(request: ImageRequest) -> str:
    width, height = request.size
    return (
        f"out of memory while drawing one image of {width} x {height} pixels: choose a smaller"
        f" size, or a larger GPU{held_by_others()}"
    )
