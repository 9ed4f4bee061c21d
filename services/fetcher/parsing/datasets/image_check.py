"""Check an image before training: decode it completely, the way the trainer does.

Only the parsing child imports this module, and with it the decoders of HEIC.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pi_heif
from msgspec import Struct
from PIL import AvifImagePlugin, Image, UnidentifiedImageError

from services.fetcher.parsing.datasets.avif_size import coded_size
from shared.dataset.buckets import Size
from shared.dataset.pixels import FORMATS, alpha_of, as_trained, fingerprint, open_image, turn_of
from shared.disk import SPARE, require_room, translate_disk_full
from shared.thumbnail import shrink

FOREIGN = ("HEIF", "AVIF")
"""What the trainer does not read; decoded here only, and stored anew. HEIC is a kind of HEIF."""
READ = (*FORMATS, *FOREIGN)
KINDS = "JPEG, PNG, BMP, WebP, HEIC or AVIF"
FILE_TYPE = b"ftyp"
"""Bytes 4 to 8 of HEIC, AVIF and films."""
FASTEST = 1
"""Of PNG's compression levels; photos get hardly smaller with a higher one."""
OPAQUE = 255

MAX_PIXELS = 89_000_000
"""Of one image; just below the limit at which Pillow warns."""
MAX_SCANS = 64
"""Of a JPEG. Each costs the time of a whole image; encoders write 10, the best ones a few more."""
START_OF_IMAGE, START_OF_SCAN, END_OF_IMAGE = b"\xff\xd8", b"\xda", b"\xd9"
MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd7\xff])")
"""Of a JPEG: those with a length behind them, and the end; more of the first byte may be before."""
MAX_FRAMES = 1000
"""Of an animation, of which only the first is used."""

# Each thread takes address space, of which the child has little.
pi_heif.register_heif_opener(
    decode_threads=1, thumbnails=False, depth_images=False, aux_images=False
)
AvifImagePlugin.DEFAULT_MAX_THREADS = 1

# Filters are per process, so one call in a thread cannot have its own. Such an image is an attack.
warnings.simplefilter("error", Image.DecompressionBombWarning)


class UnusableImage(Exception):
    """An image that cannot be trained on; the text says why."""


class ImageInfo(Struct, frozen=True, kw_only=True):
    """What is found out about a decoded image."""

    file: str
    """Its name in the folder: another one if it was stored anew."""
    size: Size
    """After the EXIF orientation is applied."""
    fingerprint: str
    """Equal for images of equal pixels."""
    turn: Image.Transpose | None = None
    """What has set it upright, by its EXIF orientation; None: it was."""
    remarks: tuple[str, ...] = ()
    """What of the image is not trained on, or not as it stands."""
    small: Image.Image | None = None
    """Itself, at most as large as a preview, if that is asked for."""


def inspect(path: Path, *, small: bool = False) -> ImageInfo:
    """Decode an image completely; HEIC and AVIF are stored anew, in a format the trainer reads.

    Raises:
        UnusableImage: not an image, broken, truncated, or too large.
        Full: the disk has no room for what is stored anew.
    """
    with _usable(path), open_image(path, READ) as image:
        trained = _decoded(image, path)
        remarks = tuple(_remarks(image))
        turn = turn_of(image)
        is_foreign = image.format in FOREIGN
    info = ImageInfo(
        file=_stored_anew(trained, path) if is_foreign else path.name,
        size=Size(*trained.size),
        fingerprint=fingerprint(trained),
        turn=turn,
        remarks=remarks,
        small=trained if small else None,
    )
    if small:
        shrink(trained)
    return info


def decoded_mask(path: Path) -> Image.Image:
    """An image as a mask, upright: what is transparent is black.

    Raises UnusableImage as :func:`inspect`.
    """
    with _usable(path), open_image(path, READ) as image:
        return _decoded(image, path, paper="black")


def transparency(path: Path) -> Image.Image | None:
    """How opaque an image is where (L), upright; None: it has no transparent pixel.

    Raises UnusableImage as :func:`inspect`.
    """
    with _usable(path), open_image(path, READ) as image:
        _decoded(image, path)
        return alpha_of(image)


@contextmanager
def _usable(path: Path) -> Iterator[None]:
    """Whatever a decoder raises in the block is an UnusableImage that says why."""
    try:
        yield
    except UnidentifiedImageError:
        raise UnusableImage(_unidentified(path)) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UnusableImage(f"more than {MAX_PIXELS // 1_000_000} million pixels") from None
    except (UnusableImage, MemoryError):  # the second says nothing of the image
        raise
    except Exception as error:  # noqa: BLE001 - decoders raise what they like on broken files
        raise UnusableImage(f"broken or cut off ({error})") from None


def _unidentified(path: Path) -> str:
    with path.open("rb") as file:
        beginning = file.read(8)
        if not beginning:
            return "an empty file, of 0 bytes"
        if beginning.endswith(FILE_TYPE):  # Pillow does not tell what is broken in an AVIF
            return "broken or cut off, or no HEIC or AVIF that can be read"
    return f"not a {KINDS} image"


def _decoded(image: Image.Image, path: Path, paper: str = "white") -> Image.Image:
    """The image as it is trained on, or on another paper."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise UnusableImage(
            f"{width} x {height}: more than {MAX_PIXELS // 1_000_000} million pixels"
        )
    if image.format in ("JPEG", "MPO") and _scans(path.read_bytes()) > MAX_SCANS:
        raise UnusableImage(f"a JPEG of more than {MAX_SCANS} scans; save it anew")
    coded = coded_size(path.read_bytes()) if image.format == "AVIF" else None
    if coded and coded != image.size:
        in_truth = f"{coded[0]} x {coded[1]}"
        raise UnusableImage(f"{width} x {height} by its header, but coded as {in_truth}")
    if getattr(image, "n_frames", 1) > MAX_FRAMES:
        raise UnusableImage(f"an animation of more than {MAX_FRAMES} frames")
    image.load()
    return as_trained(image, paper)


def _scans(jpeg: bytes) -> int:
    """The scans of a JPEG's first image; phones put a film behind it."""
    scans, at = 0, len(START_OF_IMAGE)
    while (found := MARKER.search(jpeg, at)) and (marker := found[1]) != END_OF_IMAGE:
        scans += marker == START_OF_SCAN
        length = int.from_bytes(jpeg[found.end() : found.end() + 2], "big")
        at = found.end() + length
    return scans


def _remarks(image: Image.Image) -> Iterator[str]:
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # whose others are previews
        yield f"the first of its {frames} frames is used"
    if image.has_transparency_data and _shows_through(image):
        yield "its transparent areas are white"


def _shows_through(image: Image.Image) -> bool:
    """Whether any pixel is transparent; for modes without an alpha channel it may be."""
    if image.mode not in ("RGBA", "LA"):
        return True
    return image.getchannel("A").getextrema() != (OPAQUE, OPAQUE)


def _stored_anew(trained: Image.Image, path: Path) -> str:
    """Store what is trained on as PNG in place of the file; returns its name.

    PNG keeps every pixel, the trainer reads it already, and it is written row by row; a lossless
    WebP is a third smaller, but takes gigabytes of memory for a large image.
    """
    new, doing = path.with_suffix(".new"), f"store {path.name} as PNG"
    require_room(path.parent, trained.width * trained.height * 3 + SPARE, doing)
    with translate_disk_full(doing):
        trained.save(new, "PNG", compress_level=FASTEST)
    path.unlink()
    return new.rename(path.with_suffix(".png")).name
