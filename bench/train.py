"""Training speed beside a plain loop: ``python -m bench train``, or ``python -m bench.train tiny``.

Each pair is a run of the product's loop and one of the peer's, in processes of their own, over
drawn pictures in five aspect ratios, all cropped at random; the first epoch counts. A LoRA's peer
is the product's training of the whole model. The tables go into docs/performance.md.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.pairs import measure
from bench.rows import first_steps, peaks, put, rest, shares, speed
from bench.training.scene import CASES, LORAS, TINY, Case, make_pictures
from tests.support.measured_page import today

MEASURED = (
    *("times the speed", "first step", "peak memory", "encoding", "optimizer", "the rest"),
    "measured on",
)
HEAD = ("model", "pairs", "product", "plain loop", *MEASURED)
LORA_HEAD = ("model", "pairs", "LoRA", "whole model", *MEASURED)


def main(names: Sequence[str] = ()) -> None:
    """Measure the cases of these names, or all, and write their rows; other rows stay."""
    for name in names or CASES | LORAS:
        if name in LORAS:
            put("training a LoRA", LORA_HEAD, row_of(name, LORAS[name]), LORAS)
        else:
            put("training", HEAD, row_of(name, CASES[name]), CASES)


def row_of(name: str, case: Case) -> tuple[str, ...]:
    model = name.removesuffix("-lora")
    peer = ("bench.training.ours", model) if case.train else ("bench.training.plain_loop", name)
    with TemporaryDirectory(prefix="bench-train-") as folder:
        make_pictures(Path(folder) / "data", case.pictures)
        make_base(model, Path(folder))
        ours = ("bench.training.ours", name)
        pairs = measure((*ours, folder), (*peer, folder), rounds=case.rounds)
    return (
        *(name, str(case.rounds), *speed(pairs), first_steps(pairs), peaks(pairs)),
        *(shares(pairs, "encoding"), shares(pairs, "optimizer")),
        *(rest(pairs, "encoding", "optimizer"), today()),
    )


def make_base(name: str, folder: Path) -> None:
    if name == "tiny":
        shutil.copytree(TINY, folder / "base")
        return
    from bench.sd15 import make_model  # noqa: PLC0415 - it loads torch

    make_model(folder / "base")


if __name__ == "__main__":
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    main(sys.argv[1:])
