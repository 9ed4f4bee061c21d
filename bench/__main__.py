"""Run benchmarks by name: ``python -m bench``, ``python -m bench warm sd15``, or ``all``."""

import sys
from importlib import import_module

BENCHMARKS = (
    "startup",
    "train",
    "draw",
    "pipeline",
    "gateway",
    "staging",
    "storing",
    "memory",
    "warm",
    "sd15",
    "schedulers",
    "held_out",
    "crops",
    "learning",
    "scale",
    "recording",
)
"""Only ``startup`` runs without being named: the others take minutes, or write to docs/."""

if __name__ == "__main__":
    names = sys.argv[1:] or ["startup"]
    for name in BENCHMARKS if names == ["all"] else names:
        if name not in BENCHMARKS:
            sys.exit(f"there is no benchmark {name!r}, only {', '.join(BENCHMARKS)}")
        import_module(f"bench.{name}").main()
