"""The scripted command with a wrong clock.

``python -m tests.faults.skewed SECONDS service NAME``.
"""

from __future__ import annotations

import runpy
import sys
import time


def shift(seconds: float) -> None:
    """Let the process's wall clock be ahead by so many seconds, or behind; durations stay right."""
    right = time.time
    time.time = lambda: right() + seconds


if __name__ == "__main__":
    shift(float(sys.argv.pop(1)))
    runpy.run_module("tests.faults.scripted", run_name="__main__")
