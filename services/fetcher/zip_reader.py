"""Open a user's zip safely: its list and its entries are checked, and sizes have caps."""

from __future__ import annotations

import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from shared.dataset.manifest import short
from shared.errors import Refused

ENTRIES = 50_000
DIRECTORY_BYTES = 16 << 20
"""Of the zip's list of entries, which is read into memory at once."""
TOTAL_BYTES = 20 << 30
RATIO = 200
"""Unpacked to packed, for the whole archive; harmless below RATIO_FREE_BYTES."""
RATIO_FREE_BYTES = 100 << 20

PIECE = 1 << 20
ENCRYPTED = 0x1
"""Flag bit of an entry."""
UTF_8 = 0x800
"""Flag bit of an entry whose name is declared to be UTF-8."""
LOCAL_HEADER_BYTES = 30
END_BYTES = 22
END64_BYTES = 76
"""The zip64 end record and its locator, right before the end record."""
LOCATOR_BYTES = 20
"""Of the two, the locator's."""

PACKINGS = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})
"""Of the others zipfile unpacks a piece whole, be it gigabytes, whatever the entry declares."""
SPECIAL = frozenset({stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK})
"""Kinds of entries that no image is."""

NAMELESS = "(no name)"
"""What an entry without a name is called."""

DAMAGES = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError)
"""What reading a broken entry raises."""

TAR_AT = 257
"""Where a tar archive says that it is one."""
BEGINNINGS = {
    b"Rar!": "a RAR archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"\x1f\x8b": "a gzip file",
    b"BZh": "a bzip2 file",
    b"\xfd7zXZ": "an xz file",
    b"\x28\xb5\x2f\xfd": "a Zstandard file",
    b"\xff\xd8\xff": "a single JPEG image",
    b"\x89PNG": "a single PNG image",
    b"%PDF": "a PDF",
    b"<?xml": "an XML document",
    b"{": "a JSON document",
}


class Member(NamedTuple):
    """An entry and its path inside the archive, with ``/``."""

    entry: zipfile.ZipInfo
    name: str

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix.lower()


def open_zip(archive: Path, shown: str) -> zipfile.ZipFile:
    """Open a zip whose list of entries fits into memory.

    Raises:
        Refused: it is not a zip; says what it is instead.
    """
    size = _directory_size(archive)
    if size > DIRECTORY_BYTES:
        raise Refused(f"{shown}: its list of entries takes {size} bytes; at most {DIRECTORY_BYTES}")
    try:  # zipfile's own NotImplementedError means a compression or a version that it lacks
        return zipfile.ZipFile(archive)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
        raise Refused(f"{shown}: not a zip file ({error}); {_what_it_is(archive)}") from None


def _directory_size(archive: Path) -> int:
    """The bytes that the list of entries takes, by the end record; 0 without such a record."""
    with archive.open("rb") as file:
        length = file.seek(0, 2)
        file.seek(max(length - END_BYTES - END64_BYTES - (1 << 16), 0))
        tail = file.read()
    end = tail.rfind(b"PK\x05\x06", 0, max(len(tail) - END_BYTES + 4, 0))
    if end < 0:
        return 0
    record, locator = tail[end - END64_BYTES : end], tail[end - LOCATOR_BYTES : end]
    if record.startswith(b"PK\x06\x06") and locator.startswith(b"PK\x06\x07"):
        return int.from_bytes(record[40:48], "little")
    return int.from_bytes(tail[end + 12 : end + 16], "little")


def _what_it_is(archive: Path) -> str:
    with archive.open("rb") as file:
        beginning = file.read(512).lstrip()
    if not beginning:
        return "what came is empty"
    if b"<html" in beginning.lower() or beginning.lower().startswith(b"<!doctype html"):
        return "what came is an HTML page: the URL must lead to the file itself"
    if beginning[TAR_AT:].startswith(b"ustar"):
        return "what came is a tar archive"
    kinds = (kind for start, kind in BEGINNINGS.items() if beginning.startswith(start))
    return f"what came is {next(kinds, 'something else, or only a part of a zip')}"


