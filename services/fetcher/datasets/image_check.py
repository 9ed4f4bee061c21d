"""Look at every image before a GPU does: decode it whole, as training will."""

from __future__ import annotations

import warnings
from pathlib import Path

from msgspec import Struct
from PIL import Image, UnidentifiedImageError

from shared.dataset.buckets import Size
from shared.dataset.pixels import as_trained, fingerprint, open_image

PIXELS = 89_000_000
"""Of one image: just below where Pillow itself warns."""

# In a thread this cannot be set for one call alone; whoever opens such an image here means no good.
warnings.simplefilter("error", Image.DecompressionBombWarning)


class Unusable(Exception):
    """An image that cannot be trained on; the text says why."""


class Look(Struct, frozen=True, kw_only=True):
    """What was seen of an image."""

    size: Size
    """Upright: the EXIF orientation is applied."""
    pixels: str
    """A fingerprint: equal for images of equal pixels."""


def inspect(path: Path) -> Look:
    """Decode an image whole, as training will see it.

    Raises:
        Unusable: not an image, broken, cut off, or too large.
    """
    try:
        with open_image(path) as image:
            return _decoded(image)
    except UnidentifiedImageError:
        raise Unusable("not a JPEG, PNG, BMP or WebP image") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise Unusable(f"more than {PIXELS // 1_000_000} million pixels") from None
    except Unusable:
        raise
    except Exception as error:  # noqa: BLE001 - decoders raise what they like on broken files
        raise Unusable(f"broken or cut off ({error})") from None


def _decoded(image: Image.Image) -> Look:
    width, height = image.size
    if width * height > PIXELS:
        raise Unusable(f"{width} x {height}: more than {PIXELS // 1_000_000} million pixels")
    image.load()
    seen = as_trained(image)
    return Look(size=Size(*seen.size), pixels=fingerprint(seen))
