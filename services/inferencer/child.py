"""The inferencer's lasting child process: carries out one order after the other.

``python -m services.inferencer.child DESCRIPTOR PARENT``, started by :class:`shared.child.Child`.
"""

from __future__ import annotations

import os
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from services.inferencer.infotext import save
from services.inferencer.order import DrawingOrder
from shared.child import (
    QUIET_AND_OFFLINE,
    Done,
    Drawn,
    GivenUp,
    Mouth,
    Phase,
    Progress,
    Ready,
    begin,
    read_order,
    shorten,
)
from shared.errors import Refused

if TYPE_CHECKING:
    from services.inferencer.pipelines import Loaded

PROGRESS_SECONDS = 0.5


def main() -> None:
    """Pay for the imports, say Ready, and draw until the parent hangs up."""
    mouth = begin()
    os.environ |= QUIET_AND_OFFLINE

    from services.inferencer import generate  # noqa: F401, PLC0415 - slow
    from services.inferencer.pipelines import Loaded  # noqa: PLC0415 - slow

    loaded = Loaded()
    mouth.say(Ready(gpu=loaded.name))
    while True:
        order: DrawingOrder = read_order(DrawingOrder)
        mouth.say(carry_out(order, loaded, mouth))


def carry_out(order: DrawingOrder, loaded: Loaded, mouth: Mouth) -> Done | GivenUp:
    """The last word on an order; whatever happens, the next one finds the child in good order."""
    import torch  # noqa: PLC0415 - slow

    try:
        return Done(summary={"images": draw_all(order, loaded, mouth)})
    except Refused as error:
        return GivenUp(refused=True, reason=shorten(str(error)))
    except torch.OutOfMemoryError:
        loaded.forget()
        return GivenUp(refused=False, reason="out of memory while drawing; choose a smaller size")
    except Exception as error:  # noqa: BLE001 - the parent decides, by trying again
        traceback.print_exc()
        loaded.forget()
        return GivenUp(refused=False, reason=shorten(f"{type(error).__name__}: {error}"))


def draw_all(order: DrawingOrder, loaded: Loaded, mouth: Mouth) -> int:
    """Draw every entry's images into the order's folder; how many."""
    from services.inferencer.generate import generate  # noqa: PLC0415 - slow

    mouth.say(Phase(name="loading the trained model"))
    parts = loaded.parts(Path(order.model), Path(order.weights) if order.weights else None)
    mouth.say(Phase(name="drawing"))
    tell = Teller(mouth, total=sum(entry.inference.num_outputs for entry in order.entries))
    for entry in order.entries:
        for drawing in generate(parts, entry, clip_skip=order.clip_skip, tell=tell.tell):
            path = Path(order.out) / f"{tell.drawn:04}.png"
            save(
                drawing.image,
                path,
                entry,
                seed=drawing.seed,
                clip_skip=order.clip_skip,
                about=order.about,
            )
            mouth.say(Drawn(index=tell.drawn, path=str(path), seed=drawing.seed))
            tell.drawn += 1
    return tell.drawn


class Teller:
    """Reports progress, not too often."""

    def __init__(self, mouth: Mouth, total: int) -> None:
        self.drawn = 0
        self._mouth = mouth
        self._total = total
        self._told_at = 0.0

    def tell(self, step: int, steps: int) -> None:
        """A step of the next image is done."""
        now = time.monotonic()
        if now - self._told_at < PROGRESS_SECONDS:
            return
        self._told_at = now
        numbers = {"image": self.drawn + 1, "images": self._total, "step": step, "steps": steps}
        self._mouth.say(Progress(numbers=numbers))


if __name__ == "__main__":
    main()
