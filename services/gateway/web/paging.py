"""Lists that are answered page by page, newest first."""

from __future__ import annotations

import base64
from typing import Annotated

import msgspec
from msgspec import Meta
from multidict import MultiMapping

from services.gateway.web.routing import Parameter

DEFAULT_LIMIT, MAX_LIMIT = 20, 100
Position = tuple[float, str]
"""Moment and id of the last entry of a page."""
PAGING = (
    Parameter(
        "limit", "query", Annotated[int, Meta(ge=1, le=MAX_LIMIT)], f"{DEFAULT_LIMIT} by default."
    ),
    Parameter("cursor", "query", str, "``next`` of the previous page."),
)


def limit_in(query: MultiMapping[str], mistakes: list[str]) -> int:
    """How many entries a page has at most; a mistake is added to the others."""
    text = query.get("limit", str(DEFAULT_LIMIT))
    if text.isascii() and text.isdecimal() and 1 <= int(text[:9]) <= MAX_LIMIT:
        return int(text)
    mistakes.append(f"limit: expected an integer from 1 to {MAX_LIMIT}, got {text[:40]!r}")
    return DEFAULT_LIMIT


def position_in(query: MultiMapping[str], mistakes: list[str]) -> Position | None:
    """Where the page before has ended; None: this is the first. A mistake is added to the others.

    What a client has changed in a cursor gives another page of its own list at most.
    """
    text = query.get("cursor")
    position = None if text is None else decode_cursor(text)
    if text is not None and position is None:
        mistakes.append(f"cursor: expected what a page gave as next, got {text[:40]!r}")
    return position


def encode_cursor(position: Position) -> str:
    """A position, opaque to clients."""
    return base64.urlsafe_b64encode(msgspec.json.encode(position)).decode()


def decode_cursor(text: str) -> Position | None:
    """The position in a cursor; None: it is not valid."""
    try:
        decoded = base64.b64decode(text, altchars=b"-_", validate=True)
        position = msgspec.json.decode(decoded, type=Position)
    except (ValueError, msgspec.DecodeError):
        return None
    return position if position[1].isprintable() else None
