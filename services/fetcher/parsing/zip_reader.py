"""Open and read an untrusted zip: sizes are limited, entries are checked before they are read."""

from __future__ import annotations

import re
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

from services.fetcher.model_files import LFS_ADVICE, LFS_POINTER
from shared.dataset.captions import looks_western
from shared.dataset.manifest import short
from shared.errors import Refused

MAX_ENTRIES = 50_000
MAX_DIRECTORY_BYTES = 16 << 20
"""Size of the central directory, which zipfile reads into memory at once."""
MAX_TOTAL_BYTES = 20 << 30
MAX_RATIO = 200
"""Unpacked to packed, for the whole archive."""
RATIO_FROM_BYTES = 100 << 20
"""The ratio is not checked for archives that unpack to less."""

CHUNK_BYTES = 1 << 20
ENCRYPTED_FLAG = 0x1
"""Flag bit of an entry."""
UTF_8_FLAG = 0x800
"""Flag bit of an entry whose name is declared as UTF-8."""
LOCAL_HEADER = b"PK\x03\x04"
LOCAL_HEADER_BYTES = 30
END_BYTES = 22
END64_BYTES = 76
"""The zip64 end record and its locator, right before the end record."""
LOCATOR_BYTES = 20
"""The zip64 locator alone."""

COMPRESSION_METHODS = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})
"""With any other method zipfile may unpack gigabytes at once, whatever size the entry declares."""
SPECIAL_FILES = frozenset({stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK})

WRAP = 1 << 32
"""Offsets without zip64 are modulo this."""
UNIX = frozenset({3, 19})
"""Systems where a backslash is a letter of a name: Unix, macOS."""
BACKSLASH = re.compile(r"\\(?![()])")
r"""One that stands between folders: not ``\(``, which captions have. In a zip that was made on Unix
with real slashes, none does."""
BACKSLASH_IN_UNKNOWN = re.compile(r"(?<![^\x00-\x7f])\\(?![()])")
"""The same in an unknown encoding, where it may be the second byte of a Japanese or Chinese letter,
so that no byte above 127 may stand before it."""
LEADING_BYTE = re.compile(r"[^\x00-\x7f]\\")
"""What is then most likely such a letter."""
EXTRA_HEAD = struct.Struct("<HH")
UNICODE_PATH = 0x7075
"""An extra field with a name in UTF-8."""

NAMELESS = "(no name)"
"""Shown for an entry without a name."""

READ_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError)
"""Raised by zipfile when an entry is damaged."""

