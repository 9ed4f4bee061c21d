"""The trainer's child process: one order, one job, then the end.

``python -m services.trainer.training.child DESCRIPTOR PARENT``, started by
:class:`shared.child.parent.Child`.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec

from services.trainer.order import Commands, TrainingOrder
from services.trainer.training.recipe import A_LORA, to_need_less_memory
from shared.child.process import (
    FOR_LIBRARIES,
    RecordWriter,
    begin,
    ended_with_reason,
    importing,
    keep_freed_memory,
    orders_meanwhile,
    read_order,
)
from shared.child.records import Done, Failed, Phase, Progress, Ready, Saved, Stopped
from shared.errors import Interrupted, Passing, Refused, reason_of
from shared.request import Command


class Stop:
    """SIGTERM ends an idle child at once, and asks a working one to save and end."""

    def __init__(self) -> None:
        self.requested = False
        self.idle = True
        signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.requested = True
        if self.idle:
            sys.exit(0)


class ParentCallbacks:
    """Passes reports to the parent, and its commands to the loop."""

    def __init__(
        self, writer: RecordWriter, stop: Stop, held: Callable[[], int] = lambda: 0
    ) -> None:
        """``held`` says how many bytes of the card's memory this process has."""
        self._held = held
        self._writer = writer
        self._stop = stop
        self._commands: Counter[Command] = Counter()

    def phase(self, name: str) -> None:
        self._writer.write(Phase(name=name))

    def progress(self, numbers: dict[str, Any]) -> None:
        self._writer.write(Progress(numbers=numbers, memory_bytes=self._held()))

    def saved(
        self,
        kind: str,
        path: Path,
        step: int,
        epoch: int,
        validation_loss: float | None = None,
        *,
        command: int = 0,
    ) -> None:
        self._writer.write(
            Saved(
                kind=kind,
                path=str(path),
                step=step,
                epoch=epoch,
                validation_loss=validation_loss,
                command=command,
            )
        )

    def should_stop(self) -> bool:
        return self._stop.requested

    def command(self, kind: Command) -> int:
        for received in orders_meanwhile(Commands):
            # The larger number of each kind: messages may overtake one another.
            self._commands |= Counter(received.commands)
        return self._commands[kind]


def main() -> None:
    """Import, report Ready, and carry out one order."""
    writer = begin()
    stop = Stop()
    os.environ |= FOR_LIBRARIES
    with importing():
        from services.trainer.training import train  # noqa: F401, PLC0415 - slow
        from services.trainer.training.device import teraflops, unusable  # noqa: PLC0415 - slow
        from shared.diffusion.device import device_name, device_uuid, this_device  # noqa: PLC0415 - slow
        from shared.diffusion.memory import card_memory, held_memory  # noqa: PLC0415 - slow

    with ended_with_reason(writer):
        device = this_device()
    if device.type == "cpu":
        keep_freed_memory()
    memory = card_memory(device)
    writer.write(
        Ready(
            gpu=device_name(device),
            teraflops=teraflops(device),
            memory_bytes=memory.total if memory else 0,
            uuid=device_uuid(device),
            unusable=unusable(device),
        )
    )
    order: TrainingOrder = read_order(TrainingOrder)
    stop.idle = False
    writer.write(carry_out(order, ParentCallbacks(writer, stop, partial(held_memory, device))))


def carry_out(order: TrainingOrder, callbacks: ParentCallbacks) -> Done | Stopped | Failed:
    """Train; the record that ends the order."""
    from services.trainer.training.train import train  # noqa: PLC0415 - slow
    from shared.diffusion.memory import is_out_of_memory  # noqa: PLC0415 - slow

    try:
        return Done(summary=msgspec.to_builtins(train(order, callbacks)))
    except Interrupted:
        return Stopped()
    except Refused as error:
        return Failed(refused=True, reason=reason_of(error))
    except Passing as error:
        return Failed(refused=False, reason=reason_of(error))
    except Exception as error:  # noqa: BLE001 - the parent decides, by trying again
        if is_out_of_memory(error):
            return out_of_memory(order)
        traceback.print_exc()
        return Failed(refused=False, reason=reason_of(error))


def out_of_memory(order: TrainingOrder) -> Failed:
    """Name the settings that would need less memory."""
    from shared.diffusion.memory import held_by_others  # noqa: PLC0415 - slow

    advice, others = to_need_less_memory(order.train), held_by_others()
    if advice is None:
        text = "out of memory at the smallest settings there are for this resolution"
        lora = "" if order.train.lora_rank else f" {A_LORA},"
        reason = f"{text}: choose a lower resolution,{lora} or a larger GPU{others}"
        return Failed(refused=not others, reason=reason)  # others may leave
    return Failed(refused=False, reason=f"out of memory; settings that need less: {advice}{others}")


if __name__ == "__main__":
    main()
