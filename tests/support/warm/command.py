"""The command ``everydream`` as it ships: ``python -m tests.support.warm.command``."""

from __future__ import annotations

from everydream.cli import main

if __name__ == "__main__":
    main()
