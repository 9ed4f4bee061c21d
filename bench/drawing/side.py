"""What both sides do around their drawing: warm up, take the time, keep the images, report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

from PIL import Image

from bench.drawing.scene import Case, keep
from bench.pairs import Figures, report
from bench.peak import peak_bytes
from bench.shares import Shares

Draw = Callable[[int, Callable[[], None]], list[Image.Image]]
"""Draws the case's images in so many steps, and calls back after each."""


def measure(case: Case, folder: Path, draw: Draw, parts: dict[str, tuple[Any, str]]) -> None:
    """Draw for the figures, once what is loaded and computed once has been.

    Args:
        case: what is drawn.
        folder: gets the images.
        draw: this side's drawing.
        parts: by name, the object and its function whose time is counted apart.
    """
    draw(2, lambda: None)
    shares, steps = Shares(), list[float]()
    for name, (owner, function) in parts.items():
        shares.measure(owner, function, name)
    began = perf_counter()
    images = draw(case.steps, lambda: steps.append(perf_counter()))
    ended = perf_counter()
    keep(images, folder)
    report(
        Figures(
            seconds=ended - began, images=len(images), first_step_seconds=steps[0] - began,
            peak_bytes=peak_bytes(), shares=shares.seconds,
        )
    )  # fmt: skip
