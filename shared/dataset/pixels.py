"""Read an image file's pixels as they are trained on: upright, three channels of 8 bits.

Fetcher and trainer share this code, so the report describes exactly what is trained on.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from PIL import Image, ImageChops

from shared.dataset.png_metadata import without_large_metadata

FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
MAX_16_BIT = 65535
ORIENTATION = 0x0112
"""The EXIF tag."""
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What sets an image upright, by its orientation; any other is upright already."""
OPAQUE = 255
STRIP_ROWS = 256
"""Hashed at once; a copy of the whole image would double the memory."""


def open_image(path: Path, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """Open an image file in one of these formats, without decoding the pixels.

    With all of Pillow's formats, another decoder could read the same bytes as a different image.

    Raises:
        OSError, ValueError, SyntaxError: another format, or broken.
    """
    if (png := without_large_metadata(path)) is not None:
        return Image.open(png, formats=("PNG",))
    return Image.open(path, formats=formats)


def as_trained(image: Image.Image, paper: str = "white") -> Image.Image:
    """Convert to RGB and apply the EXIF orientation.

    Transparent pixels are put on white, as on most web pages, or on another ``paper``; their hidden
    colours, often black or garbage, do not show. 16-bit grey is scaled. CMYK and palettes are
    converted. Embedded colour profiles are not applied.

    Raises:
        OSError, ValueError, SyntaxError: the file is broken or truncated.
    """
    image.load()
    turn = turn_of(image)
    upright = image if turn is None else image.transpose(turn)
    if upright.mode.startswith("I"):
        return _from_16_bit(upright, paper)
    return _on(paper, upright) if upright.has_transparency_data else upright.convert("RGB")


def alpha_of(image: Image.Image) -> Image.Image | None:
    """How opaque each pixel of a loaded image is, upright (L); None: all are opaque."""
    if not image.has_transparency_data:
        return None
    alpha = image.convert("RGBA").getchannel("A")
    if alpha.getextrema() == (OPAQUE, OPAQUE):
        return None
    turn = turn_of(image)
    return alpha if turn is None else alpha.transpose(turn)


def turn_of(image: Image.Image) -> Image.Transpose | None:
    """What sets a loaded image upright; None: it is."""
    return UPRIGHT.get(_orientation(image))


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, whatever else in the EXIF data is damaged; 1 if there is none."""
    try:
        orientation: object = image.getexif().get(ORIENTATION)
    except Exception:  # noqa: BLE001 - damaged EXIF data raise what they like
        return 1
    return orientation if isinstance(orientation, int) else 1


def _from_16_bit(image: Image.Image, paper: str) -> Image.Image:
    """Scale 16-bit grey (0 to 65535) to 8 bits, rounded; Pillow's own conversion clips at 255."""
    grey = image.convert("I").point(lambda value: value * (255 / MAX_16_BIT) + 0.5).convert("RGB")
    transparent = image.info.get("transparency")
    if image.mode == "I;16" and isinstance(transparent, int):
        # Low and high bytes, as the two channels of LA; ImageChops compares no 16 bits.
        low, high = Image.frombytes("LA", image.size, image.tobytes()).split()
        grey.paste(paper, mask=_is(low, transparent & 255, high, transparent >> 8))
    return grey


def _is(low: Image.Image, low_byte: int, high: Image.Image, high_byte: int) -> Image.Image:
    """A mask of the pixels that have these two bytes."""
    same = [
        channel.point([255 * (value == byte) for value in range(256)])
        for channel, byte in ((low, low_byte), (high, high_byte))
    ]
    return ImageChops.darker(*same)


def _on(paper: str, image: Image.Image) -> Image.Image:
    with_alpha = image.convert("RGBA")
    below = Image.new("RGB", image.size, paper)
    below.paste(with_alpha, mask=with_alpha.getchannel("A"))
    return below


def fingerprint(image: Image.Image) -> str:
    """Equal for images of equal size and pixels, whatever their file formats."""
    digest = hashlib.sha256(repr((image.mode, image.size)).encode())
    for top in range(0, image.height, STRIP_ROWS):
        strip = image.crop((0, top, image.width, min(top + STRIP_ROWS, image.height)))
        digest.update(strip.tobytes())
    return digest.hexdigest()
