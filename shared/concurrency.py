"""Blocking work in threads, limited concurrency, and waits with a time-out."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R")


async def in_thread(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a blocking function in a thread.

    A thread cannot be cancelled, so a cancelled caller waits until it is done: nothing may still be
    written to a folder that the caller is about to remove.
    """
    work = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait((work,))
        work.cancelled() or work.exception()  # retrieved, or asyncio would report it
        raise


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
    await asyncio.wait((task,))
    if not task.cancelled():
        task.exception()
