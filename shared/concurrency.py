"""Blocking work in threads, limited concurrency, and waits with a time-out."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R")


async def in_thread(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a blocking function in a thread.

    A thread cannot be cancelled, so a cancelled caller waits until it is done: nothing may still be
    written to a folder that the caller is about to remove.
    """
    return await uninterrupted(asyncio.to_thread(function, *args, **kwargs))


async def uninterrupted(work: Coroutine[Any, Any, T]) -> T:
    """Await work to its end, however often the caller is cancelled meanwhile.

    The cancellation is raised once the work has ended.
    """
    task = asyncio.ensure_future(work)
    await ended(task)
    return task.result()


async def ended(task: asyncio.Future[Any]) -> None:
    """Wait for the end of a task, however often the caller is cancelled meanwhile.

    The cancellation is raised afterwards. The task's own error is handled elsewhere.
    """
    cancellation = None
    while not task.done():
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError as error:
            cancellation = error
    if not task.cancelled():
        task.exception()  # retrieved, or asyncio would report it
    if cancellation is not None:
        try:
            raise cancellation
        finally:
            # Its traceback has this frame: a cycle would keep all that the callers hold.
            del cancellation


async def gather_limited(
    work: Callable[[T], Awaitable[R]], items: Iterable[T], *, limit: int
) -> list[R]:
    """The results for all items, in their order, with at most ``limit`` under way at a time.

    The first error cancels the rest and is raised once they have ended.
    """
    gate = asyncio.Semaphore(limit)

    async def one(item: T) -> R:
        async with gate:
            return await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(item)) for item in items]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


async def until(event: asyncio.Event, *, timeout: float) -> bool:  # noqa: ASYNC109 - it is the point
    """Wait for an event for at most ``timeout`` seconds; returns whether it is set."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout):
            await event.wait()
    return event.is_set()


async def cancelled(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait for its end; its own error is handled elsewhere."""
    task.cancel()
    await ended(task)
