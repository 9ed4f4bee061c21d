"""How large the picture in an AVIF file is coded, which may not be what its header says.

The decoder scales it to the header's size without a word, so that a few bytes become a picture of
any size. libheif, which reads HEIC, refuses such a file by itself.

Sources: ISO/IEC 14496-12 (boxes), AV1 Bitstream & Decoding Process Specification, 5.3 and 5.5.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

SEQUENCE_HEADER = 1
"""Type of an OBU, the unit of an AV1 stream."""
MAX_OBUS = 16
"""Looked at; the sequence header is the first, or the one behind a delimiter."""


def coded_size(avif: bytes) -> tuple[int, int] | None:
    """Width and height of the main picture; None: not told where it usually is, as in a grid."""
    try:
        meta = next(content for kind, content in _boxes(avif) if kind == b"meta")
        boxes = dict(_boxes(meta[4:]))
        at, length = _place(boxes[b"iloc"], _main_item(boxes[b"pitm"]))
        return _size_in_obus(avif[at : at + length] if length else avif[at:])
    except (LookupError, StopIteration, struct.error, ValueError):
        return None


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of each box; of those of 4 GiB and more, nothing."""
    at = 0
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + length if length else len(data)
        if end < at + 8:
            return
        yield kind, data[at + 8 : end]
        at = end


def _main_item(pitm: bytes) -> int:
    return _number(pitm[4:], 4 if pitm[0] else 2)


def _place(iloc: bytes, wanted: int) -> tuple[int, int]:
    """Where an item begins in the file, and how many bytes of it are there together."""
    version, sizes = iloc[0], [iloc[4] >> 4, iloc[4] & 15, iloc[5] >> 4]
    offset_bytes, length_bytes, base_bytes = sizes
    index_bytes = iloc[5] & 15 if version else 0
    name_bytes = 4 if version == 2 else 2  # noqa: PLR2004 - as the standard has it
    reader = _Bytes(iloc, 6)
    for _ in range(reader.take(name_bytes)):
        name = reader.take(name_bytes)
        method = reader.take(2) & 15 if version else 0
        reader.take(2)
        base = reader.take(base_bytes)
        extents = []
        for _ in range(reader.take(2)):
            reader.take(index_bytes)
            extents.append((base + reader.take(offset_bytes), reader.take(length_bytes)))
        if name == wanted and method == 0:
            return extents[0]
    raise LookupError(wanted)


class _Bytes:
    def __init__(self, data: bytes, at: int) -> None:
        self._data, self._at = data, at

    def take(self, count: int) -> int:
        """The next number; 0 if it has no bytes."""
        self._at += count
        return _number(self._data[self._at - count :], count)


def _number(data: bytes, count: int) -> int:
    if len(data) < count:
        raise ValueError("cut off")
    return int.from_bytes(data[:count], "big")


def _size_in_obus(data: bytes) -> tuple[int, int] | None:
    at = 0
    for _ in range(MAX_OBUS):
        head = data[at]
        at += 2 if head & 4 else 1  # with an extension
        if not head & 2:  # without a length it is the last
            return _size_in_sequence(data[at:]) if head >> 3 & 15 == SEQUENCE_HEADER else None
        length, at = _leb128(data, at)
        if head >> 3 & 15 == SEQUENCE_HEADER:
            return _size_in_sequence(data[at : at + length])
        at += length
    return None


def _leb128(data: bytes, at: int) -> tuple[int, int]:
    """A number in groups of seven bits, and where it ends."""
    value = 0
    for index in range(8):
        value |= (data[at + index] & 127) << 7 * index
        if not data[at + index] & 128:
            return value, at + index + 1
    raise ValueError("no end")


def _size_in_sequence(data: bytes) -> tuple[int, int] | None:
    bits = _Bits(data)
    bits.take(4)  # the profile; whether it is a still picture
    if bits.take(1):  # a reduced header
        bits.take(5)
    elif not _passed_operating_points(bits):
        return None
    width_bits, height_bits = bits.take(4) + 1, bits.take(4) + 1
    return bits.take(width_bits) + 1, bits.take(height_bits) + 1


def _passed_operating_points(bits: _Bits) -> bool:
    """False: it has timing, which a film has."""
    if bits.take(1):
        return False
    has_delay = bits.take(1)
    for _ in range(bits.take(5) + 1):
        bits.take(12)
        if bits.take(5) > 7:  # noqa: PLR2004 - levels from 4.0 on have a tier
            bits.take(1)
        if has_delay and bits.take(1):
            bits.take(4)
    return True


class _Bits:
    def __init__(self, data: bytes) -> None:
        self._value, self._left = int.from_bytes(data[:64], "big"), min(len(data), 64) * 8

    def take(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise ValueError("cut off")
        return self._value >> self._left & ((1 << count) - 1)
