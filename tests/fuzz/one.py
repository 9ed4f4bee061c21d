"""Fuzz one target: ``python -m tests.fuzz.one TARGET [libFuzzer's flags]``.

A process of its own, since libFuzzer ends its process at the first crash.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["services", "shared", "tests.fuzz", "zipfile", "yaml"]):
    from tests.fuzz.targets import TARGETS


def main() -> None:
    name, *flags = sys.argv[1:]
    atheris.Setup([sys.argv[0], *flags], TARGETS[name].read)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
