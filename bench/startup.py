"""Start-up time of the light services and of the GPU services' children.

``python -m bench.startup``. It measures the time from the start of the process until all imports
are done, before a service connects to its broker and its database, and before a child reports
Ready.
"""

from __future__ import annotations

import subprocess
import sys
from math import inf
from pathlib import Path
from statistics import median
from time import perf_counter

LIGHT = ("gateway", "fetcher", "notifier")
"""The services without torch."""
HEAVY = {
    "trainer's child": "services.trainer.training.train",
    "inferencer's child": "services.inferencer.generation.generate",
}
RUNS = 7
LIMIT = 2.0
"""Seconds that a light service may take."""

PROCESS_IMPORT = "from shared.service_process import importing\nwith importing():"
PLAIN_IMPORT = "if True:"
ROOT = Path(__file__).parents[1]


def main() -> None:
    """Print a table; each first run is discarded, as it may read from a cold disk."""
    print(f"Start-up, {RUNS} runs each; at most {LIMIT:g} s wanted.\n")
    print(f"{'process':<20}{'min':>8}{'median':>10}{'of a plain import':>20}")
    for service in LIGHT:
        row(service, f"services.{service}.__main__", LIMIT)
    for child, module in HEAVY.items():
        row(child, module)


def row(name: str, module: str, limit: float = inf) -> None:
    """Print a line; plain imports alternate with the process's, so that noise affects both."""
    seconds_to_import(module)
    pairs = [
        (seconds_to_import(module), seconds_to_import(module, PLAIN_IMPORT)) for _ in range(RUNS)
    ]
    seconds = [measured for measured, _ in pairs]
    ratio = median(measured / plain for measured, plain in pairs)
    verdict = "" if median(seconds) <= limit else "  too slow"
    print(f"{name:<20}{min(seconds):6.2f} s{median(seconds):8.2f} s{ratio:20.2f}{verdict}")


def seconds_to_import(module: str, prefix: str = PROCESS_IMPORT) -> float:
    """Seconds from the start of a process until it has imported a module and its dependencies.

    Raises:
        RuntimeError: the import failed.
    """
    code = f"{prefix} import {module}; print('imported', flush=True)"
    start = perf_counter()
    with subprocess.Popen(  # noqa: S603 - this interpreter, our own code
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None  # noqa: S101 - for mypy
        line = process.stdout.readline()
        seconds = perf_counter() - start
    if line != "imported\n":
        raise RuntimeError(f"{module} cannot be imported, see above")
    return seconds


if __name__ == "__main__":
    main()
