"""Texts for people."""

from __future__ import annotations


def counted(number: float, name: str, plural: str | None = None) -> str:
    """A number with its noun: ``1 picture``, ``2 pictures``, ``0.125 megapixels``."""
    shown = str(number) if isinstance(number, int) else f"{number:.3g}"
    return f"{shown} {name if shown == '1' else plural or name + 's'}"
