"""Where people look at every picture of a dataset: pages of what is told of them, and previews."""

from __future__ import annotations

PAGE = 50
"""Pictures on a page, in the order of the manifest."""
PREVIEWS = 1000
"""The first pictures have one."""


def page_name(page: int) -> str:
    """The file of a page, counted from 1: a JSON list of ``TrainedPicture``."""
    return f"page-{page:05d}.json"


def preview_name(number: int) -> str:
    """The file of a picture's preview; pictures are counted from 1."""
    return f"{number:06d}.webp"


def page_of(number: int) -> int:
    return (number - 1) // PAGE + 1
