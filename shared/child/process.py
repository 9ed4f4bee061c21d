"""The child's side: set up the process, read orders, write records."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import io
import logging
import os
import select
import signal
import sys
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from shared.child.records import RECORD_BYTES, AnyRecord, Failed, ImageFailed
from shared.errors import Passing, SettingsError, reason_of, shorten


class RecordWriter:
    """Writes records to the pipe; the process dies if the parent has closed it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, record: AnyRecord) -> None:
        """Write one record atomically; a reason is shortened until there is room for it."""
        line = msgspec.json.encode(record) + b"\n"
        if isinstance(record, Failed | ImageFailed):
            line = _with_room_for_reason(record, line)
        if len(line) > RECORD_BYTES:
            raise ValueError(f"a record of {len(line)} bytes: {line[:200]!r}...")
        os.write(self._descriptor, line)


def _with_room_for_reason(record: Failed | ImageFailed, line: bytes) -> bytes:
    """The record's line; a letter of its reason may take six bytes."""
    letters = len(record.reason)
    while len(line) > RECORD_BYTES:
        letters = letters * 3 // 4
        shorter = replace(record, reason=shorten(record.reason, letters))
        line = msgspec.json.encode(shorter) + b"\n"
    return line


FOR_LIBRARIES = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "TORCHDYNAMO_DISABLE": "1",
}
"""Set in a child's environment before it imports torch and diffusers: quiet, offline, and without
torch's compiler, which bitsandbytes would load for nothing, a fifth of all that is imported."""


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""From glibc's ``malloc.h``."""
KEPT_BYTES = 1 << 30


def keep_freed_memory() -> None:
    """Have memory that tensors on the CPU have freed stay in the process, for the next ones.

    By itself glibc hands large blocks back, and the system zeroes every page anew: without this,
    drawing four images at once takes a seventh longer.
    """
    with contextlib.suppress(AttributeError):  # not glibc
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
        libc.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def give_freed_memory_back() -> None:
    """To the system, until it is needed again."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Run imports without garbage collection, which is a seventh of torch's and diffusers' time.

    Modules leave next to no garbage; what exists at the end is never scanned again.
    """
    gc.disable()
    yield
    gc.freeze()
    gc.enable()


def begin() -> RecordWriter:
    """Set up a child process: die with the parent, ignore Ctrl-C, open the pipe for records."""
    _die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # bitsandbytes warns about a kernel for 4 bits, which is not used here; xformers in each child
    # of a library that does not load, which the trainer says once.
    for name in ("bitsandbytes", "xformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return RecordWriter(int(sys.argv[1]))


def _die_with_parent() -> None:
    """Linux's PR_SET_PDEATHSIG (1); without it an orphan would work on until its next record."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)
        if os.getppid() != int(sys.argv[2]):
            sys.exit(1)  # silently: on a terminal a message would follow the parent's last ones


@contextlib.contextmanager
def ended_with_reason(writer: RecordWriter) -> Iterator[None]:
    """Report to the parent why the child cannot work, and end it.

    A SettingsError of the block is final; after Passing the parent may start another child.
    """
    try:
        yield
    except (SettingsError, Passing) as error:
        is_final = isinstance(error, SettingsError)
        writer.write(Failed(refused=is_final, reason=reason_of(error)))
        sys.exit(0)


def read_order(kind: type[Struct]) -> Any:
    """Wait for the next order on stdin; ends the process when stdin is closed."""
    line = _stdin().readline()
    if not line:
        sys.exit(0)
    return msgspec.json.decode(line, type=kind)


def orders_meanwhile(kind: type[Struct]) -> Iterator[Any]:
    """What has arrived on stdin meanwhile; does not wait."""
    stdin = _stdin()
    while select.select([stdin], [], [], 0)[0] and (line := stdin.readline()):
        yield msgspec.json.decode(line, type=kind)


def _stdin() -> io.RawIOBase:
    """Unbuffered: select does not see what waits in a buffer."""
    assert isinstance(sys.stdin.buffer, io.BufferedReader)  # noqa: S101 - as Python opens it
    raw: io.RawIOBase = sys.stdin.buffer.raw
    return raw
