"""What a training has gone through, for people who look at it later: JSON lines, TensorBoard."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
from tensorboardX import SummaryWriter

METRICS = "metrics.jsonl"
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

    A resumed training begins with the lines that its resume point brought, so that its records
    are those of an uninterrupted one: no line is missing, and none is there twice.
    """

    def __init__(
        self, folder: Path, *, resumed: Path | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        """``resumed`` is the resume point's folder; ``clock`` gives seconds since the epoch."""
        folder.mkdir(parents=True, exist_ok=True)
        self._clock = clock
        self.metrics = folder / METRICS
        self.metrics.unlink(missing_ok=True)
        self.metrics.touch()
        if resumed and (resumed / METRICS).exists():
            shutil.copyfile(resumed / METRICS, self.metrics)

    def add(self, *, step: int, epoch: int, **numbers: float | None) -> None:
        """Record numbers; ``time`` is seconds since the epoch."""
        line = {"time": round(self._clock(), 3), "step": step, "epoch": epoch, **numbers}
        with self.metrics.open("ab") as file:
            file.write(msgspec.json.encode(line) + b"\n")

    def keep(self, file: Path, *, until: int) -> None:
        """Copy the lines of all steps up to this one: those after it will be recorded again."""
        with file.open("wb") as copy:
            for line in read_lines(self.metrics):
                if line["step"] <= until:
                    copy.write(msgspec.json.encode(line) + b"\n")

    def draw_board(self, name: str) -> Path:
        """Write everything recorded as one event file of TensorBoard's."""
        folder = self.metrics.with_name("tensorboard")
        with SummaryWriter(str(folder)) as board:
            for line in read_lines(self.metrics):
                for number, tag in SCALARS.items():
                    if line.get(number) is not None:
                        board.add_scalar(tag, line[number], line["step"], walltime=line["time"])
        (events,) = folder.iterdir()
        return events.rename(folder / f"events.out.tfevents.{name}")


def read_lines(file: Path) -> Iterator[Line]:
    """The lines of a metrics file, oldest first."""
    with file.open("rb") as lines:
        yield from map(msgspec.json.decode, lines)
