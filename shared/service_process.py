"""The process of a service: its imports, its name on the bus, its stop signals."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any, Protocol, TypeVar

from shared.concurrency import cancelled

T = TypeVar("T")


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Run imports without garbage collection, which is a seventh of torch's and diffusers' time.

    Modules leave next to no garbage; what exists at the end is never scanned again.
    """
    gc.disable()
    yield
    gc.freeze()
    gc.enable()


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
