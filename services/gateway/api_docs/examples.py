"""The examples of the documents: requests, and the answers that the gateway gave to them.

``make examples`` writes the answers (``tests/support/examples_story.py``); a test sends every
request, and compares.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct, field

FILE = Path(__file__).with_name("examples.json")


class Request(Struct, frozen=True, omit_defaults=True):
    """What is sent; the key is left out."""

    path: dict[str, str] = field(default_factory=dict)
    query: dict[str, str | int | list[str]] = field(default_factory=dict)
    headers: dict[str, str | int] = field(default_factory=dict)
    body: Any = None
    """JSON, or the text of a body that is no JSON; None: no body."""


class Answer(Struct, frozen=True, omit_defaults=True):
    """What came back."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    """Those that the document names."""
    body: Any = None
    """JSON, or the text of a body that is no JSON; None: no body."""


class Example(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A request to one operation, and its answer."""

    name: str
    """Of its own, in small letters with hyphens."""
    summary: str
    operation: str
    """Its ``operationId``."""
    request: Request = Request()
    answer: Answer
    excerpt: bool = False
    """Whether the answer is long, and its body here a part of it that was chosen by hand."""


@cache
def examples() -> tuple[Example, ...]:
    """All examples."""
    return msgspec.json.decode(FILE.read_bytes(), type=tuple[Example, ...])


def examples_of(operation: str, statuses: Collection[int]) -> list[Example]:
    """Those of an operation whose answers have one of these statuses."""
    return [
        each
        for each in examples()
        if each.operation == operation and each.answer.status in statuses
    ]


def text_of(written: tuple[Example, ...]) -> str:
    """The file's text, the same every time."""
    return msgspec.json.format(msgspec.json.encode(written), indent=2).decode() + "\n"
