"""The process of a service: imports, limits, memory, its name on the bus, stop signals."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import os
import resource
import signal
import socket
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any, Protocol, TypeVar

from shared.concurrency import cancelled

T = TypeVar("T")
DESCRIPTORS = 65_536
"""Enough connections for one process; more than the 1024 that many systems begin with."""
M_MMAP_THRESHOLD, LARGE_BLOCK = -3, 1 << 20
"""From glibc's ``malloc.h``, and the bytes from which a block is the system's own."""


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Run imports without garbage collection, which is a seventh of torch's and diffusers' time.

    Modules leave next to no garbage; what exists at the end is never scanned again.
    """
    gc.disable()
    yield
    gc.freeze()
    gc.enable()


def allow_many_connections() -> None:
    """Raise the soft limit of open files, as far as the hard one allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def return_large_blocks() -> None:
    """Have large blocks of memory go back to the system when they are freed.

    By itself glibc keeps them once one was freed, and bodies of 20 MB leave holes in what it keeps.
    """
    with contextlib.suppress(AttributeError):  # not glibc
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK)


def stop_on_signals() -> asyncio.Event:
    """An event that SIGTERM and SIGINT set."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


def source_of(service: str) -> str:
    """The service's name on the bus: ``trainer/host-123``."""
    return f"{service}/{socket.gethostname()}-{os.getpid()}"


async def or_stopped(work: Coroutine[Any, Any, T], stop: asyncio.Event) -> T | None:
    """Await a coroutine, cancelled when ``stop`` is set; None: it was cancelled."""
    task, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((task, stopping), return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        await cancelled(task)
        await cancelled(stopping)


class Closable(Protocol):
    async def close(self) -> None: ...


C = TypeVar("C", bound=Closable)


@contextlib.asynccontextmanager
async def closing(thing: C) -> AsyncIterator[C]:
    """Close a bus or a store at the end of the block."""
    try:
        yield thing
    finally:
        await thing.close()
