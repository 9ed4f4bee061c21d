"""Where the metrics of a training are stored while it runs.

They are stored in pieces: JSON lines in the order of steps, all lines of a step in one piece. The
trainer begins a piece when the last one is full, and writes the last one anew as it grows. A piece
is named by the attempt at the training and by its first step, so nobody reads one to know what is
in it: it ends where the next one begins.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from msgspec import Struct

from shared.ports import ObjectStore


class MetricsPiece(Struct, frozen=True, kw_only=True):
    """A stored piece of a training's metrics."""

    attempt: int
    first_step: int


def metrics_of(job: str) -> str:
    """The prefix of all pieces of a job."""
    return f"jobs/{job}/metrics/"


def piece_key(job: str, piece: MetricsPiece) -> str:
    """The key of a piece; written again, it replaces itself."""
    return f"{metrics_of(job)}{piece.attempt}/{piece.first_step}.jsonl"


async def stored_pieces(store: ObjectStore, job: str) -> list[MetricsPiece]:
    """The pieces that count, in the order of steps. Raises Unavailable."""
    pattern = re.compile(r".*/(\d+)/(\d+)\.jsonl")
    found = [pattern.fullmatch(entry.key) async for entry in store.list(metrics_of(job))]
    return newest(
        MetricsPiece(attempt=int(each[1]), first_step=int(each[2])) for each in found if each
    )


def newest(pieces: Iterable[MetricsPiece]) -> list[MetricsPiece]:
    """The pieces without those of an earlier attempt from where a later one begins, in order."""
    kept: list[MetricsPiece] = []
    for piece in sorted(pieces, key=lambda each: (each.attempt, each.first_step), reverse=True):
        if not kept or piece.first_step < kept[-1].first_step:
            kept.append(piece)
    return kept[::-1]
