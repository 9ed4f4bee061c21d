"""Drawing speed beside the stock pipeline: ``python -m bench draw``.

Each pair is a run of the product's drawing and one of diffusers' own pipeline, in processes of
their own, from the prompt to the images; what is loaded and computed once is not counted. The
table goes into docs/performance.md.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.drawing.scene import CASES, Case, largest_difference
from bench.pairs import measure
from bench.rows import first_steps, peaks, put, rest, shares, speed
from tests.support.measured_page import today

TINY = Path(__file__).parents[1] / "shared" / "tiny"
HEAD = (
    *("what", "pairs", "product", "stock pipeline", "times the speed", "first step"),
    *("peak memory", "network", "decoding", "the rest", "pixels differ by", "measured on"),
)


def main(names: Sequence[str] = ()) -> None:
    """Measure the cases of these names, or all, and write their rows; other rows stay."""
    for name in names or CASES:
        put("drawing", HEAD, row_of(name, CASES[name]), CASES)


def row_of(name: str, case: Case) -> tuple[str, ...]:
    with TemporaryDirectory(prefix="bench-draw-") as folder:
        shutil.copytree(TINY, Path(folder) / "base")
        sides = ("ours", "stock")
        commands = [(f"bench.drawing.{side}", name, folder) for side in sides]
        pairs = measure(*commands, rounds=case.rounds)
        difference = largest_difference(*(Path(folder) / side for side in sides))
    return (
        *(name, str(case.rounds), *speed(pairs), first_steps(pairs), peaks(pairs)),
        *(shares(pairs, "network"), shares(pairs, "decoding")),
        *(rest(pairs, "network", "decoding"), f"{difference} of 255", today()),
    )


if __name__ == "__main__":
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    main(sys.argv[1:])
