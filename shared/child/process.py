"""The child's side: set the process up, read orders, write records."""

from __future__ import annotations

import ctypes
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

from shared.child.records import RECORD_BYTES, AnyRecord


class RecordWriter:
    """The child's side of the pipe: says records, and dies when nobody listens."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, record: AnyRecord) -> None:
        """One record, by one atomic write."""
        line = msgspec.json.encode(record) + b"\n"
        if len(line) > RECORD_BYTES:
            raise ValueError(f"a record of {len(line)} bytes: {line[:200]!r}...")
        os.write(self._descriptor, line)


QUIET_AND_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}
"""For a child's environment, before it imports diffusers and transformers."""


def begin() -> RecordWriter:
    """Set a child process up: die with the parent, leave Ctrl-C to it, and get a mouth."""
    _die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # bitsandbytes complains of a kernel for 4 bits, which nobody here asks for.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    return RecordWriter(int(sys.argv[1]))


def _die_with_parent() -> None:
    """Linux's PR_SET_PDEATHSIG (1); without it an orphan trains on until its next record."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)
        if os.getppid() != int(sys.argv[2]):
            sys.exit(1)  # without a word: on a terminal it would follow the parent's last ones


def read_order(kind: type[Struct]) -> Any:
    """Wait for the next order on stdin; ends the process when there will be none."""
    line = _stdin().readline()
    if not line:
        sys.exit(0)
    return msgspec.json.decode(line, type=kind)


def orders_meanwhile(kind: type[Struct]) -> Iterator[Any]:
    """What more has come on stdin; waits for nothing."""
    stdin = _stdin()
    while select.select([stdin], [], [], 0)[0] and (line := stdin.readline()):
        yield msgspec.json.decode(line, type=kind)


def _stdin() -> io.RawIOBase:
    """Without a buffer: what waits in one is not seen by select."""
    assert isinstance(sys.stdin.buffer, io.BufferedReader)  # noqa: S101 - as Python opens it
    raw: io.RawIOBase = sys.stdin.buffer.raw
    return raw