TAR_MAGIC_OFFSET = 257
"""Where a tar archive has the signature ``ustar``."""
SIGNATURES = {
    LFS_POINTER: LFS_ADVICE,
    b"GGUF": "a GGUF file, whose weights are quantized for inference",
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
    is_name_unreadable: bool = False
    """Its encoding is unknown, and what it was decoded to looks like no text."""

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix.lower()


def open_zip(archive: Path, shown: str) -> zipfile.ZipFile:
    """Open a zip whose central directory fits into memory; ``shown`` is its name in messages.

    Raises:
        Refused: not a zip (the message says what it looks like instead), or too large a directory.
    """
    size = _end_record(archive).directory_bytes
    if size > MAX_DIRECTORY_BYTES:
        raise Refused(
            f"{shown}: its list of entries takes {size} bytes; at most {MAX_DIRECTORY_BYTES}"
        )
    try:  # NotImplementedError: a compression or a version that zipfile does not support
        return zipfile.ZipFile(archive)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
        raise Refused(f"{shown}: not a zip file ({error}); {_describe_content(archive)}") from None


class _End(NamedTuple):
    """Where the central directory is, according to the end record."""

    directory_bytes: int = 0
    """0 without an end record."""
    directory_at: int | None = None
    """In 32 bits; None: unknown, or in the 64 bits of a zip64 record."""


def _end_record(archive: Path) -> _End:
    with archive.open("rb") as file:
        length = file.seek(0, 2)
        file.seek(max(length - END_BYTES - END64_BYTES - (1 << 16), 0))
        tail = file.read()
    end = tail.rfind(b"PK\x05\x06", 0, max(len(tail) - END_BYTES + 4, 0))
    if end < 0:
        return _End()
    record, locator = tail[end - END64_BYTES : end], tail[end - LOCATOR_BYTES : end]
    if record.startswith(b"PK\x06\x06") and locator.startswith(b"PK\x06\x07"):
        return _End(int.from_bytes(record[40:48], "little"))
    size, at = struct.unpack_from("<II", tail, end + 12)
    return _End(size, at)


def _describe_content(archive: Path) -> str:
    with archive.open("rb") as file:
        beginning = file.read(512).lstrip()
    if not beginning:
        return "what came is empty"
    if b"<html" in beginning.lower() or beginning.lower().startswith(b"<!doctype html"):
        return "what came is an HTML page: the URL must lead to the file itself"
    if beginning[TAR_MAGIC_OFFSET:].startswith(b"ustar"):
        return "what came is a tar archive"
    kinds = (kind for start, kind in SIGNATURES.items() if beginning.startswith(start))
    return f"what came is {next(kinds, 'something else, or only a part of a zip')}"


def checked_members(
    zipped: zipfile.ZipFile, archive: Path, shown: str, *, ratio: int = MAX_RATIO
) -> list[Member]:
    """All entries except folders and hidden files, after checking the whole archive.

    Raises:
        Refused: too many entries, too large, overlapping or encrypted ones.
    """
    entries = zipped.infolist()
    if len(entries) > MAX_ENTRIES:
        raise Refused(f"{shown}: {len(entries)} entries; at most {MAX_ENTRIES} are taken")
    _check_sizes(entries, archive.stat().st_size, ratio, shown)
    _restore_offsets(entries, zipped.start_dir, archive, shown)
    _check_overlap(entries, zipped.start_dir, shown)
    has_slashes = any("/" in entry.filename for entry in entries)
    members = [Member(entry, *_decoded_name(entry, has_slashes=has_slashes)) for entry in entries]
    visible = [
        member for member in members if not member.name.endswith("/") and not is_hidden(member.name)
    ]
    for member in visible:
        if member.entry.flag_bits & ENCRYPTED_FLAG:
            name = short(member.name)
            raise Refused(f"{shown}: {name} is encrypted; make the zip without a password")
    return visible


def _check_sizes(entries: list[zipfile.ZipInfo], packed: int, ratio: int, shown: str) -> None:
    """Declared sizes are enough: reading an entry stops at its declared size."""
    total = sum(entry.file_size for entry in entries)
    if total > MAX_TOTAL_BYTES:
        raise Refused(
            f"{shown}: unpacks to {total / 1e9:.1f} GB; at most {MAX_TOTAL_BYTES / 1e9:.1f} GB"
        )
    if total > RATIO_FROM_BYTES and total > ratio * packed:
        raise Refused(
            f"{shown}: unpacks to {total // packed} times its size; at most {ratio} times"
        )


def _restore_offsets(
    entries: list[zipfile.ZipInfo], directory: int, archive: Path, shown: str
) -> None:
    """Tell the true offsets in a zip of over 4 GiB without zip64, as macOS's Finder makes it.

    It keeps offsets modulo 4 GiB. The entries are in the order of the directory, so each begins at
    the next place after the one before that its offset allows, and where a header is. zipfile takes
    the missing multiple of 4 GiB for something before the zip, and adds it to every offset.
    """
    said = _end_record(archive).directory_at
    if said is None or directory == said or (directory - said) % WRAP:
        return
    end = 0
    with archive.open("rb") as file:
        for entry in entries:
            at = end + (entry.header_offset - end) % WRAP
            while at < directory and not _has_header(file, at):
                at += WRAP
            entry.header_offset, end = at, at + LOCAL_HEADER_BYTES + entry.compress_size
    if end > directory:
        raise Refused(
            f"{shown}: a zip of more than 4 GB that was made without zip64, and whose entries"
            " cannot be told apart; make several zips of less than 4 GB, or one with another"
            " program"
        )


def _has_header(file: BinaryIO, at: int) -> bool:
    file.seek(at)
    return file.read(len(LOCAL_HEADER)) == LOCAL_HEADER


def _check_overlap(entries: list[zipfile.ZipInfo], directory: int, shown: str) -> None:
    """Entries that share bytes unpack to far more than was sent."""
    spans = sorted(
        (entry.header_offset, entry.header_offset + LOCAL_HEADER_BYTES + entry.compress_size)
        for entry in entries
    )
    ends = [*spans, (directory, directory)]
    if any(end > start for (_, end), (start, _) in pairwise(ends)):
        raise Refused(f"{shown}: its entries overlap, as in a zip bomb; make the zip anew")


def _decoded_name(entry: zipfile.ZipInfo, *, has_slashes: bool) -> tuple[str, bool]:
    """The entry's path with ``/``, and whether it is in an unknown encoding and looks like no text.

    ``has_slashes`` is whether any entry of the archive has a ``/``. Names that are not declared as
    UTF-8 are mostly UTF-8 all the same, as macOS writes it; otherwise their encoding is unknown.
    """
    name, separator, is_unreadable = entry.filename, BACKSLASH, False
    if not entry.flag_bits & UTF_8_FLAG:
        if declared := _unicode_path(entry.extra, entry.orig_filename.encode("cp437")):
            name = declared.split("\0")[0]
        else:
            try:
                name = name.encode("cp437").decode()
            except UnicodeError:
                separator = BACKSLASH_IN_UNKNOWN
                is_unreadable = not looks_western(name) or bool(LEADING_BYTE.search(name))
    if not (entry.create_system in UNIX and has_slashes):
        name = separator.sub("/", name)
    return unicodedata.normalize("NFC", name) or NAMELESS, is_unreadable


def _unicode_path(extra: bytes, raw_name: bytes) -> str:
    """The name in the Unicode path field, if it belongs to this name; else nothing."""
    checked, at = b"\1" + zlib.crc32(raw_name).to_bytes(4, "little"), 0
    while at + EXTRA_HEAD.size <= len(extra):
        kind, length = EXTRA_HEAD.unpack_from(extra, at)
        at += EXTRA_HEAD.size + length
        if kind == UNICODE_PATH and extra.startswith(checked, at - length, at):
            return extra[at - length + len(checked) : at].decode(errors="ignore")
    return ""


def is_hidden(name: str) -> bool:
    """Whether a path is metadata of macOS, or has a part that begins with a dot."""
    parts = PurePosixPath(name).parts
    return any(part == "__MACOSX" or part.startswith(".") for part in parts if part != "..")


class UnusableEntry(Exception):
    """An entry that is skipped; the text says why."""


def read_chunks(zipped: zipfile.ZipFile, member: Member) -> Iterator[bytes]:
    """Read an entry, at most its declared size; a false size ends in a wrong checksum.

    Raises:
        UnusableEntry: damaged, a link, or compressed with an unsupported method.
    """
    check_kind(member.entry)
    try:
        with zipped.open(member.entry) as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk
    except (NotImplementedError, RuntimeError) as error:
        raise UnusableEntry(f"packed in a way that is not supported ({error})") from None
    except READ_ERRORS as error:
        raise UnusableEntry(f"damaged in the archive ({error})") from None


def check_kind(entry: zipfile.ZipInfo) -> None:
    """Raises UnusableEntry: a link, a special file, or a method whose memory use has no limit."""
    mode = entry.external_attr >> 16
    if stat.S_ISLNK(mode):
        raise UnusableEntry("a link, not a file")
    if stat.S_IFMT(mode) in SPECIAL_FILES:
        raise UnusableEntry("a device, a pipe or a socket, not a file")
    if entry.compress_type not in COMPRESSION_METHODS:
        raise UnusableEntry(
            f"packed in a way that is not supported (method {entry.compress_type});"
            " make the zip with deflate, as most programs do"
        )


def write_member(zipped: zipfile.ZipFile, member: Member, path: Path) -> None:
    """Write an entry to a file; a partial file is removed.

    Raises:
        UnusableEntry: as for :func:`read_chunks`.
    """
    try:
        with path.open("wb") as file:
            file.writelines(read_chunks(zipped, member))
    except UnusableEntry:
        path.unlink()
        raise
