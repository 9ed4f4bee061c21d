"""What it may take to read a stranger's files, by their size, and what is said of more.

Generous to honest files: the most that they were seen to take, several times.
"""

from __future__ import annotations

from msgspec import Struct

from shared.dataset.manifest import MANIFEST_BYTES

MEMORY_BYTES = 3 << 30
"""Of address space; a lossless WebP of 89 million pixels takes 2.5 GiB."""
FILE_BYTES = 16 << 30
BASE_SECONDS = 120.0
"""Of processor time for any order: imports, and the plan of two million images."""
BYTES_PER_SECOND = 5e6
PIXELS_PER_SECOND = 5e6
"""Far less than a core reads: 18 million pixels a second of lossless WebP, 80 of JPEG."""
BASE_PIXELS = 500_000_000
PIXELS_PER_BYTE = 1000
"""Of an archive: a PNG of a single colour has 350 pixels for each of its bytes."""
MAX_PIXELS = 400_000_000_000
BASE_STORED_BYTES = 3 * BASE_PIXELS
STORED_BYTES_PER_BYTE = 200
"""Of an archive: a photo in HEIC becomes some 20 times as large. An AVIF may ask for noise over its
picture, and so become 7000 times as large."""


class Limits(Struct, frozen=True, kw_only=True):
    """What one order may take. A child that takes more is ended by the system."""

    processor_seconds: float
    memory_bytes: int = MEMORY_BYTES
    file_bytes: int = FILE_BYTES
    """Of each file that it writes."""
    pixels: int = BASE_PIXELS
    """Of all pictures of an archive together."""
    stored_bytes: int = BASE_STORED_BYTES
    """Of all pictures and masks that are stored anew, together."""
    manifest_bytes: int = MANIFEST_BYTES
    """Of what the trainer is told of all pictures, which no child reads."""


def dataset_limits(archive_bytes: int) -> Limits:
    """What a dataset may take, by the size of its archive."""
    pixels = min(BASE_PIXELS + PIXELS_PER_BYTE * archive_bytes, MAX_PIXELS)
    return Limits(
        processor_seconds=BASE_SECONDS
        + pixels / PIXELS_PER_SECOND
        + archive_bytes / BYTES_PER_SECOND,
        pixels=pixels,
        stored_bytes=BASE_STORED_BYTES + STORED_BYTES_PER_BYTE * archive_bytes,
    )


def model_limits(model_bytes: int) -> Limits:
    """What a model may take, by the size of its files."""
    return Limits(processor_seconds=BASE_SECONDS + model_bytes / BYTES_PER_SECOND)


def over_memory(file: str, limits: Limits) -> str:
    """What its owner reads of a file that takes more memory than there is for it."""
    return f"{file}: reading it takes more than {limits.memory_bytes / 2**30:g} GiB of memory"


def over_time(file: str, limits: Limits) -> str:
    """The same for processor time, which all files of an order share."""
    return (
        f"{file}: reading came to more than {limits.processor_seconds:.0f} s of processor time,"
        " which is several times what files of this size need; leave it out, or save it anew"
    )


def over_file_size(file: str, limits: Limits) -> str:
    """The same for the size of what is unpacked from it."""
    return f"{file}: more than {limits.file_bytes} bytes would come out of it"
