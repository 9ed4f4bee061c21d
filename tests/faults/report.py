"""The page docs/reliability.md: its tables are written by the commands that measure them."""

from __future__ import annotations

from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"


def write(part: str, text: str, page: Path = PAGE) -> None:
    """Put a text between the page's two marks of this part.

    Raises:
        ValueError: the page lacks one of them.
    """
    begin, end = f"<!-- {part}: begin -->\n", f"<!-- {part}: end -->"
    before, found, rest = page.read_text().partition(begin)
    _, also_found, after = rest.partition(end)
    if not (found and also_found):
        raise ValueError(f"{page.name} has no place for {part}: {begin.strip()} and {end}")
    page.write_text(f"{before}{begin}{text.strip()}\n{end}{after}")
