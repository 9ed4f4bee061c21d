"""Have strangers' files read in a child process, one for each job, within limits.

A child that meets a limit, or that a decoder's fault ends, ends nothing else: the order is refused,
and names the file that was being read.
"""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import structlog

from services.fetcher.limits import Limits, over_memory, over_time
from services.fetcher.order import RESULT_BYTES, ParsingOrder, Task
from shared.child.parent import Child, ChildDied, start_ready
from shared.child.records import AnyRecord, Done, FinalRecord, Progress, Reading
from shared.concurrency import in_thread
from shared.errors import EveryDreamError, Passing, Refused, reason_of
from shared.scratch import scratch_folder

CHILD = "services.fetcher.parsing.child"
CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)
RESULT = "result.json"
PROCESS_CLOCK = 2
"""Of Linux's ``clock_getcpuclockid``: the time of all threads, by the scheduler."""
LOG_BYTES = 16 << 10
"""The most that one child may print to our log."""
SYSTEM_LIMITS_MEMORY = sys.platform == "linux"
"""macOS takes RLIMIT_AS and does not hold a process to it."""
PAUSE_SECONDS = 0.2
"""Until the next child is started, whose imports would slow down the end of a job's staging."""
WATCH_SECONDS = 0.5
"""Between two looks at a child's memory, where the system does not limit it, and its time."""
BRIEF_SECONDS = 1.0
"""Of processor time for an order, before the child gives way to everything else."""
LOW_PRIORITY = 10
"""As niceness: it gets a tenth of what a service gets beside it. With less, an honest picture that
takes half a minute would show no sign of life for too long on a full machine."""

log = structlog.get_logger()
T = TypeVar("T")


class Parser:
    """Starts the children; one waits with its imports done."""

    def __init__(self, scratch: Path) -> None:
        """``scratch`` is for the results' files."""
        self._scratch = scratch
        self._standby: asyncio.Task[Child] | None = None
        self._keeps_standby = False
        self._said_online = False

    async def prepare(self) -> None:
        """Have a child ready, from now on always. Raises as :func:`start_ready`."""
        self._keeps_standby = True
        self._begin_next()
        if self._standby:
            await asyncio.shield(self._standby)

    async def close(self) -> None:
        """End the child that waits."""
        standby, self._standby, self._keeps_standby = self._standby, None, False
        if standby and (child := await _started(standby)):
            await child.kill()

    @asynccontextmanager
    async def reader(self) -> AsyncIterator[Reader]:
        """Reads one job's files for the block, in a child that starts with the first of them."""
        async with scratch_folder(self._scratch, "parsing") as folder:
            reader = Reader(self.take, folder)
            try:
                yield reader
            finally:
                await reader.close()
                asyncio.get_running_loop().call_later(PAUSE_SECONDS, self._begin_next)

    async def take(self) -> Child:
        """The child that waits, or else a new one. Raises as :func:`start_ready`."""
        standby, self._standby = self._standby, None
        child = await _started(standby) if standby else None
        if child is None or not child.alive:
            child = await start_ready(CHILD, log_bytes=LOG_BYTES)
        if not child.offline and not self._said_online:
            self._said_online = True
            log.warning("parser_has_network", reason="this system gives no empty network namespace")
        return child

    def _begin_next(self) -> None:
        standby = self._standby
        has_failed = standby is not None and standby.done() and standby.exception() is not None
        if self._keeps_standby and (standby is None or has_failed):
            self._standby = asyncio.create_task(start_ready(CHILD, log_bytes=LOG_BYTES))


async def _started(standby: asyncio.Task[Child]) -> Child | None:
    """The child, once it is ready; None: it could not be started."""
    try:
        return await standby
    except (ChildDied, EveryDreamError, OSError) as error:
        log.warning("parser_not_started", reason=reason_of(error))
        return None


class Reader:
    """One job's child. After a death there is no other: its job has failed, or is tried again."""

    def __init__(self, take: Callable[[], Awaitable[Child]], folder: Path) -> None:
        """``folder`` is for the results' files."""
        self._take = take
        self._result = folder / RESULT
        self._child: Child | None = None

    async def close(self) -> None:
        """End the child, whatever it is doing."""
        child, self._child = self._child, None
        if child:
            await child.kill()

    async def parse(
        self,
        task: Task,
        limits: Limits,
        result: type[T],
        *,
        keepalive: Callable[[], None],
        on_progress: Callable[..., Any] = lambda **_: None,
    ) -> T:
        """Have an order carried out.

        Args:
            task: the order.
            limits: what it may take.
            result: the type of its result.
            keepalive: called at every sign of life.
            on_progress: takes numbers for ``/status``.

        Raises:
            Refused: the files cannot be used; names the file.
            Passing: the child was killed, or the disk has no room.
        """
        if self._child is None:
            self._child = await self._take()
        order = ParsingOrder(task=task, limits=limits, result=str(self._result))
        last = await _carried_out(self._child, order, keepalive, on_progress)
        if not isinstance(last, Done):
            raise last.error()
        return await in_thread(_read_result, self._result, result)


