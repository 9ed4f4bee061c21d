"""Bound a JSON text before objects are made of it: objects take thirty times its bytes."""

from __future__ import annotations

import re

import msgspec

MAX_DEPTH = 32
"""Lists and objects in one another."""
MAX_TOKENS = 300_000
"""Names, texts, commas and brackets; the largest request has a tenth of them."""
TOKEN = re.compile(
    rb'[^"\[\]{},]*+(?:(?P<name>"(?:[^"\\]++|\\.)*+")(?P<colon>[ \t\r\n]*+:)?'
    rb"|(?P<open>[\[{])|(?P<close>[\]}])|,)",
    re.DOTALL,
)


class OutOfBounds(ValueError):
    """The text has too much of something, or the field ``name`` twice in one object."""

    def __init__(self, reason: str, name: str | None = None) -> None:
        super().__init__(reason)
        self.name = name


def check_bounds(text: bytes | bytearray) -> None:
    """Check nesting, number of values, and that no object has two fields of one name.

    Whatever else is wrong is left to the decoder. Of two fields of one name, different parsers take
    different ones.

    Raises:
        OutOfBounds: what the text has too much of.
        msgspec.DecodeError: a name has a wrong escape.
    """
    names: list[set[bytes]] = []
    """Of each list and object that is open."""
    tokens = position = 0
    while found := TOKEN.match(text, position):
        position = found.end()
        tokens += 1
        if tokens > MAX_TOKENS:
            parts = "names, texts, commas and brackets"
            raise OutOfBounds(f"expected at most {MAX_TOKENS} {parts}, got more")
        if found["open"]:
            if len(names) == MAX_DEPTH:
                raise OutOfBounds(f"expected at most {MAX_DEPTH} lists and objects in one another")
            names.append(set())
        elif found["close"]:
            del names[-1:]
        elif found["colon"] and names:
            name = _unescaped(found["name"])
            if name in names[-1]:
                raise OutOfBounds("a name stands twice in one object", name.decode())
            names[-1].add(name)


def _unescaped(name: bytes) -> bytes:
    return msgspec.json.decode(name, type=str).encode() if b"\\" in name else name[1:-1]
