"""Look at every image before a GPU does: decode it whole, and learn its size."""

from __future__ import annotations

import warnings
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from shared.dataset.buckets import Size

FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
PIXELS = 89_000_000
"""Of one image: just below where Pillow itself warns."""
ORIENTATION = 0x0112
"""The EXIF tag; from 5 on the image lies on its side."""
LYING = 5

# In a thread this cannot be set for one call alone; whoever opens such an image here means no good.
warnings.simplefilter("error", Image.DecompressionBombWarning)


class Unusable(Exception):
    """An image that cannot be trained on; the text says why."""


def inspect(path: Path) -> Size:
    """Decode an image whole; its upright size in pixels, the EXIF orientation applied.

    Raises:
        Unusable: not an image, broken, cut off, or too large.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            return _decoded(image)
    except UnidentifiedImageError:
        raise Unusable("not a JPEG, PNG, BMP or WebP image") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise Unusable(f"more than {PIXELS // 1_000_000} million pixels") from None
    except Unusable:
        raise
    except Exception as error:  # noqa: BLE001 - decoders raise what they like on broken files
        raise Unusable(f"broken or cut off ({error})") from None


def _decoded(image: Image.Image) -> Size:
    width, height = image.size
    if width * height > PIXELS:
        raise Unusable(f"{width} x {height}: more than {PIXELS // 1_000_000} million pixels")
    image.load()
    lies = image.getexif().get(ORIENTATION, 1) >= LYING
    return Size(height, width) if lies else Size(width, height)
