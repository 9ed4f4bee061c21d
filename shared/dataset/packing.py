"""Named batches: those of one name into as few updates as can be, by first-fit-decreasing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def packed(groups: Sequence[Sequence[T]], size: int, fillers: Sequence[T] = ()) -> list[list[T]]:
    """Bins of ``size`` items, the last perhaps short, that hold each group in few of them.

    The largest group is always next. The room that it leaves is filled with fillers while there are
    any, then with the largest other group that fits, then with a part of the smallest. What is left
    of the fillers comes at the end.
    """
    rest = [list(group) for group in groups if group]
    spare = list(fillers)
    bins: list[list[T]] = []
    while rest:
        rest.sort(key=len, reverse=True)
        bins.append(_bin(rest, spare, size))
    return [*bins, *(spare[start : start + size] for start in range(0, len(spare), size))]


def _bin(rest: list[list[T]], spare: list[T], size: int) -> list[T]:
    """One bin, taken out of the groups (the largest first) and the fillers."""
    taken = _take(rest, 0, size)
    room = size - len(taken)
    taken += spare[:room]
    del spare[:room]
    while rest and len(taken) < size:
        room = size - len(taken)
        fitting = (index for index, group in enumerate(rest) if len(group) <= room)
        taken += _take(rest, next(fitting, len(rest) - 1), room)
    return taken


def _take(rest: list[list[T]], index: int, most: int) -> list[T]:
    taken, rest[index] = rest[index][:most], rest[index][most:]
    if not rest[index]:
        del rest[index]
    return taken
