"""Recognise file names that cameras, phones and counters give: they say nothing of the picture."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

COUNTED = re.compile(
    r"(?i:IMG|IMGP|IMAG|DSC[FN]?|_DSC|PXL|MVIMG|GOPR|DJI|CIMG|PICT|VID|PANO|DCIM|BURST)"
    r"[-_ ]?E?[0-9]"
    r"|(?:SAM|SDC|HPIM|KIF|FB_IMG|GX|WP|CAM|DMC|MVC)[-_ ]?[0-9]{3}|[PRS][0-9]{7}"
)
"""The beginning of a camera's name: its letters and a number; some are names of people, too."""
CAMERA_WORDS = 2
"""As in ``IMG-20230220-WA0001``."""
IDENTIFIER = re.compile(r"(?=(?:.*\d){2})[0-9a-fA-F]{8}[0-9a-fA-F-]*")
"""A hash or a UUID."""
WORDS = re.compile(r"[^\W\d_]+")
NAMING_WORDS = frozenset({
    "img", "image", "images", "photo", "picture", "pic", "pict", "dsc", "dscn", "screenshot",
    "screen", "shot", "scan", "scanned", "untitled", "unnamed", "unknown", "download", "file",
    "frame", "page", "snapchat", "whatsapp", "telegram", "received", "signal", "capture",
})  # fmt: skip
"""Words that programs name pictures by."""
EMPTY_WORDS = NAMING_WORDS | {"copy", "of", "edited", "at", "am", "pm", "wa", "x", "new"}
"""A name of nothing but these and numbers, and one of the others, was given by a program."""


def is_camera_name(name: str) -> bool:
    """Whether a picture's caption, if it comes from this name, would be a camera's or a counter's.

    ``IMG_2042.jpg``, ``DSC_0001.jpg``, ``20230220_1.jpg``, ``image (3).png`` and ``17.png`` are.
    """
    stem = PurePosixPath(name).stem
    caption = stem.split("_", 1)[0].strip()
    words = {word.casefold() for word in WORDS.findall(caption)}
    if IDENTIFIER.fullmatch(caption) or (COUNTED.match(stem) and len(words) <= CAMERA_WORDS):
        return True
    if not words:
        return any(letter.isdigit() for letter in caption)
    return words <= EMPTY_WORDS and bool(words & NAMING_WORDS)
