"""Read a ``.ckpt``, torch's zip format, without unpickling it."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from typing import IO, Any, BinaryIO

import numpy as np

from services.fetcher.parsing.models.pickle_machine import ADVICE, StoredTensor, run
from services.fetcher.parsing.zip_reader import READ_ERRORS, UnusableEntry, check_kind
from shared.errors import Refused

MAX_PICKLE_BYTES = 4 << 20
"""Stable Diffusion 1.5's list of tensors takes less than one."""
MAX_ENTRIES = 100_000
MAX_STORAGE_BYTES = 512 << 20
"""Of a storage that is read whole, because a tensor picks single elements from it."""
MAX_SKIPPED_BYTES = 64 << 30
"""Of all data that is read and dropped to reach tensors inside their storages."""
MAX_TENSOR_BYTES = 16 << 30
"""Of all tensors together; several may use the same few bytes."""
BYTE_ORDER_BYTES = 16
MAX_NESTING = 4
"""Of dicts around the state dict; training frameworks write one."""
CHUNK_BYTES = 1 << 20


class Checkpoint:
    """The tensors of an open ``.ckpt``."""

    def __init__(self, zipped: zipfile.ZipFile, folder: str, value: Any) -> None:
        self.tensors = tensors_of(value)
        self.metadata = modelspec_of(value)
        """What a safetensors file has in its header."""
        self._zipped = zipped
        self._folder = folder

    def copy(self, tensor: StoredTensor, out: BinaryIO) -> None:
        """Write a tensor's elements, row by row.

        Raises:
            Refused: the tensor's data is missing or damaged.
        """
        try:
            with _open_entry(self._zipped, f"{self._folder}/data/{tensor.storage}") as data:
                chunks = _stream(data, tensor) if tensor.is_contiguous else _gather(data, tensor)
                out.writelines(chunks)
        except (KeyError, RuntimeError, *READ_ERRORS) as error:
            raise Refused(f"the .ckpt's data is damaged ({error}); {ADVICE}") from None


def _stream(data: Any, tensor: StoredTensor) -> Iterable[bytes]:
    data.seek(tensor.offset * tensor.item_bytes)
    left = tensor.bytes
    while left:
        chunk = data.read(min(left, CHUNK_BYTES))
        if not chunk:
            raise EOFError("a tensor is cut off")
        left -= len(chunk)
        yield chunk


def _gather(data: Any, tensor: StoredTensor) -> Iterable[bytes]:
    """Read a tensor that is a view, for instance a transposed one."""
    size = tensor.storage_bytes
    if max(size, tensor.bytes) > MAX_STORAGE_BYTES:
        raise EOFError(f"a tensor picks {tensor.bytes} bytes from {size}")
    raw = data.read(size)
    if len(raw) != size:
        raise EOFError("a tensor is cut off")
    storage = np.frombuffer(raw, dtype=f"V{tensor.item_bytes}")
    view = np.lib.stride_tricks.as_strided(
        storage[tensor.offset :],
        tensor.shape,
        tuple(stride * tensor.item_bytes for stride in tensor.strides),
        writeable=False,
    )
    yield view.tobytes()


def is_checkpoint(zipped: zipfile.ZipFile) -> bool:
    """Whether a zip was written by torch."""
    return any(name.endswith("/data.pkl") for name in zipped.namelist())


def read_checkpoint(zipped: zipfile.ZipFile) -> Checkpoint:
    """Read a ``.ckpt``'s index: which tensors it has, and where their data is.

    Raises:
        Refused: not torch's zip format, damaged, too large, or without a dict of tensors.
    """
    try:
        folder, pickled = _read_pickle(zipped)
        return Checkpoint(zipped, folder, run(pickled))
    except (KeyError, RuntimeError, *READ_ERRORS) as error:
        raise Refused(f"the .ckpt is damaged ({error}); {ADVICE}") from None


def _read_pickle(zipped: zipfile.ZipFile) -> tuple[str, bytes]:
    names = zipped.namelist()
    pickles = [name for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1 or len(names) > MAX_ENTRIES:
        raise Refused(f"the .ckpt is not as torch writes them; {ADVICE}")
    folder = pickles[0].partition("/")[0]
    order = f"{folder}/byteorder"
    if order in names and _read_entry(zipped, order, BYTE_ORDER_BYTES).strip() != b"little":
        raise Refused(f"the .ckpt has big-endian numbers; {ADVICE}")
    return folder, _read_entry(zipped, pickles[0], MAX_PICKLE_BYTES)


def _read_entry(zipped: zipfile.ZipFile, name: str, limit: int) -> bytes:
    """Read a whole entry, but never more than the limit, whatever size it declares."""
    if zipped.getinfo(name).file_size > limit:
        raise Refused(f"the .ckpt's {name} takes more than {limit} bytes; {ADVICE}")
    with _open_entry(zipped, name) as file:
        return file.read(limit + 1)


def _open_entry(zipped: zipfile.ZipFile, name: str) -> IO[bytes]:
    try:
        check_kind(zipped.getinfo(name))
    except UnusableEntry as error:
        raise Refused(f"the .ckpt's {name} is {error}; {ADVICE}") from None
    return zipped.open(name)


def tensors_of(value: Any) -> dict[str, StoredTensor]:
    """The tensors of a state dict, which may be nested in a training checkpoint.

    Raises:
        Refused: there are none, or one reaches outside its storage.
    """
    state = _state_dict(value)
    tensors = {name: each for name, each in state.items() if isinstance(each, StoredTensor)}
    if not tensors:
        raise Refused(f"the .ckpt holds no dict of tensors; {ADVICE}")
    if unnamed := next((name for name in tensors if not isinstance(name, str)), None):
        raise Refused(f"the .ckpt has a tensor called {unnamed}; expected names; {ADVICE}")
    outside = next((name for name, tensor in tensors.items() if not tensor.fits), None)
    if outside:
        raise Refused(f"the .ckpt is damaged ({outside} reaches outside its data); {ADVICE}")
    if sum(tensor.bytes for tensor in tensors.values()) > MAX_TENSOR_BYTES:
        raise Refused(f"the .ckpt's tensors take more than {MAX_TENSOR_BYTES} bytes; {ADVICE}")
    if sum(tensor.skipped_bytes for tensor in tensors.values()) > MAX_SKIPPED_BYTES:
        raise Refused(f"the .ckpt's tensors lie too far apart; {ADVICE}")
    return tensors


def _state_dict(value: Any) -> dict[Any, Any]:
    """The innermost ``state_dict``; the depth is limited, since a dict may contain itself."""
    for _ in range(MAX_NESTING):
        if not isinstance(value, dict) or not isinstance(value.get("state_dict"), dict):
            break
        value = value["state_dict"]
    return value if isinstance(value, dict) else {}


def modelspec_of(value: Any) -> dict[str, str]:
    """The ModelSpec metadata beside the state dict, which our own checkpoints have."""
    texts = value.get("modelspec") if isinstance(value, dict) else None
    pairs = texts.items() if isinstance(texts, dict) else ()
    return {name: text for name, text in pairs if isinstance(name, str) and isinstance(text, str)}
