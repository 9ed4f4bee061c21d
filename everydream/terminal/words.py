"""Numbers, times and texts as people read them."""

from __future__ import annotations

import time

from rich.cells import cell_len, set_cell_size

from shared.words import counted

MINUTE, HOUR, DAY = 60, 3600, 86_400
WEEK = 7 * DAY
UNITS = ("kB", "MB", "GB", "TB")
THOUSAND = 1000
COMMAND = "  everydream "
"""How a command begins within a line that is said."""
FEW = 10
"""Below it a number of bytes has one digit after the point."""


def duration(seconds: float) -> str:
    """A time span by its two largest units: ``1 h 12 min``, ``45 s``; ``a moment`` below 1 s."""
    whole = int(seconds)
    if whole < 1:
        return "a moment"
    if whole < MINUTE:
        return f"{whole} s"
    if whole < HOUR:
        return f"{whole // MINUTE} min"
    large, size, small, unit = ("h", HOUR, MINUTE, "min") if whole < DAY else ("d", DAY, HOUR, "h")
    rest = whole % size // small
    return f"{whole // size} {large}" + (f" {rest} {unit}" if rest else "")


def clock(moment: float, now: float) -> str:
    """A moment by the local clock, both in seconds since the epoch: ``14:05``, ``Tue 14:05``."""
    there, here = time.localtime(moment), time.localtime(now)
    if there[:3] == here[:3]:
        return time.strftime("%H:%M", there)
    return time.strftime("%a %H:%M" if abs(moment - now) < WEEK else "%Y-%m-%d %H:%M", there)


def size(number: float) -> str:
    """A number of bytes in decimal units: ``512 bytes``, ``4.1 GB``."""
    if number < THOUSAND:
        return counted(int(number), "byte")
    for unit in UNITS:
        number /= THOUSAND
        if number < THOUSAND or unit == UNITS[-1]:
            break
    return f"{number:.1f} {unit}" if number < FEW else f"{number:.0f} {unit}"


def plain(text: object) -> str:
    """A user's text on one line, without what would steer a terminal."""
    return "".join(
        " " if letter.isspace() else letter if letter.isprintable() else "?" for letter in str(text)
    )


def wrapped(text: str, width: int) -> list[str]:
    """A line in parts of so many columns that end between words; a longer word stays whole.

    So does a command, which can be copied only so: it goes from two blanks to the line's end.
    """
    said, blanks, command = text.partition(COMMAND)
    parts = _parted(said, width)
    if blanks and parts != [""]:
        whole = f"{parts[-1]}{COMMAND}{command}"
        is_short = cell_len(whole) <= width
        return [*parts[:-1], whole] if is_short else [*parts, f"{COMMAND}{command}"]
    return [text] if blanks else parts


def _parted(text: str, width: int) -> list[str]:
    indent = " " * (len(text) - len(text.lstrip(" ")))
    first, *words = text[len(indent) :].split(" ")
    parts = [indent + first]
    for word in words:
        longer = f"{parts[-1]} {word}"
        if cell_len(longer) <= width:
            parts[-1] = longer
        else:
            parts.append(indent + word)
    return [part.rstrip(" ") for part in parts]


def fit(text: str, width: int) -> str:
    """A text cut to so many columns of a terminal, which wide letters need two of.

    It is cut after a word, unless that is much shorter.
    """
    if cell_len(text) <= width:
        return text
    cut = set_cell_size(text, max(width - 3, 0))
    words = cut.rpartition(" ")[0] if text[len(cut.rstrip()) :][:1] not in ("", " ") else cut
    cut = words if cell_len(words) * 2 > width else cut
    return cut.rstrip(" ,:;") + "..."[:width]
