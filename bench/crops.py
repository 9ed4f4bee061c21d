"""What crops that come again do to the held-out loss: ``python -m bench crops``.

The tiny model learns the demo's two drawn concepts for 300 epochs, from pictures with pixels to
spare, so that each is cropped at random: with four crops of each, as by default, and with new ones
in every epoch. The table goes into docs/performance.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.held_out import SEEDS, draw, figures, loss
from bench.rows import put

SIDE = 300
"""Of the pictures, in pixels; they are trained at 256."""
LONG: Mapping[str, Any] = {"max_epochs": 300, "lr_decay_steps": 900}
WAYS: Mapping[str, Mapping[str, Any]] = {
    "4, which come again": {"crops_per_image": 4},
    "new ones in every epoch": {"crops_per_image": 0},
}
HEAD = ("crops of an image", "held-out loss", "of each seed", "measured on")


def main() -> None:
    with TemporaryDirectory(prefix="bench-crops-") as folder:
        data = draw(Path(folder) / "data", SIDE)
        for way, options in WAYS.items():
            losses = [loss(Path(folder), data, seed, {**LONG, **options}) for seed in SEEDS]
            put("crops", HEAD, (way, *figures(losses)), tuple(WAYS))
