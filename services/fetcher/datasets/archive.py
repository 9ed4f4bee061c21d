"""Unpack a user's zip: images and caption files only, under caps, and under names of our own."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct, field

from services.fetcher.zip_reader import (
    Member,
    Unusable,
    checked_members,
    open_zip,
    pieces,
    write_member,
)
from shared.concurrency import in_thread
from shared.dataset.manifest import Skipped
from shared.disk import SPARE, require_room, told_when_full

IMAGES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".jfif"})
TEXTS = frozenset({".txt", ".caption", ".yaml", ".yml"})

ENTRY_BYTES = 256 << 20
TEXT_BYTES = 64 << 10
ALL_TEXT_BYTES = 64 << 20
NAME_BYTES = 1024
"""Of an entry, as UTF-8: looking for captions in all folders above takes time for each."""


class Image(Struct, frozen=True, kw_only=True):
    """An image file as it was unpacked; nobody has looked at it yet."""

    name: str
    """Its path inside the archive, with ``/``."""
    file: str
    """Its name in the folder: safe, and of our making."""


class Unpacked(Struct, frozen=True, kw_only=True):
    """What an archive held."""

    images: list[Image] = field(default_factory=list)
    texts: dict[str, bytes] = field(default_factory=dict)
    """Caption files by their path inside the archive."""
    skipped: list[Skipped] = field(default_factory=list)


async def unpack(
    archive: Path, folder: Path, *, shown: str, keepalive: Callable[[], None]
) -> Unpacked:
    """Unpack images into ``folder`` and texts into memory; ``shown`` is what the archive is called.

    Raises:
        Refused: not a zip, encrypted, or over a cap; names the archive and says what to do.
        Full: the disk has no room for what it declares to hold.
    """
    with await in_thread(open_zip, archive, shown) as zipped:
        members = await in_thread(checked_members, zipped, archive, shown)
        unpacker, doing = _Unpacker(zipped, folder), f"unpack {shown}"
        require_room(folder, sum(each.entry.file_size for each in members) + SPARE, doing)
        with told_when_full(doing):
            for number, member in enumerate(members):
                await in_thread(unpacker.take, member, number)
                keepalive()
    return unpacker.unpacked


class _Unpacker:
    """Takes entries one by one."""

    def __init__(self, zipped: zipfile.ZipFile, folder: Path) -> None:
        self.unpacked = Unpacked()
        self._zipped = zipped
        self._folder = folder
        self._names: set[str] = set()
        self._text_bytes = 0

    def take(self, member: Member, number: int) -> None:
        try:
            self._check(member)
            if member.suffix in TEXTS:
                self._take_text(member)
            else:
                self._take_image(member, f"{number:06d}{member.suffix}")
        except Unusable as error:
            self.unpacked.skipped.append(Skipped.of(member.name, error))

    def _check(self, member: Member) -> None:
        if member.suffix not in IMAGES | TEXTS:
            raise Unusable("neither an image (jpg, jpeg, jfif, png, bmp, webp) nor a caption file")
        if len(member.name.encode()) > NAME_BYTES:
            raise Unusable(f"its name takes more than {NAME_BYTES} bytes")
        if member.name in self._names:
            raise Unusable("the archive has this name twice")
        self._names.add(member.name)
        limit = ENTRY_BYTES if member.suffix in IMAGES else TEXT_BYTES
        if member.entry.file_size > limit:
            raise Unusable(f"{member.entry.file_size} bytes; at most {limit} are taken")

    def _take_text(self, member: Member) -> None:
        self._text_bytes += member.entry.file_size
        if self._text_bytes > ALL_TEXT_BYTES:
            raise Unusable(f"more than {ALL_TEXT_BYTES} bytes of caption files in all")
        self.unpacked.texts[member.name] = b"".join(pieces(self._zipped, member))

    def _take_image(self, member: Member, file: str) -> None:
        write_member(self._zipped, member, self._folder / file)
        self.unpacked.images.append(Image(name=member.name, file=file))
