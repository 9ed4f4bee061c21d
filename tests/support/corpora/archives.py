"""Hostile archives, made by a zip writer that can write any field of an entry."""

# ruff: noqa: RUF001 - look-alikes are the point

from __future__ import annotations

import bz2
import io
import lzma
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

LOCAL, CENTRAL, END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
END64, LOCATOR64, DESCRIPTOR = b"PK\x06\x06", b"PK\x06\x07", b"PK\x07\x08"
STORED, DEFLATED, BZIP2, LZMA = 0, 8, 12, 14
ENCRYPTED, HAS_DESCRIPTOR, STRONG, UTF_8 = 0x1, 0x8, 0x41, 0x800
MIB = 1 << 20
GOOD = "good.png"
"""The valid entry beside a bad one."""
CONTENT = b"\x89PNG, or so it says"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An entry; fields that are None get their true values."""

    name: bytes = b"bad.png"
    packed: bytes = CONTENT
    method: int = STORED
    flags: int = UTF_8
    size: int | None = None
    packed_size: int | None = None
    crc: int | None = None
    mode: int = 0
    """Unix file type and permissions."""
    offset: int | None = None
    """In the central directory."""
    version: int = 20
    extra: bytes = b""
    """In the central directory; for instance a zip64 field."""
    comment: bytes = b""
    after: bytes = b""
    """Follows the data; for instance a data descriptor."""
    local_name: bytes | None = None
    local_magic: bytes = LOCAL
    local_size: int | None = None

    def local(self) -> bytes:
        fields = self._fields(self._said if self.local_size is None else self.local_size)
        name = self.name if self.local_name is None else self.local_name
        return self.local_magic + fields + struct.pack("<HH", len(name), 0) + name

    def central(self, at: int) -> bytes:
        lengths = (len(self.name), len(self.extra), len(self.comment))
        at = at if self.offset is None else self.offset
        rest = struct.pack("<HHHHHII", *lengths, 0, 0, self.mode << 16, at)
        made_by_unix = struct.pack("<H", 3 << 8 | 20)
        head = CENTRAL + made_by_unix + self._fields(self._said)
        return head + rest + self.name + self.extra + self.comment

    @property
    def _said(self) -> int:
        return len(self._content) if self.size is None else self.size

    @property
    def _content(self) -> bytes:
        return zlib.decompress(self.packed, -15) if self.method == DEFLATED else self.packed

    def _fields(self, said: int) -> bytes:
        crc = zlib.crc32(self._content) if self.crc is None else self.crc
        packed = len(self.packed) if self.packed_size is None else self.packed_size
        time, date = 0, 33
        head = (self.version, self.flags, self.method, time, date)
        return struct.pack("<HHHHHIII", *head, crc, packed, said)


def archive(
    entries: Iterable[Entry],
    *,
    before: bytes = b"",
    ahead_of_end: bytes = b"",
    comment: bytes = b"",
    disks: tuple[int, int] = (0, 0),
    directory_at: int | None = None,
    directory_bytes: int | None = None,
) -> bytes:
    """A zip of these entries; end record fields that are None get their true values."""
    body, directory, entries = bytearray(before), bytearray(), list(entries)
    for entry in entries:
        directory += entry.central(len(body))
        body += entry.local() + entry.packed + entry.after
    at = len(body) if directory_at is None else directory_at
    size = len(directory) if directory_bytes is None else directory_bytes
    counts = (len(entries) & 0xFFFF,) * 2
    end = END + struct.pack("<HHHHIIH", *disks, *counts, size, at, len(comment)) + comment
    return bytes(body + directory) + ahead_of_end + end


def beside_a_good_one(bad: Entry) -> bytes:
    return archive([Entry(name=GOOD.encode()), bad])


def deflated(content: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(content) + packer.flush()


@cache
def zeros(mebibytes: int) -> bytes:
    """So many MiB of zeros, deflated."""
    return deflated(bytes(mebibytes * MIB))


def hollow(mebibytes: int, name: bytes = b"bad.png") -> Entry:
    """A deflated entry of so many MiB of zeros, made without unpacking it again."""
    return Entry(
        name=name, method=DEFLATED, packed=zeros(mebibytes), size=mebibytes * MIB, crc=0,
    )  # fmt: skip


def descriptor(crc: int, size: int) -> bytes:
    """A data descriptor, which follows data of unknown size."""
    return DESCRIPTOR + struct.pack("<III", crc, size, size)


def zip64(**fields: int) -> bytes:
    """An extra field with 64-bit sizes and offset, in the format's order."""
    data = b"".join(struct.pack("<Q", value) for value in fields.values())
    return struct.pack("<HH", 1, len(data)) + data


