"""The records that a child writes to its parent, a closed set, and how it is told its device."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from shared.errors import Interrupted, Passing, Refused

RECORD_BYTES = 4096
"""Writes up to this size to a pipe are atomic (PIPE_BUF); longer texts are shortened."""
DEVICE = "EVERYDREAM_DEVICE"
"""Tells a child which device it is to compute on: ``auto``, ``cpu``, ``cuda``, ``cuda:1``."""
DEVICE_SETTING = "EVERYDREAM_DEVICE_SETTING"
"""Names the setting that a child's :data:`DEVICE` is from, for what it says of it."""


class Record(Struct, frozen=True, kw_only=True, tag_field="record"):
    """One report of a child."""


class Ready(Record, frozen=True, kw_only=True, tag="ready"):
    """Imports are done, an order may come. ``gpu`` names the device; ``cpu`` without one."""

    gpu: str
    teraflops: float = 0.0
    """How fast the device multiplies matrices, in 10^12 operations per second; 0: not tested."""
    memory_bytes: int = 0
    """Of the card; 0 on the processor."""
    uuid: str = ""
    """Of the card, without the driver's prefix; empty on the processor."""
    offline: bool = False
    """Whether the child has given up its network."""
    unusable: tuple[str, ...] = ()
    """Libraries that are installed and cannot be used on the device, each with the reason."""


class Phase(Record, frozen=True, kw_only=True, tag="phase"):
    """Something slow begins or continues: loading, caching latents, saving."""

    name: str


class Progress(Record, frozen=True, kw_only=True, tag="progress"):
    """Numbers for ``/status``: step, steps, epoch, loss, images_per_second, eta_seconds."""

    numbers: dict[str, Any]
    memory_bytes: int = 0
    """Memory of the card that the child holds, for operators; 0 on the processor."""


class Reading(Record, frozen=True, kw_only=True, tag="reading"):
    """A file is opened next, or is still being read: if the child dies, by this file."""

    file: str


class Saved(Record, frozen=True, kw_only=True, tag="saved"):
    """A file or folder is complete on disk: a ``checkpoint``, ``resume_point`` or ``snapshot``."""

    kind: str
    path: str
    step: int
    epoch: int
    validation_loss: float | None = None
    """Of this checkpoint, where images are held out."""
    command: int = 0
    """Number of the newest command that this carries out; 0: none."""


class Drawn(Record, frozen=True, kw_only=True, tag="drawn"):
    """One image is on disk."""

    index: int
    path: str
    thumbnail: str
    """The path of a small WebP of it."""
    seed: int


class ImageFailed(Record, frozen=True, kw_only=True, tag="spoiled"):
    """One image could not be generated; the others continue."""

    index: int
    seed: int
    reason: str


class Done(Record, frozen=True, kw_only=True, tag="done"):
    """The order is carried out."""

    summary: dict[str, Any]


class Stopped(Record, frozen=True, kw_only=True, tag="stopped"):
    """Ended early because it was asked to; what had to be kept was reported before."""

    def error(self) -> Interrupted:
        return Interrupted("the child was stopped")


class Failed(Record, frozen=True, kw_only=True, tag="given_up"):
    """The order failed: ``refused`` is permanent, otherwise a retry may help."""

    refused: bool
    reason: str

    def error(self) -> Refused | Passing:
        return (Refused if self.refused else Passing)(self.reason)


FinalRecord = Done | Stopped | Failed
"""The records that end an order."""
AnyRecord = Ready | Phase | Progress | Reading | Saved | Drawn | ImageFailed | FinalRecord
