"""Ask at a steady rate, and look at the times and at a process meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager

import psutil

from tests.support.services import ServiceProcess

Ask = Callable[[], Awaitable[object]]


async def timed(
    ask: Ask, *, per_second: float, seconds: float, one_by_one: bool = False
) -> list[float]:
    """Seconds that each call took, at a steady rate whatever the calls before it take."""
    taken: list[float] = []

    async def call() -> None:
        began = time.perf_counter()
        await ask()
        taken.append(time.perf_counter() - began)

    begun = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(1, int(per_second * seconds) + 1):
            if one_by_one:  # a call may go on after what is timed
                await call()
            else:
                group.create_task(call())
            await asyncio.sleep(begun + number / per_second - time.perf_counter())
    return taken


def percentile(values: Sequence[float], of: int) -> float:
    return sorted(values)[min(len(values) * of // 100, len(values) - 1)]


def milliseconds(values: Sequence[float], of: int) -> str:
    """A percentile of seconds, for a table."""
    return f"{1000 * percentile(values, of):.0f} ms"


@contextmanager
def highest_memory(process: ServiceProcess) -> Iterator[list[int]]:
    """The most resident bytes seen in the block, in a list of one."""
    highest = [0]

    async def look() -> None:
        while True:
            highest[0] = max(highest[0], psutil.Process(process.pid).memory_info().rss)
            await asyncio.sleep(0.1)

    looking = asyncio.create_task(look())
    try:
        yield highest
    finally:
        looking.cancel()
