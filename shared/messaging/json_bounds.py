"""Bound a JSON text before objects are made of it: objects take thirty times its bytes."""

from __future__ import annotations

import re

import msgspec

MAX_DEPTH = 32
"""Lists and objects in one another."""
MAX_TOKENS = 300_000
"""Names, texts, commas and brackets; the largest request has a tenth of them."""
SHORT = rb'(?:[^"\\]{1,1000}+|\\.){0,8}+"'
"""The rest of a text that is short and has few escapes."""
TOKEN = re.compile(
    rb'[^"\[\]{},]*+(?:(?P<name>"' + SHORT + rb")(?P<colon>[ \t\r\n]*+:)?"
    rb'|(?P<long>")|(?P<open>[\[{])|(?P<close>[\]}])|,)',
    re.DOTALL,
)
REST = re.compile(rb'(?:[^"\\]++|\\.)*+"', re.DOTALL)
"""Of any text."""
COLON = re.compile(rb"[ \t\r\n]*+:")


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
        elif found["long"]:
            if (end := _end_of_text(text, position)) is None:
                return
            if (colon := COLON.match(text, end)) and names:
                _add_name(bytes(text[position - 1 : end]), names[-1])
            position = colon.end() if colon else end
        elif found["colon"] and names:
            _add_name(found["name"], names[-1])


def _end_of_text(text: bytes | bytearray, begin: int) -> int | None:
    """Behind the quote that ends the text; None: none does.

    Without an escape it is the next one, which is found at once: a text may have megabytes.
    """
    end = text.find(b'"', begin)
    if end >= 0 and text.find(b"\\", begin, end) < 0:
        return end + 1
    found = REST.match(text, begin)
    return found.end() if found else None


def _add_name(quoted: bytes, names: set[bytes]) -> None:
    """Raises OutOfBounds: it is there already."""
    name = _unescaped(quoted)
    if name in names:
        raise OutOfBounds("a name stands twice in one object", name.decode())
    names.add(name)


def _unescaped(name: bytes) -> bytes:
    return msgspec.json.decode(name, type=str).encode() if b"\\" in name else name[1:-1]
