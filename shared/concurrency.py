"""Blocking work beside the event loop, several things at once, and waits with an end."""

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

    A thread cannot be cancelled. A cancelled caller therefore waits until it is done, so that
    nothing is still written to a folder that the caller is about to remove.
    """
    work = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait((work,))
        work.cancelled() or work.exception()  # looked at, so that nobody reports it as forgotten
        raise


async def a_few_at_once(
    work: Callable[[T], Awaitable[R]], items: Iterable[T], *, most: int
) -> list[R]:
    """The results for all items, in their order, with at most ``most`` in hand at a time.

    The first error ends the rest, is waited for, and is raised as it is.
    """
    gate = asyncio.Semaphore(most)

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
    """Wait for an event at most so many seconds; whether it came."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout):
            await event.wait()
    return event.is_set()


async def cancelled(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait until it is over; its own error was seen elsewhere."""
    task.cancel()
    await asyncio.wait((task,))
    if not task.cancelled():
        task.exception()
