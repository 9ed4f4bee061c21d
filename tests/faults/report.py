"""The page docs/reliability.md: its tables are written by the commands that measure them."""

from __future__ import annotations

from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"


def read(part: str, page: Path = PAGE) -> str:
    """What stands between the page's two marks of this part.

    Raises:
        ValueError: the page lacks one of them.
    """
    _, text, _ = _parted(part, page)
    return text


def write(part: str, text: str, page: Path = PAGE) -> None:
    """Put a text there.

    Raises:
        ValueError: as :func:`read`.
    """
    before, _, after = _parted(part, page)
    page.write_text(f"{before}{text.strip()}\n{after}")


def _parted(part: str, page: Path) -> tuple[str, str, str]:
    begin, end = f"<!-- {part}: begin -->\n", f"<!-- {part}: end -->"
    before, found, rest = page.read_text().partition(begin)
    text, also_found, after = rest.partition(end)
    if not (found and also_found):
        raise ValueError(f"{page.name} has no place for {part}: {begin.strip()} and {end}")
    return before + begin, text, end + after
