"""An image file's pixels as training sees them: upright, three channels of 8 bits.

Fetcher and trainer both read by this, so what the report says of an image is true of its training.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from PIL import Image, ImageOps

FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
MOST_16_BIT = 65535
STRIP = 256
"""Rows that are hashed at once: a copy of the whole image would double the memory."""


def open_image(path: Path) -> Image.Image:
    """An image file, asked of these formats' readers alone; the pixels are not decoded yet.

    Of all that Pillow knows, another reader could take the same bytes for another picture.

    Raises:
        OSError, ValueError, SyntaxError: it is none of them, or broken.
    """
    return Image.open(path, formats=FORMATS)


def as_trained(image: Image.Image) -> Image.Image:
    """RGB, the EXIF orientation applied.

    What is transparent lies on white, as on paper and most web pages; the colours hidden there,
    often black or garbage, never show. 16-bit grey is scaled. CMYK and palettes become the
    colours that they stand for. Embedded colour profiles are not applied.

    Raises:
        OSError, ValueError, SyntaxError: the file is broken or cut off.
    """
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):
        return _scaled(upright).convert("RGB")
    return _on_white(upright) if upright.has_transparency_data else upright.convert("RGB")


def _scaled(image: Image.Image) -> Image.Image:
    """16-bit grey (0 to 65535) as 8-bit grey, rounded; Pillow's own conversion clips at 255."""
    return image.convert("I").point(lambda value: value * (255 / MOST_16_BIT) + 0.5).convert("L")


def _on_white(image: Image.Image) -> Image.Image:
    with_alpha = image.convert("RGBA")
    paper = Image.new("RGB", image.size, "white")
    paper.paste(with_alpha, mask=with_alpha.getchannel("A"))
    return paper


def fingerprint(image: Image.Image) -> str:
    """Equal for images of equal size and pixels, whatever files they come from."""
    digest = hashlib.sha256(repr((image.mode, image.size)).encode())
    for top in range(0, image.height, STRIP):
        strip = image.crop((0, top, image.width, min(top + STRIP, image.height)))
        digest.update(strip.tobytes())
    return digest.hexdigest()
