"""Runs measurements by name: ``python -m bench``, ``python -m bench warm`` or ``sd15``."""

import sys

from bench import sd15, startup, warm

MEASUREMENTS = {"startup": startup.main, "warm": warm.main, "sd15": sd15.main}
"""Those that take minutes and much memory run only when they are named."""

if __name__ == "__main__":
    for name in sys.argv[1:] or ["startup"]:
        if name not in MEASUREMENTS:
            sys.exit(f"there is no measurement {name!r}, only {', '.join(MEASUREMENTS)}")
        MEASUREMENTS[name]()
