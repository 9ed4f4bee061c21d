"""Read and write safetensors files without torch: parse headers, copy tensors byte for byte."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from io import BytesIO
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
from msgspec import Struct

from services.fetcher.model_files import LFS_ADVICE, LFS_POINTER
from shared.dataset.manifest import short
from shared.errors import Refused

MAX_HEADER_BYTES = 32 << 20
LENGTH_BYTES = 8
MAX_DIMENSIONS = 8
"""Of a tensor; the product of millions of sizes would take hours."""
CHUNK_BYTES = 1 << 20
METADATA = "__metadata__"
NAMED = 3
"""Tensors that a warning names."""

ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "C64": 8,
    "F8_E4M3": 1, "F8_E5M2": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1, "F8_E8M0": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
BUFFERS = ("position_ids", "attn_mask", "num_batches_tracked")
"""Ends of names of tensors that are no weights."""
SUB_BYTE = frozenset({"F4", "F6_E2M3", "F6_E3M2"})
"""Types whose elements are smaller than a byte."""
NUMPY_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4"}
TRAINABLE = ("F64", "F32", "F16", "BF16")
"""Types of weights that training can start from."""


class TensorEntry(Struct, frozen=True, kw_only=True):
    """A tensor's entry in a header; offsets are in bytes from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


class TensorSource(Struct, frozen=True, kw_only=True):
    """A tensor that can be copied to a file, from any source."""

    dtype: str
    shape: tuple[int, ...]
    copy: Callable[[BinaryIO], None]
    """Writes its bytes to a file."""

    @property
    def bytes(self) -> int:
        return prod(self.shape) * ITEM_BYTES[self.dtype]


def read_values(source: TensorSource) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The elements, (N,), as fp32, of a small tensor of numbers of 16 bits or more."""
    buffer = BytesIO()
    source.copy(buffer)
    raw = buffer.getvalue()
    if source.dtype == "BF16":  # the upper half of an fp32
        return (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")
    return np.frombuffer(raw, NUMPY_DTYPES[source.dtype]).astype(np.float32)


def looks_like_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(LENGTH_BYTES), "little")
        return 0 < length <= MAX_HEADER_BYTES and file.read(1) == b"{"


def read_header(path: Path, shown: str) -> dict[str, TensorEntry]:
    """The tensors of a safetensors file, by name.

    Raises:
        Refused: not a safetensors file, damaged or truncated; names ``shown``.
    """
    try:
        return _read_header(path, shown)
    except (OSError, ValueError, RecursionError) as error:
        refuse_lfs_pointer(path, shown)
        raise Refused(f"{shown}: not a whole safetensors file ({error})") from None


def ignored_warnings(names: Collection[str], shown: str) -> list[str]:
    """At most one warning, which names tensors that no network has a place for."""
    if not names:
        return []
    first = ", ".join(short(name) for name in sorted(names)[:NAMED])
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return [f"{shown}: ignored, as Stable Diffusion has no such tensors: {first}{more}"]


def refuse_lfs_pointer(path: Path, shown: str) -> None:
    """Raises Refused if Git LFS has left its pointer in place of the file."""
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise Refused(f"{shown}: {LFS_ADVICE}")


def check_type(dtype: str, shown: str) -> None:
    """Check that training can start from weights of this type.

    Raises:
        Refused: it cannot; names ``shown``.
    """
    if dtype not in TRAINABLE:
        raise Refused(
            f"{shown} is of type {dtype}; expected {', '.join(TRAINABLE[:-1])} or {TRAINABLE[-1]}:"
            " smaller types are for inference alone; give the model's fp16 or fp32 weights"
        )


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata in the header of a file that :func:`read_header` has accepted."""
    texts = _decode_header(path)[0].get(METADATA)
    pairs = texts.items() if isinstance(texts, dict) else ()
    return {name: text for name, text in pairs if isinstance(text, str)}


def _decode_header(path: Path) -> tuple[dict[str, Any], int]:
    """The unchecked header, and its length in bytes."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(LENGTH_BYTES), "little")
        if length > MAX_HEADER_BYTES:
            raise ValueError(f"a header of {length} bytes")
        return msgspec.json.decode(file.read(length), type=dict[str, Any]), length


def _read_header(path: Path, shown: str) -> dict[str, TensorEntry]:
    raw, length = _decode_header(path)
    raw.pop(METADATA, None)
    entries = msgspec.convert(raw, dict[str, TensorEntry])
    room = path.stat().st_size - LENGTH_BYTES - length
    for name, entry in entries.items():
        if entry.dtype in SUB_BYTE:
            check_type(entry.dtype, f"{shown}: {name}")
        _check(name, entry, room)
    _check_overlap(entries)
    return entries


def _check_overlap(entries: Mapping[str, TensorEntry]) -> None:
    """Tensors that share bytes would be written out as far more data than was sent."""
    spans = sorted((entry.data_offsets, name) for name, entry in entries.items())
    for ((_, end), _), ((start, _), name) in pairwise(spans):
        if end > start:
            raise ValueError(f"{name} overlaps another tensor")


def _check(name: str, entry: TensorEntry, room: int) -> None:
    start, end = entry.data_offsets
    if len(entry.shape) > MAX_DIMENSIONS:
        raise ValueError(f"{name} has {len(entry.shape)} dimensions")
    if entry.dtype not in ITEM_BYTES or any(size < 0 for size in entry.shape):
        raise ValueError(f"{name} has type {entry.dtype} and shape {entry.shape}")
    if not 0 <= start <= end <= room:
        raise ValueError(f"{name} is cut off")
    if end - start != prod(entry.shape) * ITEM_BYTES[entry.dtype]:
        raise ValueError(f"{name} has {end - start} bytes, which is not its shape")


def tensor_sources(path: Path, entries: Mapping[str, TensorEntry]) -> dict[str, TensorSource]:
    """The tensors of a safetensors file, to be copied."""
    with path.open("rb") as file:
        begin = LENGTH_BYTES + int.from_bytes(file.read(LENGTH_BYTES), "little")

    def copier(entry: TensorEntry) -> Callable[[BinaryIO], None]:
        start, end = entry.data_offsets
        return lambda out: _copy_range(path, begin + start, end - start, out)

    return {
        name: TensorSource(dtype=entry.dtype, shape=entry.shape, copy=copier(entry))
        for name, entry in entries.items()
    }


def _copy_range(path: Path, start: int, length: int, out: BinaryIO) -> None:
    with path.open("rb") as file:
        file.seek(start)
        while length > 0:
            chunk = file.read(min(length, CHUNK_BYTES))
            if not chunk:
                raise EOFError(f"{path.name} is cut off")
            out.write(chunk)
            length -= len(chunk)


def write_safetensors(
    path: Path,
    tensors: Mapping[str, TensorSource],
    keepalive: Callable[[], None],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a safetensors file; larger element types come first, so that all data is aligned.

    ``keepalive`` is called after every tensor.
    """
    order = sorted(tensors, key=lambda name: (-ITEM_BYTES[tensors[name].dtype], name))
    header: dict[str, Any] = {METADATA: {"format": "pt", **(metadata or {})}}
    end = 0
    for name in order:
        start, end = end, end + tensors[name].bytes
        header[name] = TensorEntry(
            dtype=tensors[name].dtype, shape=tensors[name].shape, data_offsets=(start, end)
        )
    text = msgspec.json.encode(header)
    text += b" " * (-len(text) % LENGTH_BYTES)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(LENGTH_BYTES, "little") + text)
        for name in order:
            tensors[name].copy(file)
            keepalive()
