"""The inferencer's lasting child process: carries out one order after the other.

``python -m services.inferencer.generation.child DESCRIPTOR PARENT``, started by
:class:`shared.child.parent.Child`.
"""

from __future__ import annotations

import os
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from services.inferencer.generation.infotext import save
from services.inferencer.order import DrawingOrder
from shared.child.process import QUIET_AND_OFFLINE, RecordWriter, begin, read_order
from shared.child.records import Done, Drawn, Failed, ImageFailed, Phase, Progress, Ready
from shared.errors import Refused, reason_of
from shared.service_process import importing

if TYPE_CHECKING:
    from services.inferencer.generation.generate import Drawing, Failure
    from services.inferencer.generation.pipeline_cache import Pipelines

PROGRESS_SECONDS = 0.5


def main() -> None:
    """Pay for the imports, say Ready, and draw until the parent hangs up."""
    writer = begin()
    os.environ |= QUIET_AND_OFFLINE
    with importing():
        from services.inferencer.generation import generate  # noqa: F401, PLC0415 - slow
        from services.inferencer.generation.pipeline_cache import Pipelines  # noqa: PLC0415 - slow

    pipelines = Pipelines()
    writer.write(Ready(gpu=pipelines.name))
    while True:
        order: DrawingOrder = read_order(DrawingOrder)
        writer.write(carry_out(order, pipelines, writer))


def carry_out(order: DrawingOrder, pipelines: Pipelines, writer: RecordWriter) -> Done | Failed:
    """The last word on an order; whatever happens, the next one finds the child in good order."""
    from shared.diffusion.memory import is_out_of_memory  # noqa: PLC0415 - slow

    try:
        return Done(summary={"images": draw_all(order, pipelines, writer)})
    except Refused as error:
        return Failed(refused=True, reason=reason_of(error))
    except Exception as error:  # noqa: BLE001 - the parent decides, by trying again
        traceback.print_exc()
        lacking = is_out_of_memory(error)
        reason = "out of memory while loading the model" if lacking else reason_of(error)
    pipelines.forget()
    return Failed(refused=False, reason=reason)


def draw_all(order: DrawingOrder, pipelines: Pipelines, writer: RecordWriter) -> int:
    """Draw every entry's images into the order's folder; how many.

    Raises:
        Refused: there is not one; why the first could not be drawn.
    """
    from services.inferencer.generation.generate import Failure, generate  # noqa: PLC0415 - slow

    writer.write(Phase(name="loading the trained model"))
    model = pipelines.model(Path(order.model), Path(order.weights) if order.weights else None)
    writer.write(Phase(name="drawing"))
    teller = Teller(writer, total=sum(entry.inference.num_outputs for entry in order.entries))
    failures = []
    for each in generate(model, order.entries, clip_skip=order.clip_skip, tell=teller.tell):
        writer.write(said_of(each, order))
        teller.done += 1
        if isinstance(each, Failure):
            failures.append(each)
    if failures and len(failures) == teller.done:
        raise Refused(min(failures, key=lambda failure: failure.index).reason)
    return teller.done - len(failures)


def said_of(image: Drawing | Failure, order: DrawingOrder) -> Drawn | ImageFailed:
    """The record of an image; a drawn one is on disk by then."""
    from services.inferencer.generation.generate import Failure  # noqa: PLC0415 - slow

    if isinstance(image, Failure):
        return ImageFailed(index=image.index, seed=image.seed, reason=image.reason)
    path = Path(order.out) / f"{image.index:04}.png"
    save(
        image.image,
        path,
        image.entry,
        seed=image.seed,
        clip_skip=order.clip_skip,
        about=order.about,
    )
    return Drawn(index=image.index, path=str(path), seed=image.seed)


class Teller:
    """Reports progress, not too often."""

    def __init__(self, writer: RecordWriter, total: int) -> None:
        self.done = 0
        self._writer = writer
        self._total = total
        self._told_at = 0.0

    def tell(self, step: int, steps: int) -> None:
        """A step is done of the next image, and of those that are drawn with it."""
        now = time.monotonic()
        if now - self._told_at < PROGRESS_SECONDS:
            return
        self._told_at = now
        numbers = {"image": self.done + 1, "images": self._total, "step": step, "steps": steps}
        self._writer.write(Progress(numbers=numbers))


if __name__ == "__main__":
    main()
