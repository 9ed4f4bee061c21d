"""How long a light service and the GPU services' children take to start.

``python -m bench.startup``. Measured is the time from the start of the process until everything
that it imports is imported: what passes before a service asks for its broker and its database, and
before a child says Ready.
"""

from __future__ import annotations

import subprocess
import sys
from math import inf
from pathlib import Path
from statistics import median
from time import perf_counter

LIGHT = ("gateway", "fetcher", "notifier")
"""The services that never load torch."""
HEAVY = {
    "trainer's child": "services.trainer.training.train",
    "inferencer's child": "services.inferencer.generation.generate",
}
RUNS = 7
BAR = 2.0
"""Seconds in which a light service shall be there."""

OURS = "from shared.service_process import importing\nwith importing():"
PLAIN = "if True:"
ROOT = Path(__file__).parents[1]


def main() -> None:
    """Print a table; the first run of each, which may read from a cold disk, is not counted."""
    print(f"Start-up, {RUNS} runs each; at most {BAR:g} s wanted.\n")
    print(f"{'process':<20}{'min':>8}{'median':>10}{'of a plain import':>20}")
    for service in LIGHT:
        row(service, f"services.{service}.__main__", BAR)
    for child, module in HEAVY.items():
        row(child, module)


def row(name: str, module: str, bar: float = inf) -> None:
    """One line: plain imports are measured in turn with ours, so that noise meets both."""
    seconds_to_import(module)
    pairs = [(seconds_to_import(module), seconds_to_import(module, PLAIN)) for _ in range(RUNS)]
    seconds = [ours for ours, _ in pairs]
    ratio = median(ours / plain for ours, plain in pairs)
    verdict = "" if median(seconds) <= bar else "  too slow"
    print(f"{name:<20}{min(seconds):6.2f} s{median(seconds):8.2f} s{ratio:20.2f}{verdict}")


def seconds_to_import(module: str, way: str = OURS) -> float:
    """Seconds from the start of a process until it has imported this and all that it needs.

    Raises:
        RuntimeError: it did not get there.
    """
    code = f"{way} import {module}; print('imported', flush=True)"
    start = perf_counter()
    with subprocess.Popen(  # noqa: S603 - this interpreter, our own code
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None  # noqa: S101 - for mypy: it was asked for
        line = process.stdout.readline()
        seconds = perf_counter() - start
    if line != "imported\n":
        raise RuntimeError(f"{module} cannot be imported, see above")
    return seconds


if __name__ == "__main__":
    main()
