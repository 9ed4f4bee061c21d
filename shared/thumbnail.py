"""Draw an image small, for people to look at many."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

SIDE = 256
"""Pixels of the longer side, at most."""
SUFFIX = ".webp"
QUALITY = 80
EFFORT = 1
"""WebP's usual effort, 4, takes half as long again or twice."""


def shrink(image: Image.Image) -> None:
    """Make an image small, in its own place."""
    image.thumbnail((SIDE, SIDE))


def write_thumbnail(
    image: Image.Image, path: Path, *, quality: int = QUALITY, effort: int = EFFORT
) -> None:
    """Write a small WebP of an image, never an enlarged one.

    The image itself becomes as small: a copy of a large one would double the memory.
    """
    shrink(image)
    image.save(path, "WEBP", quality=quality, method=effort)