def end64(*, directory_bytes: int, directory_at: int, count: int = 1, disks: int = 1) -> bytes:
    """The zip64 end record and its locator."""
    sizes = (0, 0, count, count, directory_bytes, directory_at)
    record = END64 + struct.pack("<QHHIIQQQQ", 44, 45, 45, *sizes)
    return record + LOCATOR64 + struct.pack("<IQI", 0, directory_at + directory_bytes, disks)


# --- The whole archive is refused --------------------------------------------------------------


class Whole(NamedTuple):
    """An archive that is refused, and a part of the reason."""

    make: Callable[[], bytes]
    reason: str


def overlapping(count: int) -> bytes:
    """Fifield's zip bomb: each entry's data quotes the local headers of all that follow it."""
    kernel, size, crc = zeros(2), 2 * MIB, 0
    quoted, packed = b"", kernel
    entries: list[tuple[Entry, int]] = []
    for number in reversed(range(count)):
        whole = Entry(
            name=b"%06d.png" % number, method=DEFLATED, packed=packed, size=size, crc=crc,
        )  # fmt: skip
        quoted = whole.local()
        entries.append((whole, len(quoted) + len(packed)))
        block = b"\0" + struct.pack("<HH", len(quoted), len(quoted) ^ 0xFFFF) + quoted
        packed, size = block + packed, size + len(quoted)
    first, length = entries[-1]
    directory = b"".join(entry.central(length - own) for entry, own in entries)
    end = struct.pack("<HHHHIIH", 0, 0, count, count, len(directory), length, 0)
    return first.local() + first.packed + directory + END + end


def sharing_one_body(count: int) -> bytes:
    bodies = [hollow(2, b"%06d.png" % number) for number in range(count)]
    directory = b"".join(body.central(0) for body in bodies)
    data = bodies[0].local() + bodies[0].packed
    end = struct.pack("<HHHHIIH", 0, 0, count, count, len(directory), len(data), 0)
    return data + directory + END + end


