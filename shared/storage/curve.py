"""The points of a training's curves, thinned as its metrics are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

import msgspec
from msgspec import Struct

T = TypeVar("T")


class Point(Struct, omit_defaults=True):
    """A line of the metrics, or several of one step."""

    step: int
    epoch: int
    time: float
    loss: float | None = None
    lr: float | None = None
    text_encoder_lr: float | None = None
    images_per_second: float | None = None
    validation_loss: float | None = None


_decoder = msgspec.json.Decoder(Point)


class Curve:
    """The points of a curve, gathered piece by piece; holds few of them, however many there are.

    Validations are thinned by themselves: they are rare, and each one counts.
    """

    def __init__(self, points: int, *, after: int = -1) -> None:
        """At most so many reports, and as many validations, of the steps after this one."""
        self._after = after
        self._reports = Thinned[Point](points)
        self._validations = Thinned[Point](points)
        self._last: Point | None = None

    @property
    def last_step(self) -> int | None:
        """The last step that was added, wanted or not."""
        return self._last.step if self._last else None

    def add(self, text: bytes, end: float) -> None:
        """Add a piece's lines of steps before ``end``."""
        for point in merged(_decoder.decode_lines(text)):
            if point.step >= end:
                return
            self._last = point
            if point.step > self._after:
                is_validation = point.validation_loss is not None
                (self._validations if is_validation else self._reports).add(point)

    def points(self) -> list[Point]:
        """The points, thinned, in order; the last one is among them."""
        kept = {each.step: each for each in (*self._reports.kept, *self._validations.kept)}
        if self._last and self._last.step > self._after:
            kept[self._last.step] = self._last
        return sorted(kept.values(), key=lambda each: each.step)


class Thinned(Generic[T]):
    """Of a series of unknown length at most ``most``, evenly: all, every second, every fourth."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._every = 1
        self._seen = 0
        self.kept: list[T] = []

    def add(self, item: T) -> None:
        if self._seen % self._every == 0:
            self.kept.append(item)
        if len(self.kept) > self._most:
            self.kept = self.kept[::2]
            self._every *= 2
        self._seen += 1


def merged(lines: Sequence[Point]) -> list[Point]:
    """One point for each step: a validation comes in a line of its own."""
    points: list[Point] = []
    for line in lines:
        if points and points[-1].step == line.step:
            for name in Point.__struct_fields__:
                if (number := getattr(line, name)) is not None:
                    setattr(points[-1], name, number)
        else:
            points.append(line)
    return points
