"""Pack named batches: those of one name into as few updates as possible, first-fit decreasing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def packed(groups: Sequence[Sequence[T]], size: int, fillers: Sequence[T] = ()) -> list[list[T]]:
    """Bins of ``size`` items, of which the last may be short; each group is spread over few bins.

    The largest group is always next. The rest of its bin is filled with fillers while there are
    any, then with the largest other group that fits, then with a part of the smallest. Remaining
    fillers come at the end.
    """
    rest = [list(group) for group in groups if group]
    spare = list(fillers)
    bins: list[list[T]] = []
    while rest:
        rest.sort(key=len, reverse=True)
        bins.append(_fill_bin(rest, spare, size))
    return [*bins, *(spare[start : start + size] for start in range(0, len(spare), size))]


def _fill_bin(rest: list[list[T]], spare: list[T], size: int) -> list[T]:
    """Take one bin's items out of the groups (sorted, largest first) and the fillers."""
    taken = _take_items(rest, 0, size)
    room = size - len(taken)
    taken += spare[:room]
    del spare[:room]
    while rest and len(taken) < size:
        room = size - len(taken)
        fitting = (index for index, group in enumerate(rest) if len(group) <= room)
        taken += _take_items(rest, next(fitting, len(rest) - 1), room)
    return taken


def _take_items(rest: list[list[T]], index: int, limit: int) -> list[T]:
    taken, rest[index] = rest[index][:limit], rest[index][limit:]
    if not rest[index]:
        del rest[index]
    return taken
