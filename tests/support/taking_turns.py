"""A job store whose callers take turns in a random order, given by a seed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

from services.gateway.ports import StoredJob


class TurnTakingJobs:
    """Passes all calls on; in a race, each read and write waits for its turn.

    A turn is given when all callers still in the race are waiting, so any interleaving is
    possible, and a seed always gives the same one.
    """

    def __init__(self, jobs: Any) -> None:
        self._jobs = jobs
        self._random = Random(0)
        self._racing = 0
        self._waiting: list[asyncio.Future[None]] = []
        self.conflicts = 0
        """Writes refused because another caller had written since the read."""

    async def race(self, seed: int, callers: Iterable[Awaitable[Any]]) -> list[Any]:
        """Run all callers at once; each makes one call at a time."""
        racing = list(callers)
        self._random = Random(seed)
        self._racing = len(racing)
        return await asyncio.gather(*(self._run(each) for each in racing))

    async def _run(self, caller: Awaitable[Any]) -> Any:
        with self._counted_until_done():
            return await caller

    @contextmanager
    def _counted_until_done(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._racing -= 1
            self._give_turn()

    async def get(self, job: str) -> StoredJob | None:
        await self._turn()
        found: StoredJob | None = await self._jobs.get(job)
        return found

    async def replace(self, *row: Any, **expected: Any) -> bool:
        await self._turn()
        written = bool(await self._jobs.replace(*row, **expected))
        self.conflicts += not written
        return written

    async def remove(self, *row: Any) -> bool:
        await self._turn()
        return bool(await self._jobs.remove(*row))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._jobs, name)

    async def _turn(self) -> None:
        if not self._racing:
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self._give_turn()
        await turn

    def _give_turn(self) -> None:
        if self._waiting and len(self._waiting) == self._racing:
            self._waiting.pop(self._random.randrange(len(self._waiting))).set_result(None)
