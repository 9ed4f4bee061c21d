"""What every object store takes for a key, a prefix and the life of a link."""

from __future__ import annotations

import re

from shared.errors import Refused

LONGEST_KEY = 1024
"""Bytes of UTF-8, as S3 has it."""
LONGEST_PART = 255
"""Bytes of UTF-8 between two slashes, as file systems have it."""
LONGEST_LINK = 604_800
"""Seconds: seven days, the most that a Signature Version 4 link may live."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


def check_key(key: str) -> str:
    """The key itself, when it is relative, clean and short enough.

    Raises:
        Refused: it is not; the text tells which key and why.
    """
    parts = key.split("/")
    if _CONTROL.search(key):
        raise Refused(f"{key!r} cannot be a store key: it holds control characters")
    if not all(parts) or "." in parts or ".." in parts:
        raise Refused(f"{key!r} cannot be a store key: it takes names joined by /, no . or ..")
    if len(key.encode()) > LONGEST_KEY or any(len(each.encode()) > LONGEST_PART for each in parts):
        raise Refused(
            f"{key[:100]!r}... cannot be a store key: it takes at most {LONGEST_KEY} bytes,"
            f" {LONGEST_PART} in each name"
        )
    return key


def check_prefix(prefix: str) -> str:
    """The prefix itself: the beginning of a key, or nothing.

    Raises:
        Refused: no key can begin with it.
    """
    if prefix:
        check_key(prefix.removesuffix("/"))
    return prefix


def check_doomed(prefix: str) -> str:
    """The prefix itself, when it may be deleted.

    Raises:
        Refused: it is empty and would name the whole store, or no key can begin with it.
    """
    if not prefix:
        raise Refused("an empty prefix would delete the whole store; name what is to go")
    return check_prefix(prefix)


def check_seconds(seconds: int) -> int:
    """How long a link lives.

    Raises:
        ValueError: not from 1 to 604 800.
    """
    if not 1 <= seconds <= LONGEST_LINK:
        raise ValueError(f"a link lives from 1 to {LONGEST_LINK} seconds, not {seconds}")
    return seconds
