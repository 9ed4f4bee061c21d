"""Metrics of a run: JSON lines, and the same as a TensorBoard event file."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
from tensorboardX import SummaryWriter

from services.trainer.order import METRICS

SCALARS = {
    "loss": "loss/training",
    "validation_loss": "loss/validation",
    "lr": "lr/unet",
    "text_encoder_lr": "lr/text_encoder",
    "images_per_second": "speed/images_per_second",
}
"""The numbers that TensorBoard draws, and what it calls them."""

Line = dict[str, Any]


class Metrics:
    """A line for every report and every validation, in the order of steps.

    A resumed run begins with its resume point's lines: none is missing or doubled.
    """

    def __init__(
        self, folder: Path, *, resumed: Path | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        """``resumed`` is the resume point's folder; ``clock`` gives seconds since the epoch."""
        folder.mkdir(parents=True, exist_ok=True)
        self._clock = clock
        self.file = folder / METRICS
        self.file.unlink(missing_ok=True)
        self.file.touch()
        if resumed and (resumed / METRICS).exists():
            shutil.copyfile(resumed / METRICS, self.file)

    def add(self, *, step: int, epoch: int, **numbers: float | None) -> None:
        """Record numbers; ``time`` is seconds since the epoch."""
        line = {"time": round(self._clock(), 3), "step": step, "epoch": epoch, **numbers}
        with self.file.open("ab") as file:
            file.write(msgspec.json.encode(line) + b"\n")

    def copy(self, file: Path, *, until: int) -> None:
        """Copy the lines of all steps up to this one; a resumed run records later ones again."""
        with file.open("wb") as target:
            for line in read_lines(self.file):
                if line["step"] <= until:
                    target.write(msgspec.json.encode(line) + b"\n")

    def write_tensorboard(self, name: str) -> Path:
        """Write all metrics as one event file of TensorBoard's."""
        folder = self.file.with_name("tensorboard")
        with SummaryWriter(str(folder)) as board:
            for line in read_lines(self.file):
                for number, tag in SCALARS.items():
                    if line.get(number) is not None:
                        board.add_scalar(tag, line[number], line["step"], walltime=line["time"])
        (events,) = folder.iterdir()
        return events.rename(folder / f"events.out.tfevents.{name}")


def read_lines(file: Path) -> Iterator[Line]:
    """The lines of a metrics file, oldest first."""
    with file.open("rb") as lines:
        yield from map(msgspec.json.decode, lines)
