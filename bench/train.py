"""Training speed beside a plain loop: ``python -m bench train``, or ``python -m bench.train tiny``.

Each pair is a run of the product's loop and one of the peer's, in processes of their own, over
drawn pictures in five aspect ratios, all cropped at random; the first epoch counts. The tables go
into docs/performance.md.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from bench.pairs import Figures, Pairs, measure
from bench.training.scene import CASES, TINY, Case, make_pictures
from tests.support.measured_page import read, table, today, write

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
HEAD = (
    *("model", "pairs", "product", "plain loop", "times the speed", "first step", "peak memory"),
    *("encoding", "optimizer", "the rest", "measured on"),
)


def main(names: Sequence[str] = ()) -> None:
    """Measure the cases of these names, or all, and write their rows; other rows stay."""
    for name in names or CASES:
        row = row_of(name, CASES[name])
        print(table(HEAD, [row]), flush=True)
        write("training", table(HEAD, [*others(name), row]), PAGE)


def others(name: str) -> list[tuple[str, ...]]:
    """The page's rows of other cases."""
    lines = read("training", PAGE).splitlines()[2:]
    rows = [tuple(line.strip("| ").split(" | ")) for line in lines if line.startswith("|")]
    return [row for row in rows if row[0] != name]


def row_of(name: str, case: Case) -> tuple[str, ...]:
    with TemporaryDirectory(prefix="bench-train-") as folder:
        make_pictures(Path(folder) / "data", case.pictures)
        make_base(name, Path(folder))
        module = "bench.training"
        pairs = measure(
            (f"{module}.ours", name, folder),
            (f"{module}.plain_loop", name, folder),
            rounds=case.rounds,
        )
    return (name, str(case.rounds), *cells(pairs), today())


def make_base(name: str, folder: Path) -> None:
    if name == "tiny":
        shutil.copytree(TINY, folder / "base")
        return
    from bench.sd15 import make_model  # noqa: PLC0415 - it loads torch

    make_model(folder / "base")


def cells(pairs: Pairs) -> tuple[str, ...]:
    sides = (pairs.ours, pairs.peers)
    low, high = min(pairs.ratios), max(pairs.ratios)
    speed = f"**{pairs.ratio:.2f}** ({low:.2f} to {high:.2f})"
    return (
        *(f"{median(each.images_per_second for each in side):.2f} images/s" for side in sides),
        speed,
        both(f"{median(each.first_step_seconds for each in side):.1f} s" for side in sides),
        both(f"{median(each.peak_bytes for each in side) / 2**20:,.0f} MiB" for side in sides),
        both(share(side, "encoding") for side in sides),
        both(share(side, "optimizer") for side in sides),
        both(f"{1 - part(side, 'encoding') - part(side, 'optimizer'):.0%}" for side in sides),
    )


def both(texts: Iterable[str]) -> str:
    return " / ".join(texts)


def share(side: Sequence[Figures], name: str) -> str:
    return f"{part(side, name):.0%}"


def part(side: Sequence[Figures], name: str) -> float:
    return median(each.shares.get(name, 0.0) / each.seconds for each in side)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    main(sys.argv[1:])
