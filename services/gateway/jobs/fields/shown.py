"""A value as messages show it."""

from __future__ import annotations

import re
from typing import Any

import msgspec

SHOWN_LETTERS = 120
READ_LETTERS = 4096
"""Of a value that is shown."""
CREDENTIALS = re.compile(r'(?<![^"\s])((?>[^"\s]*?//))[^"\s]*@')
QUERY = re.compile(r'(?<![^"\s])((?>[^"\s]*?//)[^"\s?]*\?)[^"\s]+')
"""The query of an address may be a secret, so no message shows it.

Both begin where a word does, and go on from its first two slashes alone: from each of a million
slashes they would take hours, in which the gateway answers nobody."""


def shown(value: Any) -> str:
    """A value as JSON, shortened, and without credentials and queries of addresses."""
    if isinstance(value, dict):
        return "an object"
    text = msgspec.json.encode(value[:READ_LETTERS] if isinstance(value, str) else value).decode()
    if len(text) > READ_LETTERS:
        text = text[:READ_LETTERS] + "@"  # as if a login ended there, which may go on
    text = QUERY.sub(r"\1(hidden)", CREDENTIALS.sub(r"\1(hidden)@", text))
    return text if len(text) <= SHOWN_LETTERS else text[: SHOWN_LETTERS - 3] + "..."
