"""Read a PNG without metadata that is too large: the picture is used all the same."""

from __future__ import annotations

import io
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

SIGNATURE = b"\x89PNG\r\n\x1a\n"
HEAD_BYTES = 8
"""Of a chunk: its length and its kind; 4 more follow its data, a checksum."""
CHUNK_FRAME = 12
MAX_BYTES = 1 << 20
"""Unpacked, of one text; Pillow refuses a PNG with a larger one that is compressed."""
MAX_TOTAL_BYTES = 16 << 20
"""Unpacked, of all texts of a PNG; Pillow refuses a PNG with more than 64 MiB."""
MAX_CHUNKS = 1_000_000
"""A million chunks are eight times those of the largest file that is taken, in pieces of 8 KiB."""
PROFILE = b"iCCP"
"""A colour profile; profiles are not applied."""
TEXTS = frozenset({b"tEXt", b"zTXt", b"iTXt"})


class Chunk(NamedTuple):
    kind: bytes
    start: int
    end: int
    """Exclusive, with its checksum."""


def without_large_metadata(path: Path) -> BinaryIO | None:
    """The file without its colour profile and its large texts; None: it has none, or is no PNG.

    Texts of up to a mebibyte stay: a camera's data may be in one of them.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        if file.read(len(SIGNATURE)) != SIGNATURE:
            return None
        left_out = list(_left_out(file))
    return _Without(path, left_out) if left_out else None


def _left_out(file: BinaryIO) -> Iterator[Chunk]:
    total = 0
    for chunk in _chunks(file):
        if chunk.kind == PROFILE:
            yield chunk
        elif chunk.kind in TEXTS:
            size = _text_bytes(file, chunk)
            if size > MAX_BYTES or total + size > MAX_TOTAL_BYTES:
                yield chunk
            else:
                total += size


def _chunks(file: BinaryIO) -> Iterator[Chunk]:
    """The chunks of a PNG until its end, or until it makes no sense any more."""
    size, start = file.seek(0, io.SEEK_END), len(SIGNATURE)
    for _ in range(MAX_CHUNKS):
        file.seek(start)
        head = file.read(HEAD_BYTES)
        end = start + CHUNK_FRAME + int.from_bytes(head[:4], "big")
        if len(head) < HEAD_BYTES or end > size:
            return
        yield Chunk(head[4:], start, end)
        start = end


def _text_bytes(file: BinaryIO, chunk: Chunk) -> int:
    """How long a text is when it is unpacked; any number above the limit if it is longer."""
    length = chunk.end - chunk.start - CHUNK_FRAME
    if chunk.kind == b"tEXt" or length > MAX_BYTES:
        return length
    file.seek(chunk.start + HEAD_BYTES)
    _, _, rest = file.read(length).partition(b"\0")
    if chunk.kind == b"iTXt":
        is_packed, rest = rest[:1] == b"\1", rest[2:]
        if not is_packed:
            return length
        _, _, rest = rest.partition(b"\0")  # after the language
        _, _, rest = rest.partition(b"\0")  # after the translated keyword
    else:
        rest = rest[1:]  # after the method
    try:
        return len(zlib.decompressobj().decompress(rest, MAX_BYTES + 1))
    except zlib.error:
        return length


class _Without(io.BufferedIOBase, BinaryIO):
    """A file without some of its parts."""

    def __init__(self, path: Path, left_out: list[Chunk]) -> None:
        self._file = path.open("rb")
        size = self._file.seek(0, io.SEEK_END)
        edges = [0, *(edge for chunk in left_out for edge in (chunk.start, chunk.end)), size]
        parts = [(start, end) for start, end in zip(edges[::2], edges[1::2], strict=True)]
        self._parts = [part for part in parts if part[0] < part[1]]
        self._begins = [0]
        """Where each part begins in what is read, and the end of the last."""
        for start, end in self._parts:
            self._begins.append(self._begins[-1] + end - start)
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._begins[-1]}[whence]
        self._at = max(base + offset, 0)
        return self._at

    def read(self, size: int | None = -1, /) -> bytes:
        left = self._begins[-1] - self._at
        wanted = left if size is None or size < 0 else min(size, left)
        pieces = []
        while wanted > 0:
            number = bisect_right(self._begins, self._at) - 1
            within = self._at - self._begins[number]
            start, end = self._parts[number]
            self._file.seek(start + within)
            piece = self._file.read(min(wanted, end - start - within))
            if not piece:
                break
            pieces.append(piece)
            self._at += len(piece)
            wanted -= len(piece)
        return b"".join(pieces)

    def close(self) -> None:
        self._file.close()
        super().close()
