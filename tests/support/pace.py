"""How much slower than a quiet machine this one is, with all that runs on it at the moment."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from statistics import median
from time import monotonic

QUIET_START_SECONDS = 0.012
"""In which a quiet core starts Python."""
STARTS = 15
SHARED = 2.0
"""The least factor where processes of the tests share the cores: the load comes and goes."""


@cache
def slowness() -> float:
    """By what factor processes get later than on a quiet machine; 1 at least.

    Measured once, at the first call.
    """
    measured = median(_start_seconds() for _ in range(STARTS)) / QUIET_START_SECONDS
    return max(measured, SHARED if "PYTEST_XDIST_WORKER" in os.environ else 1.0)


def _start_seconds() -> float:
    began = monotonic()
    subprocess.run([sys.executable, "-I", "-S", "-c", ""], check=True)
    return monotonic() - began
