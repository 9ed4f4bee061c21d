"""Speed and memory on a graphics card: ``make bench-card``, in less than ten minutes.

A model with SD 1.5's architecture and random weights is trained at 512 pixels, UNet and text
encoder, and drawn with; beside a plain loop and the stock pipeline, each in a process of its own.
The first step, which loads and chooses kernels, is not counted. The tables go into
docs/performance.md. ``--try`` does the same with the tiny model on the processor and writes
nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from bench.drawing.scene import ON_CARD as DRAWINGS
from bench.pairs import Figures, run_side
from bench.rows import put
from bench.train import make_base
from bench.training.scene import ON_CARD as TRAININGS
from bench.training.scene import make_pictures
from tests.support.measured_page import table, today

PEERS = ("batch 2", "batch 16")
"""What the plain loop does too."""
COLUMNS = ("times the speed", "peak memory", "card", "measured on")
TRAINING = ("training, 512 pixels", "product", "plain loop", *COLUMNS)
DRAWING = ("drawing, 512 pixels, 50 steps", "product", "stock pipeline", *COLUMNS)


def main(*, trying: bool = False) -> None:
    """Measure, and write each row as it is there; without a card only with ``trying``."""
    card = "the processor" if trying else torch.cuda.get_device_name()
    with TemporaryDirectory(prefix="bench-card-") as folder:
        make_base("tiny" if trying else "sd15", Path(folder))
        for block, head, names, rows in (
            ("training on a card", TRAINING, TRAININGS, trainings(folder, trying=trying)),
            ("drawing on a card", DRAWING, DRAWINGS, drawings(folder, trying=trying)),
        ):
            for row in rows:
                show(block, head, (*row, card, today()), names, writing=not trying)


def show(
    block: str, head: tuple[str, ...], row: tuple[str, ...], names: Mapping[str, object],
    *, writing: bool,
) -> None:  # fmt: skip
    if writing:
        put(block, head, row, names)
    else:
        print(table(head, [row]), flush=True)


def trainings(folder: str, *, trying: bool) -> Iterator[tuple[str, ...]]:
    """Name, speeds, ratio and memory of each."""
    for name, case in list(TRAININGS.items())[: 1 if trying else None]:
        place = Path(folder) / "data"
        make_pictures(place, case.pictures)
        ours = run_side(("bench.training.ours", name, folder))
        peer = run_side(("bench.training.plain_loop", name, folder)) if name in PEERS else None
        yield (name, *compared(ours, peer, first=case.batch_size))
        for file in place.iterdir():
            file.unlink()
        place.rmdir()


def drawings(folder: str, *, trying: bool) -> Iterator[tuple[str, ...]]:
    """The same; each side has drawn before, so the first step counts."""
    for name in list(DRAWINGS)[: 1 if trying else None]:
        ours, stock = (
            run_side((f"bench.drawing.{side}", name, folder)) for side in ("ours", "stock")
        )
        yield (name, *compared(ours, stock))


def compared(ours: Figures, peer: Figures | None, first: int = 0) -> tuple[str, ...]:
    """Both speeds without the first step's images, how many times the peer's, and the memory."""
    speeds = [speed(side, first) for side in (ours, peer) if side]
    peaks = [f"{side.peak_bytes / 2**30:.1f} GiB" for side in (ours, peer) if side]
    ratio = f"**{speeds[0] / speeds[1]:.2f}**" if peer else ""
    shown = [f"{each:.2f} images/s" for each in speeds]
    return (shown[0], shown[1] if peer else "", ratio, " / ".join(peaks))


def speed(side: Figures, first: int) -> float:
    """Images a second, without the first step if that had so many images."""
    seconds = side.seconds - (side.first_step_seconds if first else 0.0)
    return (side.images - first) / seconds


if __name__ == "__main__":
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    main(trying="--try" in sys.argv[1:])
