"""The long forms, for a release: ``make test-long``. Prints at the end what ran, and how it went.

The rows of docs/reliability.md are written anew by the faults and the soak, those of
docs/security.md by the rude key.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from time import monotonic
from typing import NamedTuple

STEPS = {
    "long forms of the tests": (
        "pytest", "-m", "long and not gpu", "--numprocesses", "auto", "--no-header", "-q",
    ),
    "every fault, again and again": ("tests.faults",),
    "soak": ("tests.faults.soak",),
    "one rude key beside another": ("tests.hostile",),
}  # fmt: skip
"""Arguments of ``python -m``, by what they run."""


class Result(NamedTuple):
    name: str
    seconds: float
    exit_status: int
    last_line: str


def run(name: str, arguments: tuple[str, ...]) -> Result:
    """Run a step, and show its output as it comes."""
    print(f"\n==== {name}: python -m {' '.join(arguments)} ====", flush=True)
    began, last = monotonic(), ""
    command = [sys.executable, "-m", *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None  # opened as a pipe
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line.strip() or last
    return Result(name, monotonic() - began, process.returncode, last)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.long", description=__doc__)
    parser.add_argument("--only", nargs="+", default=[], help="steps with any of these words")
    words = parser.parse_args().only
    chosen = {
        name: arguments
        for name, arguments in STEPS.items()
        if not words or any(word in name for word in words)
    }
    results = [run(name, arguments) for name, arguments in chosen.items()]

    print("\n==== what ran ====")
    for result in results:
        verdict = "passed" if result.exit_status == 0 else f"FAILED ({result.exit_status})"
        print(f"{verdict:<12}{result.seconds:8.0f} s  {result.name}: {result.last_line}")
    return int(not results or any(result.exit_status for result in results))


if __name__ == "__main__":
    sys.exit(main())
