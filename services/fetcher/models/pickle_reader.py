"""Read a ``.ckpt``, torch's zip format, without unpickling it."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from typing import IO, Any, BinaryIO

import numpy as np

from services.fetcher.models.pickle_machine import ADVICE, Stored, run
from services.fetcher.zip_reader import READ_ERRORS, UnusableEntry, check_kind
from shared.errors import Refused

PICKLE_BYTES = 4 << 20
"""Stable Diffusion 1.5's list of tensors takes less than one."""
ENTRIES = 100_000
STORAGE_BYTES = 512 << 20
"""Of one that is read whole, because a tensor picks single elements from it."""
SKIPPED_BYTES = 64 << 30
"""Of all that must be read over, to come to tensors that begin inside their storages."""
TENSOR_BYTES = 16 << 30
"""Of all tensors: several may show the same few bytes."""
BYTE_ORDER_BYTES = 16
LEVELS = 4
"""Of dicts around the state dict, of which training frameworks write one."""
PIECE = 1 << 20


class Checkpoint:
    """The tensors of an open ``.ckpt``."""

    def __init__(self, zipped: zipfile.ZipFile, folder: str, value: Any) -> None:
        self.tensors = tensors_of(value)
        self.metadata = texts_of(value)
        """What a safetensors file would say in its header."""
        self._zipped = zipped
        self._folder = folder

    def copy(self, tensor: Stored, out: BinaryIO) -> None:
        """Write a tensor's elements, row by row.

        Raises:
            Refused: the tensor's data is missing or damaged.
        """
        try:
            with _opened(self._zipped, f"{self._folder}/data/{tensor.storage}") as data:
                chunks = _stream(data, tensor) if tensor.is_contiguous else _gather(data, tensor)
                out.writelines(chunks)
        except (KeyError, RuntimeError, *READ_ERRORS) as error:
            raise Refused(f"the .ckpt's data is damaged ({error}); {ADVICE}") from None


def _stream(data: Any, tensor: Stored) -> Iterable[bytes]:
    data.seek(tensor.offset * tensor.item_bytes)
    left = tensor.bytes
    while left:
        piece = data.read(min(left, PIECE))
        if not piece:
            raise EOFError("a tensor is cut off")
        left -= len(piece)
        yield piece


def _gather(data: Any, tensor: Stored) -> Iterable[bytes]:
    """A tensor that is a view, a transposed one for instance."""
    size = tensor.storage_bytes
    if max(size, tensor.bytes) > STORAGE_BYTES:
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
    """Whether a zip is one that torch wrote."""
    return any(name.endswith("/data.pkl") for name in zipped.namelist())


def read_checkpoint(zipped: zipfile.ZipFile) -> Checkpoint:
    """Read which tensors a ``.ckpt`` has and where they lie.

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
    if len(pickles) != 1 or len(names) > ENTRIES:
        raise Refused(f"the .ckpt is not as torch writes them; {ADVICE}")
    folder = pickles[0].partition("/")[0]
    order = f"{folder}/byteorder"
    if order in names and _content(zipped, order, BYTE_ORDER_BYTES).strip() != b"little":
        raise Refused(f"the .ckpt has big-endian numbers; {ADVICE}")
    return folder, _content(zipped, pickles[0], PICKLE_BYTES)


def _content(zipped: zipfile.ZipFile, name: str, most: int) -> bytes:
    """An entry read whole, but never more than is allowed, whatever it declares."""
    if zipped.getinfo(name).file_size > most:
        raise Refused(f"the .ckpt's {name} takes more than {most} bytes; {ADVICE}")
    with _opened(zipped, name) as file:
        return file.read(most + 1)


def _opened(zipped: zipfile.ZipFile, name: str) -> IO[bytes]:
    try:
        check_kind(zipped.getinfo(name))
    except UnusableEntry as error:
        raise Refused(f"the .ckpt's {name} is {error}; {ADVICE}") from None
    return zipped.open(name)


def tensors_of(value: Any) -> dict[str, Stored]:
    """The tensors of a state dict, which may lie in ``state_dict`` of a training checkpoint.

    Raises:
        Refused: there are none, or one reaches outside its storage.
    """
    state = _state_dict(value)
    tensors = {name: each for name, each in state.items() if isinstance(each, Stored)}
    if not tensors:
        raise Refused(f"the .ckpt holds no dict of tensors; {ADVICE}")
    if unnamed := next((name for name in tensors if not isinstance(name, str)), None):
        raise Refused(f"the .ckpt has a tensor called {unnamed}; expected names; {ADVICE}")
    outside = next((name for name, tensor in tensors.items() if not tensor.fits), None)
    if outside:
        raise Refused(f"the .ckpt is damaged ({outside} reaches outside its data); {ADVICE}")
    if sum(tensor.bytes for tensor in tensors.values()) > TENSOR_BYTES:
        raise Refused(f"the .ckpt's tensors take more than {TENSOR_BYTES} bytes; {ADVICE}")
    if sum(tensor.read_over for tensor in tensors.values()) > SKIPPED_BYTES:
        raise Refused(f"the .ckpt's tensors lie too far apart; {ADVICE}")
    return tensors


def _state_dict(value: Any) -> dict[Any, Any]:
    """The dict of tensors inside others; one may hold itself, so the search has an end."""
    for _ in range(LEVELS):
        if not isinstance(value, dict) or not isinstance(value.get("state_dict"), dict):
            break
        value = value["state_dict"]
    return value if isinstance(value, dict) else {}


def texts_of(value: Any) -> dict[str, str]:
    """The ModelSpec texts that lie beside the state dict, as our own checkpoints have them."""
    texts = value.get("modelspec") if isinstance(value, dict) else None
    pairs = texts.items() if isinstance(texts, dict) else ()
    return {name: text for name, text in pairs if isinstance(name, str) and isinstance(text, str)}
