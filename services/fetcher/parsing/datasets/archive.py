"""Unpack a user's zip: images and caption files only, within limits, under safe names."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct, field

from services.fetcher.parsing.zip_reader import (
    Member,
    UnusableEntry,
    checked_members,
    open_zip,
    read_chunks,
    write_member,
)
from shared.dataset.manifest import Skipped
from shared.disk import SPARE, require_room, translate_disk_full

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".heic", ".heif", ".hif", ".avif"}
)
IMAGES = ", ".join(sorted(IMAGE_SUFFIXES))
"""For messages."""
TEXT_SUFFIXES = frozenset({".txt", ".caption", ".yaml", ".yml"})

MAX_IMAGE_BYTES = 256 << 20
MAX_TEXT_BYTES = 64 << 10
MAX_TOTAL_TEXT_BYTES = 64 << 20
MAX_NAME_BYTES = 1024
"""Of an entry's path in UTF-8; captions are looked up in every parent folder, which takes time."""


class ImageFile(Struct, frozen=True, kw_only=True):
    """An unpacked image file, not yet checked."""

    name: str
    """Its path inside the archive, with ``/``."""
    file: str
    """Its generated name in the folder, which is safe."""
    is_name_unreadable: bool = False
    """Its encoding is unknown, and what it was decoded to looks like no text."""


class Unpacked(Struct, frozen=True, kw_only=True):
    """The usable content of an archive."""

    images: list[ImageFile] = field(default_factory=list)
    texts: dict[str, bytes] = field(default_factory=dict)
    """Caption files by their path inside the archive."""
    skipped: list[Skipped] = field(default_factory=list)


def unpack(archive: Path, folder: Path, *, shown: str, reading: Callable[[str], None]) -> Unpacked:
    """Unpack images into ``folder`` and texts into memory; ``shown`` is its name in messages.

    ``reading`` is called with each entry's name, before it is opened.

    Raises:
        Refused: not a zip, encrypted, or over a limit; names the archive and says what to do.
        Full: the disk has no room for the declared size.
    """
    reading(shown)
    with open_zip(archive, shown) as zipped:
        members = checked_members(zipped, archive, shown)
        unpacker, doing = _Unpacker(zipped, folder), f"unpack {shown}"
        require_room(folder, sum(each.entry.file_size for each in members) + SPARE, doing)
        with translate_disk_full(doing):
            for number, member in enumerate(members):
                reading(member.name)
                unpacker.add(member, number)
    return unpacker.unpacked


def too_large(suffix: str, size: int) -> str | None:
    """Why an image or a caption file of this size is not taken; None: it is."""
    limit = MAX_IMAGE_BYTES if suffix in IMAGE_SUFFIXES else MAX_TEXT_BYTES
    return f"{size} bytes; at most {limit} are taken" if size > limit else None


class _Unpacker:
    """Unpacks entries one by one."""

    def __init__(self, zipped: zipfile.ZipFile, folder: Path) -> None:
        self.unpacked = Unpacked()
        self._zipped = zipped
        self._folder = folder
        self._names: set[str] = set()
        self._text_bytes = 0

    def add(self, member: Member, number: int) -> None:
        """Unpack an entry, or list it as skipped."""
        try:
            self._check(member)
            if member.suffix in TEXT_SUFFIXES:
                self._read_text(member)
            else:
                self._write_image(member, f"{number:06d}{member.suffix}")
        except UnusableEntry as error:
            self.unpacked.skipped.append(Skipped.of(member.name, error))

    def _check(self, member: Member) -> None:
        if member.suffix not in IMAGE_SUFFIXES | TEXT_SUFFIXES:
            raise UnusableEntry(f"neither an image ({IMAGES}) nor a caption file")
        if len(member.name.encode()) > MAX_NAME_BYTES:
            raise UnusableEntry(f"its name takes more than {MAX_NAME_BYTES} bytes")
        if member.name in self._names:
            raise UnusableEntry("the archive has this name twice")
        self._names.add(member.name)
        if reason := too_large(member.suffix, member.entry.file_size):
            raise UnusableEntry(reason)

    def _read_text(self, member: Member) -> None:
        self._text_bytes += member.entry.file_size
        if self._text_bytes > MAX_TOTAL_TEXT_BYTES:
            raise UnusableEntry(f"more than {MAX_TOTAL_TEXT_BYTES} bytes of caption files in all")
        self.unpacked.texts[member.name] = b"".join(read_chunks(self._zipped, member))

    def _write_image(self, member: Member, file: str) -> None:
        write_member(self._zipped, member, self._folder / file)
        self.unpacked.images.append(
            ImageFile(name=member.name, file=file, is_name_unreadable=member.is_name_unreadable)
        )
