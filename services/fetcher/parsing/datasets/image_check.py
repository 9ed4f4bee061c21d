"""Check an image before training: decode it completely, the way the trainer does."""

from __future__ import annotations

import warnings
from pathlib import Path

from msgspec import Struct
from PIL import Image, UnidentifiedImageError

from shared.dataset.buckets import Size
from shared.dataset.pixels import as_trained, fingerprint, open_image

MAX_PIXELS = 89_000_000
"""Of one image; just below the limit at which Pillow warns."""
MAX_SCANS = 64
"""Of a JPEG. Each costs the time of a whole image; encoders write 10, the best ones a few more."""
START_OF_SCAN = b"\xff\xda"
MAX_FRAMES = 1000
"""Of an animation, of which only the first is used."""

# Filters are per process, so one call in a thread cannot have its own. Such an image is an attack.
warnings.simplefilter("error", Image.DecompressionBombWarning)


class UnusableImage(Exception):
    """An image that cannot be trained on; the text says why."""


class ImageInfo(Struct, frozen=True, kw_only=True):
    """Size and fingerprint of a decoded image."""

    size: Size
    """After the EXIF orientation is applied."""
    fingerprint: str
    """Equal for images of equal pixels."""


def inspect(path: Path) -> ImageInfo:
    """Decode an image completely.

    Raises:
        UnusableImage: not an image, broken, truncated, or too large.
    """
    try:
        with open_image(path) as image:
            return _decoded(image, path)
    except UnidentifiedImageError:
        raise UnusableImage("not a JPEG, PNG, BMP or WebP image") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UnusableImage(f"more than {MAX_PIXELS // 1_000_000} million pixels") from None
    except (UnusableImage, MemoryError):  # the second says nothing of the image
        raise
    except Exception as error:  # noqa: BLE001 - decoders raise what they like on broken files
        raise UnusableImage(f"broken or cut off ({error})") from None


def _decoded(image: Image.Image, path: Path) -> ImageInfo:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise UnusableImage(
            f"{width} x {height}: more than {MAX_PIXELS // 1_000_000} million pixels"
        )
    if image.format in ("JPEG", "MPO") and path.read_bytes().count(START_OF_SCAN) > MAX_SCANS:
        raise UnusableImage(f"a JPEG of more than {MAX_SCANS} scans; save it anew")
    if getattr(image, "n_frames", 1) > MAX_FRAMES:
        raise UnusableImage(f"an animation of more than {MAX_FRAMES} frames")
    image.load()
    trained = as_trained(image)
    return ImageInfo(size=Size(*trained.size), fingerprint=fingerprint(trained))
