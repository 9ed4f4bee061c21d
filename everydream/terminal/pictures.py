"""Pictures within a terminal, by the protocols of kitty and iTerm2.

Both take a PNG file as it is:
https://sw.kovidgoyal.net/kitty/graphics-protocol and https://iterm2.com/documentation-images.html.
Neither is asked for what it can do: an answer would mix with what is typed.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Mapping

ROWS = 10
"""Height of a picture, in lines of text."""
CHUNK = 4096
"""Letters of base64 that kitty takes at a time."""
Encode = Callable[[bytes], str]
"""Makes the escape sequence that shows a PNG file."""


def encoder_for(environment: Mapping[str, str]) -> Encode | None:
    """What the terminal understands, by the variables that it sets; None: no pictures.

    Within tmux and screen, which would not pass it on, there are none.
    """
    if environment.get("TMUX") or environment.get("STY"):
        return None
    program, kind = environment.get("TERM_PROGRAM"), environment.get("TERM", "")
    if environment.get("KITTY_WINDOW_ID") or program == "ghostty" or kind.endswith("-kitty"):
        return for_kitty
    if program in ("iTerm.app", "WezTerm") or environment.get("LC_TERMINAL") == "iTerm2":
        return for_iterm2
    return None


def for_kitty(png: bytes) -> str:
    data = b64encode(png).decode()
    keys, shown = f"a=T,f=100,q=2,r={ROWS},", ""  # show a PNG, and answer nothing
    for start in range(0, len(data), CHUNK):
        more = int(start + CHUNK < len(data))
        shown += f"\x1b_G{keys}m={more};{data[start : start + CHUNK]}\x1b\\"
        keys = ""
    return shown


def for_iterm2(png: bytes) -> str:
    data = b64encode(png).decode()
    return f"\x1b]1337;File=inline=1;size={len(png)};height={ROWS};preserveAspectRatio=1:{data}\a"
