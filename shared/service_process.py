"""The life of a service's process: who it is, when it stops, and what it closes."""

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
    """For a process's imports: without the search for garbage, a seventh of torch's and diffusers'.

    Modules leave next to none, and what is there at the end is never searched again.
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
    """Who we are on the bus: ``trainer/host-123``."""
    return f"{service}/{socket.gethostname()}-{os.getpid()}"


async def or_stopped(doing: Coroutine[Any, Any, T], stop: asyncio.Event) -> T | None:
    """Do something until it is done or ``stop`` is set, whichever comes first."""
    task, stopping = asyncio.create_task(doing), asyncio.create_task(stop.wait())
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
    """Close a bus or a store at the end of a block."""
    try:
        yield thing
    finally:
        await thing.close()
