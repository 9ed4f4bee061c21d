"""The inferencer's child process: it outlives its orders and carries out one after another.

``python -m services.inferencer.generation.child DESCRIPTOR PARENT``, started by
:class:`shared.child.parent.Child`.
"""

from __future__ import annotations

import gc
import os
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from services.inferencer.generation.infotext import WeighedLora, lora_hash, save
from services.inferencer.order import GenerationOrder, ImageRequest
from shared.child.process import (
    FOR_LIBRARIES,
    RecordWriter,
    begin,
    ended_with_reason,
    give_freed_memory_back,
    importing,
    keep_freed_memory,
    read_order,
)
from shared.child.records import Done, Drawn, Failed, ImageFailed, Phase, Progress, Ready
from shared.errors import Refused, reason_of
from shared.thumbnail import SUFFIX, write_thumbnail

if TYPE_CHECKING:
    from services.inferencer.generation.generate import FailedImage, GeneratedImage
    from services.inferencer.generation.pipeline_cache import PipelineCache

PROGRESS_SECONDS = 0.5
ON_THE_PROCESSOR = (
    "drawn on the processor, which takes long: beside what other processes have on the card there"
    " was no room"
)
CUT_OFF = "the end of a prompt is cut off, which has more than ten blocks of 75 tokens"
SHOWN = 60
"""Characters of a prompt in a warning."""


def main() -> None:
    """Import torch, report Ready, and carry out orders until the parent closes the pipe."""
    writer = begin()
    os.environ |= FOR_LIBRARIES
    with importing():
        from services.inferencer.generation import generate  # noqa: F401, PLC0415 - slow
        from services.inferencer.generation.pipeline_cache import PipelineCache  # noqa: PLC0415 - slow
        from shared.diffusion.device import device_name, device_uuid, this_device  # noqa: PLC0415 - slow

    with ended_with_reason(writer):
        device = this_device()
    if device.type == "cpu":
        keep_freed_memory()
    cache = PipelineCache(device)
    writer.write(Ready(gpu=device_name(device), uuid=device_uuid(device)))
    while True:
        order: GenerationOrder = read_order(GenerationOrder)
        last = carry_out(order, cache, writer)
        # Before the parent may begin the next order: a trainer may wait for it.
        cache.give_back()
        give_freed_memory_back()
        writer.write(last)


def carry_out(order: GenerationOrder, cache: PipelineCache, writer: RecordWriter) -> Done | Failed:
    """Carry out an order and return its final record; a failure does not affect the next order."""
    from shared.diffusion.memory import held_by_others, is_out_of_memory  # noqa: PLC0415 - slow

    try:
        return Done(summary=generate_all(order, cache, writer))
    except Refused as error:
        return Failed(refused=True, reason=reason_of(error))
    except Exception as error:  # noqa: BLE001 - the parent decides, by trying again
        traceback.print_exc()
        lacks_memory = is_out_of_memory(error)
        lack = f"out of memory while loading the model{held_by_others()}"
        reason = lack if lacks_memory else reason_of(error)
    cache.clear()  # only here: in the except block the error's frames still hold tensors
    return Failed(refused=False, reason=reason)


def generate_all(
    order: GenerationOrder, cache: PipelineCache, writer: RecordWriter
) -> dict[str, Any]:
    """Generate all images into the order's folder; returns how many, and warnings.

    What a trainer on the same card leaves no room for is drawn on the processor: the trainer may
    keep it for days.

    Raises:
        Refused: every image failed; has the first one's reason.
    """
    writer.write(Phase(name="loading the trained model"))
    warnings: list[str] = []
    if cache.has_room(Path(order.model), largest_size(order)):
        generated = generate_with(cache, order, writer, "drawing", warnings)
        return {"images": generated, "warnings": warnings}
    warnings.append(ON_THE_PROCESSOR)
    try:
        phase = "drawing on the processor"
        generated = generate_with(cache.on_processor(), order, writer, phase, warnings)
    finally:
        gc.collect()  # it takes gigabytes of the machine's memory, and refers to itself
    return {"images": generated, "warnings": warnings}


def generate_with(
    cache: PipelineCache,
    order: GenerationOrder,
    writer: RecordWriter,
    phase: str,
    warnings: list[str],
) -> int:
    """Generate all images on the cache's device, and add warnings; as :func:`generate_all`."""
    from services.inferencer.generation.generate import FailedImage, generate  # noqa: PLC0415 - slow

    snapshot = Path(order.snapshot) if order.snapshot else None
    pipeline = cache.load(Path(order.model), snapshot, [each.file for each in order.loras])
    writer.write(Phase(name=phase))
    total = sum(request.inference.num_outputs for request in order.requests)
    progress = ProgressReporter(writer, total)
    failed = []
    for image in generate(
        pipeline,
        order.requests,
        clip_skip=order.clip_skip,
        weights=[each.weight for each in order.loras],
        on_step=progress.on_step,
        on_cut=lambda text: warnings.append(f"{CUT_OFF}: {text[:SHOWN]!r}..."),
    ):
        writer.write(record_of(image, order))
        progress.done += 1
        if isinstance(image, FailedImage):
            failed.append(image)
    if failed and len(failed) == progress.done:
        raise Refused(min(failed, key=lambda image: image.index).reason)
    return progress.done - len(failed)


def largest_size(order: GenerationOrder) -> tuple[int, int]:
    """Of its images."""
    sizes = [request.size for request in order.requests]
    return max(sizes, key=lambda size: size[0] * size[1], default=(0, 0))


def record_of(image: GeneratedImage | FailedImage, order: GenerationOrder) -> Drawn | ImageFailed:
    """The record of an image; a generated one is written to disk first."""
    from services.inferencer.generation.generate import FailedImage  # noqa: PLC0415 - slow

    if isinstance(image, FailedImage):
        return ImageFailed(index=image.index, seed=image.seed, reason=image.reason)
    path = Path(order.out) / f"{image.index:04}.png"
    save(
        image.image,
        path,
        image.request,
        seed=image.seed,
        clip_skip=order.clip_skip,
        provenance=order.provenance,
        loras=weighed_loras(order, image.request),
    )
    thumbnail = path.with_suffix(SUFFIX)
    write_thumbnail(image.image.copy(), thumbnail)
    return Drawn(index=image.index, path=str(path), thumbnail=str(thumbnail), seed=image.seed)


def weighed_loras(order: GenerationOrder, request: ImageRequest) -> list[WeighedLora]:
    """The LoRAs of an image, as its settings tell them."""
    weights = request.inference.loras or [each.weight for each in order.loras]
    return [
        WeighedLora(each.name, weight, lora_hash(Path(order.model) / each.file))
        for each, weight in zip(order.loras, weights, strict=True)
    ]


class ProgressReporter:
    """Reports progress, at most every ``PROGRESS_SECONDS``."""

    def __init__(self, writer: RecordWriter, total: int) -> None:
        self.done = 0
        self._writer = writer
        self._total = total
        self._reported_at = 0.0

    def on_step(self, step: int, steps: int) -> None:
        """A step is done of the next image and of its batch."""
        now = time.monotonic()
        if now - self._reported_at < PROGRESS_SECONDS:
            return
        self._reported_at = now
        numbers = {"image": self.done + 1, "images": self._total, "step": step, "steps": steps}
        self._writer.write(Progress(numbers=numbers))


if __name__ == "__main__":
    main()
