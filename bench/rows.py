"""Tables of docs/performance.md: a row is replaced by a newer one of the same name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median

from bench.pairs import Figures, Pairs
from tests.support.measured_page import read, table, write

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"


def put(block: str, head: tuple[str, ...], row: tuple[str, ...], names: Iterable[str]) -> None:
    """Print a row, and write it into the page's table; ``names`` says the order of all rows."""
    print(table(head, [row]), flush=True)
    lines = read(block, PAGE).splitlines()[2:]
    known = [tuple(line[2:-2].split(" | ")) for line in lines if line.startswith("|")]
    rows = {each[0]: each for each in [*known, row]}
    ordered = [rows[name] for name in names if name in rows]
    write(block, table(head, ordered), PAGE)


def speed(pairs: Pairs) -> tuple[str, str, str]:
    """Images a second of both sides, and how many times the peer's speed ours is."""
    ours, peers = (
        f"{median(each.images_per_second for each in side):.2f} images/s"
        for side in (pairs.ours, pairs.peers)
    )
    low, high = min(pairs.ratios), max(pairs.ratios)
    return ours, peers, f"**{pairs.ratio:.2f}** ({low:.2f} to {high:.2f})"


def both(texts: Iterable[str]) -> str:
    return " / ".join(texts)


def first_steps(pairs: Pairs) -> str:
    sides = (pairs.ours, pairs.peers)
    return both(f"{median(each.first_step_seconds for each in side):.1f} s" for side in sides)


def peaks(pairs: Pairs) -> str:
    sides = (pairs.ours, pairs.peers)
    return both(f"{median(each.peak_bytes for each in side) / 2**20:,.0f} MiB" for side in sides)


def shares(pairs: Pairs, name: str) -> str:
    """Of the time, what a part took on both sides."""
    return both(f"{part(side, name):.0%}" for side in (pairs.ours, pairs.peers))


def rest(pairs: Pairs, *names: str) -> str:
    """Of the time, what all but these parts took on both sides."""
    sides = (pairs.ours, pairs.peers)
    return both(f"{1 - sum(part(side, name) for name in names):.0%}" for side in sides)


def part(side: Sequence[Figures], name: str) -> float:
    return median(each.shares.get(name, 0.0) / each.seconds for each in side)