def with_long_comments(total: int) -> list[Entry]:
    comment = b"x" * 65_535
    return [Entry(comment=comment)] * (total // len(comment) + 1)


def hiding_a_long_list() -> bytes:
    """A zip64 record with a short length and no locator, so that readers ignore it."""
    record = end64(directory_bytes=1, directory_at=0).replace(LOCATOR64, b"PK\x06\x00")
    plain = archive(with_long_comments(17 * MIB))
    size, at = struct.unpack("<II", plain[-10:-2])
    moved = struct.pack("<II", size + len(record), at)
    return plain[:-22] + record + plain[-22:-10] + moved + plain[-2:]


def tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        file.addfile(tarfile.TarInfo("../../evil.png"))
    return buffer.getvalue()


NO_ZIP: Mapping[str, tuple[bytes, str]] = {
    "nothing": (b"", "empty"),
    "blanks": (b" \n" * 400, "empty"),
    "rar": (b"Rar!\x1a\x07\x01\x00" + bytes(90), "a RAR archive"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(90), "a 7z archive"),
    "gzip": (b"\x1f\x8b\x08" + bytes(90), "a gzip file"),
    "bzip2": (bz2.compress(b"x"), "a bzip2 file"),
    "xz": (lzma.compress(b"x"), "an xz file"),
    "zstandard": (b"\x28\xb5\x2f\xfd" + bytes(90), "a Zstandard file"),
    "tar": (tar(), "a tar archive"),
    "html": (b"<!doctype HTML><p>Sign in", "an HTML page"),
    "html after a comment": (b"<!-- hello --><html lang=en>", "an HTML page"),
    "xml": (b"<?xml version='1.0'?><Error/>", "an XML document"),
    "json": (b'{"error": "not found"}', "a JSON document"),
    "jpeg": (b"\xff\xd8\xff\xe0" + bytes(90), "a single JPEG image"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(90), "a single PNG image"),
    "pdf": (b"%PDF-1.7", "a PDF"),
    "program": (b"MZ" + bytes(90), "something else, or only a part of a zip"),
    "end record alone, cut": (END + bytes(17), "something else, or only a part of a zip"),
}
"""What users and servers send instead of a zip, and how the message names it."""

REFUSED: Mapping[str, Whole] = {
    "a flat bomb": Whole(
        lambda: archive(hollow(64, b"%d.png" % number) for number in range(2)),
        "times its size; at most 200 times",
    ),
    "a size of exabytes": Whole(
        lambda: archive([Entry(size=0xFFFFFFFF, extra=zip64(size=1 << 60))]),
        "unpacks to 1152921504.6 GB; at most",
    ),
    "a size that looks negative": Whole(
        lambda: archive([Entry(size=0xFFFFFFFF, extra=zip64(size=(1 << 64) - 1))]),
        "unpacks to",
    ),
    "sizes of 4 GiB in plain fields": Whole(
        lambda: archive([Entry(name=b"%d.png" % n, size=0xFFFFFFFE) for n in range(6)]),
        "unpacks to 25.8 GB; at most",
    ),
    "a packed size past the end": Whole(
        lambda: archive([Entry(packed_size=0x7FFFFFFF)]), "its entries overlap"
    ),
    "a packed size of exabytes": Whole(
        lambda: archive(
            [
                Entry(packed_size=0xFFFFFFFF, extra=zip64(packed_size=1 << 62)),
            ]
        ),
        "its entries overlap",
    ),
    "an entry past the end": Whole(
        lambda: archive([Entry(offset=0x7FFFFFF0)]), "its entries overlap"
    ),
    "an entry exabytes away": Whole(
        lambda: archive([Entry(offset=0xFFFFFFFF, extra=zip64(offset=1 << 63))]),
        "its entries overlap",
    ),
    "entries that quote one another": Whole(lambda: overlapping(40), "its entries overlap"),
    "entries that share one body": Whole(lambda: sharing_one_body(40), "its entries overlap"),
    "one entry 50,001 times": Whole(
        lambda: archive([Entry(packed=b"")] * 50_001), "50001 entries; at most 50000"
    ),
    "a list of 17 MiB": Whole(
        lambda: archive(with_long_comments(17 * MIB)), "its list of entries takes"
    ),
    "a list of 17 MiB that a false record hides": Whole(
        hiding_a_long_list, "its list of entries takes"
    ),
    "a zip64 list of exabytes": Whole(
        lambda: archive([Entry()], ahead_of_end=end64(directory_bytes=1 << 60, directory_at=0)),
        "its list of entries takes",
    ),
    "a list before the beginning": Whole(
        lambda: archive([Entry()], directory_bytes=4000), "Bad offset for central directory"
    ),
    "a list that is none": Whole(
        lambda: archive([Entry()], directory_bytes=20), "Truncated central directory"
    ),
    "several disks": Whole(
        lambda: archive([Entry()], ahead_of_end=end64(directory_bytes=53, directory_at=0, disks=3)),
        "span multiple disks",
    ),
    "a comment that quotes an end record": Whole(
        lambda: archive([Entry()], comment=END + b"x" * 9), "File is not a zip file"
    ),
    "a version to come": Whole(lambda: archive([Entry(version=990)]), "zip file version"),
    "a name that is no UTF-8": Whole(
        lambda: archive([Entry(name=b"\xff\xfe.png")]), "'utf-8' codec can't decode"
    ),
    "an extra field that is cut off": Whole(
        lambda: archive([Entry(extra=struct.pack("<HH", 1, 99))]), "Corrupt extra field"
    ),
    "a zip64 field without its numbers": Whole(
        lambda: archive([Entry(size=0xFFFFFFFF, extra=zip64())]), "not a zip file"
    ),
    "an encrypted entry": Whole(
        lambda: archive([Entry(flags=ENCRYPTED)]), "bad.png is encrypted; make the zip without"
    ),
    "a strongly encrypted entry": Whole(
        lambda: archive([Entry(flags=STRONG)]), "bad.png is encrypted; make the zip without"
    ),
    "an encrypted entry with a name of 60,000 letters": Whole(
        lambda: archive([Entry(flags=ENCRYPTED, name=b"a" * 60_000 + b".png")]), ".png is encrypted"
    ),
}


# --- One entry is skipped, the others are used ---------------------------------------------------


class One(NamedTuple):
    """A bad entry that is skipped, and a part of the reason."""

    make: Callable[[], Entry]
    reason: str


NO_IMAGE = "neither an image"


def unpacked_by_the_piece(packed: bytes, method: int) -> Entry:
    """Declares a small size; unpacking a whole chunk gives far more."""
    return Entry(packed=packed, method=method, size=1000, crc=0)


def lzma_bomb(mebibytes: int) -> bytes:
    packing = {"id": lzma.FILTER_LZMA1, "dict_size": 1 << 16, "mode": lzma.MODE_FAST}
    raw = lzma.compress(bytes(mebibytes * MIB), lzma.FORMAT_RAW, filters=[packing])
    properties = struct.pack("<BI", 93, 1 << 16)
    return struct.pack("<BBH", 9, 4, len(properties)) + properties + raw


def nested(depth: int) -> bytes:
    """Nested zips, with zeros inside the innermost."""
    inner = archive([hollow(64)])
    for _ in range(depth):
        inner = archive([Entry(name=b"inner.zip", packed=deflated(inner), method=DEFLATED)])
    return inner


SPARED: Mapping[str, One] = {
    "zips in zips": One(lambda: Entry(name=b"bad.zip", packed=nested(6)), NO_IMAGE),
    "a program": One(lambda: Entry(name=b"bad.exe"), NO_IMAGE),
    "two suffixes": One(lambda: Entry(name=b"bad.png.exe"), NO_IMAGE),
    "no suffix": One(lambda: Entry(name=b"bad"), NO_IMAGE),
    "a blank after the suffix": One(lambda: Entry(name=b"bad.png "), NO_IMAGE),
    "a suffix of another alphabet": One(lambda: Entry(name="bad.рng".encode()), NO_IMAGE),
    "a full-width dot": One(lambda: Entry(name="bad．png".encode()), NO_IMAGE),
    "a picture in letters": One(lambda: Entry(name=b"bad.svg"), NO_IMAGE),
    "no name": One(lambda: Entry(name=b""), NO_IMAGE),
    "a zero byte as its name": One(lambda: Entry(name=b"\0bad.png"), NO_IMAGE),
    "a suffix after a zero byte": One(lambda: Entry(name=b"bad.exe\0.png"), NO_IMAGE),
    "a name that is two dots": One(lambda: Entry(name=b".."), NO_IMAGE),
    "a name of 60,000 letters": One(
        lambda: Entry(name=b"a" * 60_000 + b".png"), "its name takes more than 1024 bytes"
    ),
    "30,000 folders": One(
        lambda: Entry(name=b"a/" * 30_000 + b"bad.png"), "its name takes more than 1024 bytes"
    ),
    "the good one's name": One(
        lambda: Entry(name=GOOD.encode()), "the archive has this name twice"
    ),
    "a symbolic link": One(
        lambda: Entry(mode=stat.S_IFLNK | 0o777, packed=b"/etc/passwd"), "a link, not a file"
    ),
    "a link as a caption": One(
        lambda: Entry(name=b"bad.txt", mode=stat.S_IFLNK | 0o777, packed=b"/etc/passwd"),
        "a link, not a file",
    ),
    "a block device": One(lambda: Entry(mode=stat.S_IFBLK | 0o666), "a device, a pipe or a socket"),
    "a terminal": One(lambda: Entry(mode=stat.S_IFCHR | 0o666), "a device, a pipe or a socket"),
    "a pipe": One(lambda: Entry(mode=stat.S_IFIFO | 0o666), "a device, a pipe or a socket"),
    "a socket": One(lambda: Entry(mode=stat.S_IFSOCK | 0o666), "a device, a pipe or a socket"),
    "a packing from the future": One(lambda: Entry(method=97), "packed in a way that is not"),
    "bzip2 that declares little": One(
        lambda: unpacked_by_the_piece(bz2.compress(bytes(112 * MIB), 9), BZIP2),
        "packed in a way that is not",
    ),
    "LZMA that declares little": One(
        lambda: unpacked_by_the_piece(lzma_bomb(112), LZMA), "packed in a way that is not"
    ),
    "deflate that declares little": One(
        lambda: replace(hollow(64), size=1000), "damaged in the archive (Bad CRC-32"
    ),
    "deflate that ends early": One(
        lambda: Entry(method=DEFLATED, packed=zeros(16)[:999], size=16 * MIB, crc=0),
        "damaged in the archive",
    ),
    "deflate that is noise": One(
        lambda: Entry(method=DEFLATED, packed=b"\xff" * 99, size=500, crc=0),
        "damaged in the archive",
    ),
    "a wrong checksum": One(lambda: Entry(crc=7), "damaged in the archive (Bad CRC-32"),
    "less declared than there is": One(lambda: Entry(size=3), "damaged in the archive"),
    "another name in its own header": One(
        lambda: Entry(local_name=b"evil.png"), "damaged in the archive (File name in directory"
    ),
    "a header that is none": One(
        lambda: Entry(local_magic=b"PK\x03\x05"), "damaged in the archive (Bad magic number"
    ),
    "patched data": One(lambda: Entry(flags=0x20), "packed in a way that is not"),
    "257 MiB": One(
        lambda: Entry(method=DEFLATED, packed=bytes(2 * MIB), size=257 * MIB, crc=0),
        "269484032 bytes; at most 268435456 are taken",
    ),
    "a caption of 1 MiB": One(
        lambda: Entry(name=b"bad.txt", packed=bytes(MIB)), "1048576 bytes; at most 65536 are taken"
    ),
}  # fmt: skip


# --- Unusual but accepted, under a generated name ----------------------------------------------

TAKEN_NAMES: Sequence[str] = (
    "../../evil.png", "..\\..\\evil.png", "a/../../../evil.png", "./../evil.png",
    "/etc/evil.png", "//server/share/evil.png", "\\\\server\\share\\evil.png",
    "C:\\evil.png", "C:evil.png", "\\\\?\\C:\\evil.png", "%2e%2e/evil.png", "%2e%2e%2fevil.png",
    "．．／evil.png", "․․/evil.png", "‥/evil.png", "~/evil.png",
    "~root/evil.png", "$HOME/evil.png", "`touch evil`.png", "; rm -rf evil;.png", "-rf.png",
    "--evil.png", "evil\n.png", "evil\x1b[2J.png", "evil\u202egnp.png", "evil\u200b.png",
    "evil*?.png",
    "CON.png", "NUL.png", "aux.png", "COM1.png", "LPT1.png", "con .png", "evil.png:stream.png",
    "a" * 300 + ".png", "ﬀ.png", "evil.PNG", "evil.jPeG", "manifest.json.png",
    "a/" * 400 + "evil.png", "evil.png\0.exe",
)  # fmt: skip
"""Path traversal, names with a meaning to shells or Windows, and names that collide."""

HIDDEN_NAMES = ("....//evil.png", "..%c0%afevil.png", "..∕evil.png", "...png", "a/.../evil.png")

SAME_NAME: Mapping[str, tuple[str, str]] = {
    "composed and decomposed": (
        unicodedata.normalize("NFC", "Bär.png"),
        unicodedata.normalize("NFD", "Bär.png"),
    ),
}
"""Two spellings that count as the same name."""

OTHER_NAME: Mapping[str, tuple[str, str]] = {
    "large and small letters": ("a.png", "A.PNG"),
    "sharp s": ("straße.png", "STRASSE.png"),
    "dotless i": ("ı.png", "I.png"),
    "a file that is a folder": ("a.png", "a.png/b.png"),
    "a folder that is a file": ("a.png/b.png", "a.png"),
    "look-alikes": ("evil.png", "еvil.png"),
    "a leading point-slash": ("a.png", "./a.png"),
    "both slashes, on Unix": ("a/b.png", "a\\b.png"),
}
"""Names that collide on some file systems, but count as different."""

TAKEN: Mapping[str, Callable[[], bytes]] = {
    "a comment of 64 KiB": lambda: archive([Entry()], comment=b"x" * 65_535),
    "a program before it": lambda: archive([Entry()], before=b"MZ" + bytes(5000)),
    "a program before it, uncounted": lambda: b"MZ" + bytes(5000) + archive([Entry()]),
    "a data descriptor": lambda: archive([
        Entry(flags=HAS_DESCRIPTOR, after=descriptor(zlib.crc32(CONTENT), len(CONTENT)))
    ]),
    "a data descriptor that lies": lambda: archive([
        Entry(flags=HAS_DESCRIPTOR, after=descriptor(1, 1 << 31))
    ]),
    "a header of its own that lies": lambda: archive([Entry(local_size=1 << 31)]),
    "more declared than there is": lambda: archive([Entry(size=1 << 20)]),
    "zip64 fields for no reason": lambda: archive([
        Entry(size=0xFFFFFFFF, extra=zip64(size=len(CONTENT)))
    ]),
    "a disk number": lambda: archive([Entry()], disks=(7, 7)),
    "folders without end": lambda: archive([
        *(Entry(name=b"%d/" % number, packed=b"") for number in range(5000)), Entry()
    ]),
    "what is hidden": lambda: archive([
        Entry(name=b"__MACOSX/._bad.png"), Entry(name=b".hidden/bad.png", flags=0),
        Entry(name=b"a/.bad.png"), Entry(name=b".encrypted.png", flags=ENCRYPTED), Entry(),
    ]),
}  # fmt: skip
"""Unusual archives with exactly one image, ``bad.png``, which is accepted."""


def honest() -> bytes:
    """A valid archive, to be truncated."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(GOOD, CONTENT * 9)
        file.writestr("good.txt", "a caption")
    return buffer.getvalue()
