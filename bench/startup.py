"""How long a light service takes to start: ``python -m bench.startup``.

Measured is the time from the start of the process until everything that the service imports is
imported: what passes before it asks for its broker and its database.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from statistics import median
from time import perf_counter

LIGHT = ("gateway", "fetcher", "notifier")
"""The services that never load torch."""
RUNS = 7
BAR = 2.0
"""Seconds in which a light service shall be there."""

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Print a table; the first run of each, which may read from a cold disk, is not counted."""
    print(f"Start-up, {RUNS} runs each; at most {BAR:g} s wanted.\n")
    print(f"{'service':<12}{'min':>8}{'median':>10}")
    for service in LIGHT:
        seconds_to_import(service)
        seconds = [seconds_to_import(service) for _ in range(RUNS)]
        verdict = "" if median(seconds) <= BAR else "  too slow"
        print(f"{service:<12}{min(seconds):6.2f} s{median(seconds):8.2f} s{verdict}")


def seconds_to_import(service: str) -> float:
    """Seconds from the start of a process until it has imported a whole service.

    Raises:
        RuntimeError: it did not get there.
    """
    code = f"import services.{service}.__main__; print('imported', flush=True)"
    start = perf_counter()
    with subprocess.Popen(  # noqa: S603 - this interpreter, our own code
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None  # noqa: S101 - for mypy: it was asked for
        line = process.stdout.readline()
        seconds = perf_counter() - start
    if line != "imported\n":
        raise RuntimeError(f"services.{service} cannot be imported, see above")
    return seconds


if __name__ == "__main__":
    main()