async def _carried_out(
    child: Child,
    order: ParsingOrder,
    keepalive: Callable[[], None],
    on_progress: Callable[..., Any],
) -> FinalRecord:
    """The final record of an order. Raises Refused and Passing."""
    current = ""

    async def on_record(record: AnyRecord) -> None:
        nonlocal current
        keepalive()
        match record:
            case Reading(file=name):
                current = name
            case Progress(numbers=numbers):
                on_progress(**numbers)

    watching = asyncio.create_task(_watch_memory(child, order.limits))
    giving_way = asyncio.create_task(_give_way(child.pid))
    try:
        await child.order(order)
        return await child.final_record(on_record)
    except ChildDied as died:
        raise _reason(died, watching, current, order.limits) from None
    except (ValueError, msgspec.MsgspecError) as error:
        raise Passing(f"the parsing child wrote what is no record: {error}") from None
    finally:
        watching.cancel()
        giving_way.cancel()


def _reason(
    died: ChildDied, watching: asyncio.Task[None], file: str, limits: Limits
) -> EveryDreamError:
    """What a child's death says of the file that it was reading."""
    if watching.done() and not watching.cancelled():
        return Refused(over_memory(file, limits))
    match died.signal:
        case signal.SIGXCPU:
            return Refused(over_time(file, limits))
        case signal.SIGABRT:  # how the tokenizers library, for one, ends without memory
            return Refused(over_memory(file, limits))
        case number if number in CRASHES:
            return Refused(f"{file}: reading it crashes its decoder ({number.name}); leave it out")
    return Passing(f"{died}, while it read {file}")


async def _watch_memory(child: Child, limits: Limits) -> None:
    """Kill a child that takes too much, and return then; for systems that do not limit it."""
    if SYSTEM_LIMITS_MEMORY:
        await asyncio.Event().wait()
    while await _resident_bytes(child.pid) <= limits.memory_bytes:  # noqa: ASYNC110 - no event tells
        await asyncio.sleep(WATCH_SECONDS)
    with suppress(ProcessLookupError):
        os.kill(child.pid, signal.SIGKILL)


async def _give_way(pid: int) -> None:
    """Lower a child's priority for good once its order turns out to be no small one."""
    with suppress(OSError):  # it is gone
        begun = _processor_seconds(pid)
        while _processor_seconds(pid) - begun < BRIEF_SECONDS:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(WATCH_SECONDS)
        before = os.getpriority(os.PRIO_PROCESS, pid)
        os.setpriority(os.PRIO_PROCESS, pid, max(LOW_PRIORITY, before))


def _processor_seconds(pid: int) -> float:
    """What a process has used; elsewhere than on Linux, what it may have."""
    if sys.platform != "linux":
        return time.monotonic()
    return time.clock_gettime(~pid << 3 | PROCESS_CLOCK)


async def _resident_bytes(pid: int) -> int:
    """A process's resident memory, by ``ps``; 0 when it is gone."""
    ps = await asyncio.create_subprocess_exec(
        "ps", "-o", "rss=", "-p", str(pid), stdout=asyncio.subprocess.PIPE
    )
    said, _ = await ps.communicate()
    return int(said) << 10 if said.strip() else 0


def _read_result(file: Path, result: type[T]) -> T:
    """Raises Passing: not what a child of ours writes."""
    try:
        data = read_regular(file, RESULT_BYTES)
        return msgspec.json.decode(data, type=result)
    except (OSError, msgspec.DecodeError) as error:
        raise Passing(f"the parsing child left no result that can be read: {error}") from None


def read_regular(path: Path, limit: int) -> bytes:
    """A regular file's content.

    Raises:
        OSError: it is missing, a link or something else, or larger than ``limit`` bytes.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_size > limit:
            raise OSError(f"{path.name} is no regular file of at most {limit} bytes")
        return file.read(limit)


def check_left(folder: Path, names: Collection[str]) -> None:
    """Check that a child has left the regular files that it names in a folder, and nothing else.

    Raises:
        Passing: it has not, so a decoder did something that it should not be able to.
    """
    found = {}
    for parent, folders, files in os.walk(folder):
        for name in (*files, *(each for each in folders if (Path(parent) / each).is_symlink())):
            path = Path(parent) / name
            found[path.relative_to(folder).as_posix()] = path.lstat()
    links = [name for name, each in found.items() if not stat.S_ISREG(each.st_mode)]
    if links or found.keys() != set(names):
        raise Passing("the parsing child left other files than it names")
