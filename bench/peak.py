"""How much memory this process has taken at most."""

from __future__ import annotations

import resource

import torch

KIBI = 1 << 10


def peak_bytes() -> int:
    """On a card what torch has allocated there, else the resident set."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIBI
