"""Read an image file's pixels as they are trained on: upright, three channels of 8 bits.

Fetcher and trainer share this code, so the report describes exactly what is trained on.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from PIL import Image, ImageOps

FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
MAX_16_BIT = 65535
STRIP_ROWS = 256
"""Hashed at once; a copy of the whole image would double the memory."""


def open_image(path: Path) -> Image.Image:
    """Open an image file in one of these formats, without decoding the pixels.

    With all of Pillow's formats, another decoder could read the same bytes as a different image.

    Raises:
        OSError, ValueError, SyntaxError: another format, or broken.
    """
    return Image.open(path, formats=FORMATS)


def as_trained(image: Image.Image) -> Image.Image:
    """Convert to RGB and apply the EXIF orientation.

    Transparent pixels are put on white, as on paper and most web pages; their hidden colours, often
    black or garbage, do not show. 16-bit grey is scaled. CMYK and palettes are converted. Embedded
    colour profiles are not applied.

    Raises:
        OSError, ValueError, SyntaxError: the file is broken or truncated.
    """
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):
        return _to_8_bit(upright).convert("RGB")
    return _on_white(upright) if upright.has_transparency_data else upright.convert("RGB")


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey (0 to 65535) to 8 bits, rounded; Pillow's own conversion clips at 255."""
    return image.convert("I").point(lambda value: value * (255 / MAX_16_BIT) + 0.5).convert("L")


def _on_white(image: Image.Image) -> Image.Image:
    with_alpha = image.convert("RGBA")
    paper = Image.new("RGB", image.size, "white")
    paper.paste(with_alpha, mask=with_alpha.getchannel("A"))
    return paper


def fingerprint(image: Image.Image) -> str:
    """Equal for images of equal size and pixels, whatever their file formats."""
    digest = hashlib.sha256(repr((image.mode, image.size)).encode())
    for top in range(0, image.height, STRIP_ROWS):
        strip = image.crop((0, top, image.width, min(top + STRIP_ROWS, image.height)))
        digest.update(strip.tobytes())
    return digest.hexdigest()
