"""What the inferencer's parent asks of its child."""

from __future__ import annotations

from msgspec import Struct

from shared.request import Inference


class Entry(Struct, frozen=True, kw_only=True):
    """One entry of the request, its seed settled."""

    inference: Inference
    seed: int
    """Of its first image; image i has seed + i."""


class DrawingOrder(Struct, frozen=True, kw_only=True):
    """Images to draw with one model. Folders are local paths."""

    model: str
    """A diffusers folder."""
    entries: tuple[Entry, ...]
    clip_skip: int
    out: str
    """An empty folder for ``0000.png``, ``0001.png`` and so on, in the order of the entries."""
