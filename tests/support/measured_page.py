"""Pages of docs/ with tables that are written by the commands that measure them."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
RELIABILITY, SECURITY = DOCS / "reliability.md", DOCS / "security.md"


def read(part: str, page: Path) -> str:
    """What stands between the page's two marks of this part.

    Raises:
        ValueError: the page lacks one of them.
    """
    _, text, _ = _parted(part, page)
    return text


def write(part: str, text: str, page: Path) -> None:
    """Put a text there.

    Raises:
        ValueError: as :func:`read`.
    """
    before, _, after = _parted(part, page)
    page.write_text(f"{before}{text.strip()}\n{after}")


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = (head, ("---",) * len(head), *rows)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def today() -> str:
    return datetime.now(UTC).date().isoformat()


def _parted(part: str, page: Path) -> tuple[str, str, str]:
    begin, end = f"<!-- {part}: begin -->\n", f"<!-- {part}: end -->"
    before, found, rest = page.read_text().partition(begin)
    text, also_found, after = rest.partition(end)
    if not (found and also_found):
        raise ValueError(f"{page.name} has no place for {part}: {begin.strip()} and {end}")
    return before + begin, text, end + after
