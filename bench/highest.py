"""The most that was seen of anything that is looked at again and again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager


@asynccontextmanager
async def highest(
    look: Callable[[], Mapping[str, int]], *, every_seconds: float
) -> AsyncIterator[dict[str, int]]:
    """The most of each figure in the block; ``look`` takes them, in a thread."""
    found: dict[str, int] = {}

    async def follow() -> None:
        while True:
            for name, figure in (await asyncio.to_thread(look)).items():
                found[name] = max(found.get(name, 0), figure)
            await asyncio.sleep(every_seconds)

    following = asyncio.create_task(follow())
    try:
        yield found
    finally:
        following.cancel()
