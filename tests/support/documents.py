"""The documents: their blocks of code, and the commands that they tell the reader to type."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "deploy").glob("**/*.md")),
    ROOT / "CONTRIBUTING.md",
)
SHELL = "bash"
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
BETWEEN = frozenset(";&|()")
"""What separates the commands of a line."""


@dataclass(frozen=True)
class Block:
    """A fenced block of code."""

    page: str
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Command:
    """What a reader types: one or several commands of a shell, on one logical line."""

    place: str
    text: str

    @property
    def parts(self) -> list[list[str]]:
        """Its commands, word by word, as a shell splits them."""
        found: list[list[str]] = [[]]
        for word in words_of(self.text):
            if set(word) <= BETWEEN:
                found.append([])
            else:
                found[-1].append(word)
        return [words for words in found if words]


def blocks() -> list[Block]:
    """Every fenced block of every page, from its top down."""
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in FENCE.finditer(text):
            indent, language, code = match.groups()
            lines = [line.removeprefix(indent) for line in code.splitlines(keepends=True)]
            line = text.count("\n", 0, match.start()) + 2
            found.append(Block(name_of(page), line, language, "".join(lines)))
    return found


def commands_of(block: Block) -> Iterator[Command]:
    """A shell block's commands, comments left out."""
    text, start = "", block.line
    for number, line in enumerate(block.text.splitlines(keepends=True), block.line):
        start = start if text else number
        text += line
        if is_whole(text):
            if words_of(text):
                yield Command(f"{block.page}:{start}", text.strip())
            text = ""
    if text:
        raise ValueError(f"{block.page}:{start}: a command without its end: {text}")


def spans() -> Iterator[Command]:
    """Every piece of code inside the pages' sentences that has several words."""
    for page in PAGES:
        prose = FENCE.sub(lambda match: "\n" * match[0].count("\n"), page.read_text())
        for match in SPAN.finditer(prose):
            if " " in match[1]:
                line = prose.count("\n", 0, match.start()) + 1
                yield Command(f"{name_of(page)}:{line}", match[1])


def words_of(text: str) -> list[str]:
    """As a shell splits it. Raises ValueError if a quotation has no end."""
    words = shlex.shlex(text.replace("\\\n", " "), posix=True, punctuation_chars="();&|")
    words.whitespace_split = True
    return list(words)


def is_whole(text: str) -> bool:
    """Whether it goes on in the next line."""
    try:
        words_of(text)
    except ValueError:
        return False
    return not text.endswith("\\\n")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))