def checked_members(
    zipped: zipfile.ZipFile, archive: Path, shown: str, *, ratio: int = RATIO
) -> list[Member]:
    """Every entry that is no folder and not hidden, once the whole is harmless.

    Raises:
        Refused: too many or too large entries, overlapping or encrypted ones.
    """
    entries = zipped.infolist()
    if len(entries) > ENTRIES:
        raise Refused(f"{shown}: {len(entries)} entries; at most {ENTRIES} are taken")
    _check_sizes(entries, archive.stat().st_size, ratio, shown)
    _check_overlap(entries, zipped.start_dir, shown)
    members = [Member(entry, _name(entry)) for entry in entries if not _is_folder(entry)]
    visible = [member for member in members if not is_hidden(member.name)]
    for member in visible:
        if member.entry.flag_bits & ENCRYPTED:
            name = short(member.name)
            raise Refused(f"{shown}: {name} is encrypted; make the zip without a password")
    return visible


def _check_sizes(entries: list[zipfile.ZipInfo], packed: int, ratio: int, shown: str) -> None:
    """Declared sizes bound the real ones: reading stops there."""
    total = sum(entry.file_size for entry in entries)
    if total > TOTAL_BYTES:
        raise Refused(
            f"{shown}: unpacks to {total / 1e9:.1f} GB; at most {TOTAL_BYTES / 1e9:.1f} GB"
        )
    if total > RATIO_FREE_BYTES and total > ratio * packed:
        raise Refused(
            f"{shown}: unpacks to {total // packed} times its size; at most {ratio} times"
        )


def _check_overlap(entries: list[zipfile.ZipInfo], directory: int, shown: str) -> None:
    """Entries that share bytes are a way to unpack far more than was sent."""
    spans = sorted(
        (entry.header_offset, entry.header_offset + LOCAL_HEADER_BYTES + entry.compress_size)
        for entry in entries
    )
    ends = [*spans, (directory, directory)]
    if any(end > start for (_, end), (start, _) in pairwise(ends)):
        raise Refused(f"{shown}: its entries overlap, as in a zip bomb; make the zip anew")


def _is_folder(entry: zipfile.ZipInfo) -> bool:
    """Asked here, since zipfile's own question fails where there is no name."""
    return entry.filename.endswith("/")


def _name(entry: zipfile.ZipInfo) -> str:
    """The entry's path with ``/``; undeclared UTF-8, as macOS writes it, is recognised."""
    name = entry.filename
    if not entry.flag_bits & UTF_8:
        try:
            name = name.encode("cp437").decode()
        except UnicodeError:
            name = entry.filename
    return unicodedata.normalize("NFC", name.replace("\\", "/")) or NAMELESS


def is_hidden(name: str) -> bool:
    """What macOS adds, and names that begin with a dot."""
    parts = PurePosixPath(name).parts
    return any(part == "__MACOSX" or part.startswith(".") for part in parts if part != "..")


class Unusable(Exception):
    """One entry cannot be taken; the text says why."""


def pieces(zipped: zipfile.ZipFile, member: Member) -> Iterator[bytes]:
    """An entry's content, never more than it declares; a lie ends in a checksum that is wrong.

    Raises:
        Unusable: damaged, a link, or packed in a way that is not supported.
    """
    check_kind(member.entry)
    try:
        with zipped.open(member.entry) as file:
            while piece := file.read(PIECE):
                yield piece
    except (NotImplementedError, RuntimeError) as error:
        raise Unusable(f"packed in a way that is not supported ({error})") from None
    except DAMAGES as error:
        raise Unusable(f"damaged in the archive ({error})") from None


def check_kind(entry: zipfile.ZipInfo) -> None:
    """Raises Unusable: a link, no file, or packed in a way whose cost cannot be bounded."""
    mode = entry.external_attr >> 16
    if stat.S_ISLNK(mode):
        raise Unusable("a link, not a file")
    if stat.S_IFMT(mode) in SPECIAL:
        raise Unusable("a device, a pipe or a socket, not a file")
    if entry.compress_type not in PACKINGS:
        raise Unusable(
            f"packed in a way that is not supported (method {entry.compress_type});"
            " make the zip with deflate, as most programs do"
        )


def write_member(zipped: zipfile.ZipFile, member: Member, path: Path) -> None:
    """Write an entry's content to a file, whole or not at all.

    Raises:
        Unusable: as :func:`pieces`.
    """
    try:
        with path.open("wb") as file:
            file.writelines(pieces(zipped, member))
    except Unusable:
        path.unlink()
        raise
