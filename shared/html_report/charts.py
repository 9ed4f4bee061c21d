"""Curves as the numbers of an SVG: where its lines, its ticks and their names lie."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil, floor, log10
from typing import Literal, NamedTuple

from shared.storage.curve import Point

WIDTH, HEIGHT = 460, 220
LEFT, RIGHT, TOP, BOTTOM = 62, 12, 10, 26
TICKS = 4
"""Steps between the ticks of an axis, roughly."""
SAME = 1e-6
"""Numbers that differ by a smaller share of themselves are drawn as one: no tick lies between."""
SMOOTHING = 0.9
"""The share of the mean so far in each point of a smoothed line."""

Line = list[tuple[float, float]]
"""Steps and values."""


class Drawn(NamedTuple):
    """A curve in the picture."""

    name: str
    look: Literal["faint", "first", "second"]
    path: str
    dots: list[tuple[float, float]]
    """Marks on the curve."""


class Tick(NamedTuple):
    """A mark of an axis."""

    at: float
    text: str


class Chart(NamedTuple):
    """A picture of some curves with the same axes; lengths are its own pixels."""

    title: str
    description: str
    """For who does not see it."""
    curves: list[Drawn]
    x: list[Tick]
    y: list[Tick]
    marks: list[float]
    """Where checkpoints were saved."""


class Axis(NamedTuple):
    """From numbers to pixels."""

    low: float
    high: float
    start: float
    end: float

    def at(self, number: float) -> float:
        share = (number - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)


def charts_of(points: Sequence[Point], checkpoints: Sequence[int]) -> list[Chart]:
    """The charts that a training has numbers for; ``checkpoints`` are steps."""
    loss = _line(points, "loss")
    rates, text_rates = _line(points, "lr"), _line(points, "text_encoder_lr")
    validation = _line(points, "validation_loss")
    found = [
        _chart("Loss", [("each report", "faint", loss), ("smoothed", "first", smoothed(loss))],
               checkpoints),
        _chart("Validation loss", [("images held out", "first", validation)], checkpoints,
               dots=True),
        _chart("Learning rate", [("U-Net", "first", rates), ("text encoder", "second", text_rates)],
               checkpoints),
    ]  # fmt: skip
    return [chart for chart in found if chart is not None]


def smoothed(line: Line) -> Line:
    """The exponential moving average, without a bias towards its beginning."""
    mean, weight, found = 0.0, 0.0, []
    for step, value in line:
        mean = SMOOTHING * mean + (1 - SMOOTHING) * value
        weight = SMOOTHING * weight + (1 - SMOOTHING)
        found.append((step, mean / weight))
    return found


def ticks(low: float, high: float) -> list[float]:
    """Round numbers from ``low`` to ``high``, which differ."""
    step = _tick_step(low, high)
    return [
        number * step for number in range(ceil(low / step - 1e-9), floor(high / step + 1e-9) + 1)
    ]


def _tick_step(low: float, high: float) -> float:
    rough = (high - low) / TICKS
    power = 10.0 ** floor(log10(rough))
    return next(each * power for each in (1, 2, 5, 10) if each * power >= rough * 0.999)


def _to_ticks(low: float, high: float) -> tuple[float, float]:
    """The ends of an axis that begins and ends at a tick."""
    step = _tick_step(low, high)
    return floor(low / step + 1e-9) * step, ceil(high / step - 1e-9) * step


def _line(points: Sequence[Point], name: str) -> Line:
    found = ((float(each.step), getattr(each, name)) for each in points)
    return [(step, value) for step, value in found if value is not None]


def _chart(
    title: str,
    lines: Sequence[tuple[str, Literal["faint", "first", "second"], Line]],
    checkpoints: Sequence[int],
    *,
    dots: bool = False,
) -> Chart | None:
    """None: there is nothing to draw."""
    there = [each for each in lines if each[2]]
    if not there:
        return None
    steps = [step for _, _, line in there for step, _ in line]
    x = Axis(*_spread(min(steps), max(steps)), LEFT, WIDTH - RIGHT)
    values = [value for _, _, line in there for _, value in line]
    y = Axis(*_to_ticks(*_spread(min(values), max(values))), HEIGHT - BOTTOM, TOP)
    return Chart(
        title=title,
        description=_description(title, there[-1 if title == "Loss" else 0][2]),
        curves=[_drawn(name, look, line, x, y, dots=dots) for name, look, line in there],
        x=[Tick(x.at(each), f"{each:g}") for each in ticks(x.low, x.high)],
        y=[Tick(y.at(each), f"{each:.3g}") for each in ticks(y.low, y.high)],
        marks=[x.at(step) for step in checkpoints if x.low <= step <= x.high],
    )


def _drawn(
    name: str,
    look: Literal["faint", "first", "second"],
    line: Line,
    x: Axis,
    y: Axis,
    *,
    dots: bool,
) -> Drawn:
    places = [(x.at(step), y.at(value)) for step, value in line]
    path = "M" + "L".join(f"{right:g} {down:g}" for right, down in places)
    return Drawn(name, look, path, places if dots or len(places) == 1 else [])


def _spread(low: float, high: float) -> tuple[float, float]:
    """The ends of an axis, which differ by more than numbers that should be the same."""
    if high - low > SAME * max(abs(low), abs(high)):
        return low, high
    around = abs(low) * 0.1 or 0.5
    return low - around, high + around


def _description(title: str, line: Line) -> str:
    return ", ".join(_told(title, line))


def _told(title: str, line: Line) -> Iterator[str]:
    (first, at_first), (last, at_last) = line[0], line[-1]
    lowest, value = min(line, key=lambda each: each[1])
    yield f"{title}: {at_first:.3g} at step {first:g}"
    yield f"{at_last:.3g} at step {last:g}"
    yield f"lowest {value:.3g} at step {lowest:g}"
