"""Run benchmarks by name: ``python -m bench``, ``python -m bench warm`` or ``sd15``."""

import sys
from importlib import import_module

BENCHMARKS = (
    "startup",
    "train",
    "draw",
    "pipeline",
    "gateway",
    "storing",
    "warm",
    "sd15",
    "schedulers",
    "held_out",
    "crops",
    "scale",
    "recording",
)
"""Only ``startup`` runs without being named: the others take minutes, or write to docs/."""

if __name__ == "__main__":
    for name in sys.argv[1:] or ["startup"]:
        if name not in BENCHMARKS:
            sys.exit(f"there is no benchmark {name!r}, only {', '.join(BENCHMARKS)}")
        import_module(f"bench.{name}").main()
