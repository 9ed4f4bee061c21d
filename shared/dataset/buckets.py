"""Aspect ratio buckets: each image is trained at the listed size with the nearest aspect ratio."""

from __future__ import annotations

from functools import cache, lru_cache
from random import Random
from typing import NamedTuple


class Size(NamedTuple):
    """Width and height in pixels."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


class Box(NamedTuple):
    """A rectangle in an image, in pixels; right and bottom are exclusive."""

    left: int
    top: int
    right: int
    bottom: int


# EveryDream2's sizes by resolution, width x height. Each landscape size exists as a portrait too,
# and the square comes before them. They are made by hand: 1680 is not a multiple of 64, and 384x192
# has more pixels than 256x256.
LANDSCAPES: dict[int, str] = {
    256: "384x192 512x128",
    384: "448x320 512x256 704x192",
    448: "512x384 640x320 768x256",
    512: "576x448 640x384 768x320 896x256 1024x256",
    576: "640x512 704x448 832x384 960x320 1152x256",
    640: "704x576 768x512 832x448 896x448 1024x384 1152x320 1280x320",
    704: "768x640 832x576 960x512 1088x448 1152x384 1280x384 1280x320",
    768: "832x704 896x640 960x576 1024x576 1152x512 1280x448 1408x384 1472x320",
    832: "896x768 960x704 1024x640 1152x576 1216x512 1344x512 1536x448 1600x384",
    896: "1024x768 1088x704 1216x640 1344x576 1536x512 1792x448",
    960: "1088x832 1152x768 1280x704 1408x640 1680x576 1792x512 2048x448",
    1024: "1152x896 1216x832 1344x768 1472x704 1600x640 1792x576 2048x512",
    1088: "1152x1024 1216x896 1408x832 1536x768 1664x704 1792x640 2048x576 2304x512",
    1152: "1280x1024 1344x960 1472x896 1536x832 1728x768 1856x704 2048x640 2304x576",
}

MAX_JITTER = 0.02
"""At most this share of the shorter side is cut from each side of an image."""

PIXELS_TO_SPARE = (1 + MAX_JITTER) ** 2
"""Jitter needs this many times the bucket's pixels."""


@cache
def sizes(resolution: int) -> tuple[Size, ...]:
    """The sizes for a resolution, rounded down to a multiple of 64: the square first, then longer.

    Raises:
        ValueError: there is no table for it.
    """
    side = resolution // 64 * 64
    if side not in LANDSCAPES:
        raise ValueError(
            f"resolution {resolution}: expected one of {', '.join(map(str, LANDSCAPES))}"
        )
    landscapes = [Size(*map(int, text.split("x"))) for text in LANDSCAPES[side].split()]
    pairs = [(size, Size(size.height, size.width)) for size in landscapes]
    return (Size(side, side), *(size for pair in pairs for size in pair))


@lru_cache(maxsize=1 << 16)
def nearest(width: int, height: int, resolution: int) -> Size:
    """The bucket whose width / height differs least from the image's; the first of equal ones.

    The difference is linear, so landscape and portrait are not symmetric: at 512, 1000x680 goes to
    576x448, but 680x1000 to 384x640.
    """
    ratio = width / height
    return min(sizes(resolution), key=lambda size: abs(size.width / size.height - ratio))


def is_undersized(width: int, height: int, bucket: Size) -> bool:
    """Whether an image must be enlarged, or has too few pixels for jitter."""
    fits_a_side = width == bucket.width or height == bucket.height
    return not fits_a_side and width * height < PIXELS_TO_SPARE * bucket.width * bucket.height


def crop_box(width: int, height: int, bucket: Size, random: Random) -> Box:
    """A random crop to scale to the bucket: jitter on each side, then a trim to the bucket's shape.

    The trim's position along the longer axis has a triangular distribution, so that the middle is
    the likeliest.
    """
    limit = int(min(width, height) * _jitter(width, height, bucket))
    left, top, right, bottom = (round(random.uniform(0, limit)) for _ in range(4))
    return _trim_to_shape(Box(left, top, width - right, height - bottom), bucket, random)


def middle_box(width: int, height: int, bucket: Size) -> Box:
    """A centre crop with the bucket's shape; not random."""
    size = _largest_fit(Box(0, 0, width, height), bucket)
    left, top = (width - size.width) // 2, (height - size.height) // 2
    return Box(left, top, left + size.width, top + size.height)


def _jitter(width: int, height: int, bucket: Size) -> float:
    spare = min(width / bucket.width - 1, height / bucket.height - 1)
    return min(max(spare, 0.0), MAX_JITTER)


def _trim_to_shape(box: Box, bucket: Size, random: Random) -> Box:
    size = _largest_fit(box, bucket)
    left, top = box.left, box.top
    if size.width < box.right - box.left:
        left += round(random.triangular(0, box.right - box.left - size.width))
    else:
        top += round(random.triangular(0, box.bottom - box.top - size.height))
    return Box(left, top, left + size.width, top + size.height)


def _largest_fit(box: Box, bucket: Size) -> Size:
    """The largest size with the bucket's shape that fits into the box, rounded down."""
    width, height = box.right - box.left, box.bottom - box.top
    matching_width = max(height * bucket.width // bucket.height, 1)
    if width > matching_width:
        return Size(matching_width, height)
    return Size(width, min(max(width * bucket.height // bucket.width, 1), height))
