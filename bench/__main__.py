"""Runs measurements by name: ``python -m bench``, ``python -m bench warm`` or ``sd15``."""

import sys
from importlib import import_module

MEASUREMENTS = ("startup", "warm", "sd15", "schedulers")
"""Modules here; those that take minutes, or write a page of docs/, run only when named."""

if __name__ == "__main__":
    for name in sys.argv[1:] or ["startup"]:
        if name not in MEASUREMENTS:
            sys.exit(f"there is no measurement {name!r}, only {', '.join(MEASUREMENTS)}")
        import_module(f"bench.{name}").main()
