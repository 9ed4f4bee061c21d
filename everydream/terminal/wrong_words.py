"""What is wrong with the words of a command, in plain words and not in its parser's."""

from __future__ import annotations

from shlex import quote
from typing import TYPE_CHECKING

from cyclopts import (
    CoercionError,
    CycloptsError,
    CycloptsPanel,
    MissingArgumentError,
    UnusedCliTokensError,
)

if TYPE_CHECKING:
    from rich.panel import Panel

KINDS = {int: "a whole number", float: "a number", bool: "true or false"}


def panel_of(error: CycloptsError) -> Panel:
    """The error as it is shown."""
    return CycloptsPanel(_plain(error) or error)


def _plain(error: CycloptsError) -> str | None:
    """None: the parser's own words are plain."""
    match error:
        case UnusedCliTokensError():
            words = " ".join(quote(word) for word in error.unused_tokens or ())
            command = " ".join(error.command_chain or ())
            return (
                f"{words}: more than `everydream {command}` takes; a name or text with blanks"
                " needs quotes"
            )
        case MissingArgumentError(argument=argument, keyword=keyword) if argument is not None:
            name = keyword or argument.name
            command = " ".join(error.command_chain or ())
            is_option = name.startswith("-")
            return f"{name} needs a value" if is_option else f"`everydream {command}` needs {name}"
        case CoercionError(token=token, target_type=kind) if token is not None and kind in KINDS:
            name = token.keyword or "the value"
            return f"{name}: expected {KINDS[kind]}, got {token.value!r}"
        case _:
            return None
