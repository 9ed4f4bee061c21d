"""Texts for people."""

from __future__ import annotations

from datetime import UTC, datetime


def counted(number: float, name: str, plural: str | None = None) -> str:
    """A number with its noun: ``1 picture``, ``2 pictures``, ``0.125 megapixels``."""
    shown = str(number) if isinstance(number, int) else f"{number:.3g}"
    return f"{shown} {name if shown == '1' else plural or name + 's'}"


def iso(moment: float) -> str:
    """Seconds since the epoch as ISO 8601 in UTC, to the millisecond."""
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"
