"""The process of a service: limits, memory, its name on the bus, stop signals."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import faulthandler
import os
import resource
import signal
import socket
import sys
import threading
import traceback
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import Any, Protocol, TypeVar

import structlog

from shared.concurrency import cancelled, uninterrupted
from shared.telemetry import tracing

STOP_SECONDS = 28.0
"""From SIGTERM to the exit at the latest; container engines commonly kill after 30."""
LEAVE_SECONDS = 2.0
"""How long tasks, and then threads, may go on once the service has ended."""

log = structlog.get_logger()
T = TypeVar("T")
DESCRIPTORS = 65_536
"""Enough connections for one process; more than the 1024 that many systems begin with."""
M_MMAP_THRESHOLD, LARGE_BLOCK = -3, 1 << 20
"""From glibc's ``malloc.h``, and the bytes from which a block is the system's own."""


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run a service to its end; as ``asyncio.run``, but never waits for what nothing can stop.

    Threads cannot be cancelled, and Python waits for them without end.
    """
    with asyncio.Runner() as runner:
        executor = ThreadPoolExecutor()
        runner.get_loop().set_default_executor(executor)
        try:
            runner.run(main)
        except BaseException:
            runner.run(_leave(executor, status=1))
            raise
        runner.run(_leave(executor, status=0))


async def _leave(executor: ThreadPoolExecutor, *, status: int) -> None:
    """Wait a little for tasks and threads; if some go on, exit here and now."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=LEAVE_SECONDS)
    tracing.flush()
    executor.shutdown(wait=False, cancel_futures=True)
    deadline = monotonic() + LEAVE_SECONDS
    while (threads := _threads()) and monotonic() < deadline:  # noqa: ASYNC110 - no event for it
        await asyncio.sleep(0.01)
    if not threads and all(task.done() for task in tasks):
        return
    log.warning("threads_left_running", threads=[thread.name for thread in threads])
    if status:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _threads() -> list[threading.Thread]:
    """Those that Python would wait for."""
    main = threading.main_thread()
    return [each for each in threading.enumerate() if not each.daemon and each is not main]


class _Watchdog:
    """Exits the process when its time is over.

    It needs neither the event loop nor Python's lock: either may be what hangs.
    """

    def __init__(self) -> None:
        self._begun = False
        self._longer: list[float] = []
        """When each block that may take longer ends at the latest."""

    def begin(self) -> None:
        """Allow :data:`STOP_SECONDS` from now; called again it changes nothing."""
        if not self._begun:
            self._begun = True
            self._allow()

    @contextlib.contextmanager
    def put_off(self, seconds: float) -> Iterator[None]:
        """Allow so many seconds more for the block; those of several blocks run side by side."""
        self._longer.append(end := monotonic() + seconds)
        self._allow()
        try:
            yield
        finally:
            self._longer.remove(end)
            self._allow()

    def _allow(self) -> None:
        if self._begun:
            more = max(self._longer, default=0.0) - monotonic()
            faulthandler.dump_traceback_later(STOP_SECONDS + max(more, 0.0), exit=True)


_watchdog = _Watchdog()


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
    """An event that SIGTERM and SIGINT set; the process then ends in time, whatever it is doing.

    It has :data:`STOP_SECONDS`; work that may take longer says so by :func:`exit_put_off`.
    """
    stop = asyncio.Event()

    def told_to_stop(number: signal.Signals) -> None:
        if not stop.is_set():
            log.info("stopping", signal=number.name)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told_to_stop, number)
        # Called at once, also while the event loop is busy.
        signal.signal(number, lambda *_: _watchdog.begin())
    return stop


def exit_put_off(seconds: float) -> contextlib.AbstractContextManager[None]:
    """Allow a process that was told to stop so many seconds more, for the block."""
    return _watchdog.put_off(seconds)


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
        await uninterrupted(thing.close())
