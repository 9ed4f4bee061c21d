"""Two sides of a comparison, each in a process of its own, in turns."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from msgspec import Struct, json

ROOT = Path(__file__).parents[1]
RESULT = "RESULT "
"""What the line of a side's output begins with that has its figures."""


class Figures(Struct, frozen=True, kw_only=True):
    """What one run of one side came to."""

    seconds: float
    """Of what is compared."""
    images: int
    first_step_seconds: float
    """From the beginning to the end of the first step, so with what is loaded or compiled once."""
    peak_bytes: int
    """Resident memory of the process; on a card, what was allocated there."""
    shares: dict[str, float] = {}
    """Seconds of the parts of it, where the side measures them."""

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds


class Pairs(Struct, frozen=True):
    """Runs in turns: the first of the one with the first of the other, and so on."""

    ours: list[Figures]
    peers: list[Figures]

    @property
    def ratios(self) -> list[float]:
        """How many times the peer's speed is ours, in each pair."""
        pairs = zip(self.ours, self.peers, strict=True)
        return [our.images_per_second / peer.images_per_second for our, peer in pairs]

    @property
    def ratio(self) -> float:
        return median(self.ratios)


def measure(ours: Sequence[str], peer: Sequence[str], *, rounds: int) -> Pairs:
    """Run the two commands in turns, each a module's name and its arguments.

    Raises:
        RuntimeError: one of them failed; its output is above.
    """
    pairs = Pairs([], [])
    for number in range(1, rounds + 1):
        pairs.ours.append(run_side(ours))
        pairs.peers.append(run_side(peer))
        our, their = pairs.ours[-1], pairs.peers[-1]
        print(
            f"pair {number} of {rounds}: {our.seconds:.1f} s and {their.seconds:.1f} s,"
            f" {pairs.ratios[-1]:.2f} times the peer's speed"
        )
    return pairs


def report(figures: Figures) -> None:
    """Say them to :func:`measure`, which started this process."""
    print(f"{RESULT}{json.encode(figures).decode()}", flush=True)


def run_module(*command: str) -> str:
    """What a module of ours prints, run with its arguments in a process of its own.

    Raises:
        RuntimeError: it failed; its output is above.
    """
    process = subprocess.run(  # noqa: S603 - this interpreter, our own code
        [sys.executable, "-m", *command], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False
    )
    if process.returncode:
        sys.stdout.write(process.stdout)
        raise RuntimeError(f"{' '.join(command)}: ended with {process.returncode}, see above")
    return process.stdout


def run_side(command: Sequence[str]) -> Figures:
    """One run of one side.

    Raises:
        RuntimeError: it failed; its output is above.
    """
    lines = run_module(*command).splitlines()
    (result,) = [line for line in lines if line.startswith(RESULT)]
    return json.decode(result.removeprefix(RESULT), type=Figures)
