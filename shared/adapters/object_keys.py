"""Checks of keys, prefixes and lifetimes of links, for every object store."""

from __future__ import annotations

import re

from shared.errors import Refused

LONGEST_KEY = 1024
"""Bytes of UTF-8, as in S3."""
LONGEST_PART = 255
"""Bytes of UTF-8 between two slashes, as in file systems."""
LONGEST_LINK = 604_800
"""Seconds: seven days, the longest lifetime of a Signature Version 4 link."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


def check_key(key: str) -> str:
    """Return the key if it is relative, clean and short enough.

    Raises:
        Refused: it is not; the text names the key and says why.
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
    """Return the prefix if a key can begin with it; an empty one is fine.

    Raises:
        Refused: no key can begin with it.
    """
    if prefix:
        check_key(prefix.removesuffix("/"))
    return prefix


def check_deletable(prefix: str) -> str:
    """Return the prefix if it may be deleted.

    Raises:
        Refused: it is empty and would name the whole store, or no key can begin with it.
    """
    if not prefix:
        raise Refused("an empty prefix would delete the whole store; name what is to go")
    return check_prefix(prefix)


def check_seconds(seconds: int) -> int:
    """Return the lifetime of a link.

    Raises:
        ValueError: it is not from 1 to 604 800.
    """
    if not 1 <= seconds <= LONGEST_LINK:
        raise ValueError(f"a link lives from 1 to {LONGEST_LINK} seconds, not {seconds}")
    return seconds
