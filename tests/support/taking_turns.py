"""A job store whose callers take turns, in an order that is drawn from a seed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

from services.gateway.ports import StoredJob


class TurnTakingJobs:
    """Passes everything on; in a race each reading and writing waits until it is drawn.

    Somebody is drawn when everyone who still races waits, so any interleaving can come, and the
    same seed gives the same one.
    """

    def __init__(self, jobs: Any) -> None:
        self._jobs = jobs
        self._random = Random(0)
        self._racing = 0
        self._waiting: list[asyncio.Future[None]] = []
        self.outrun = 0
        """How often somebody else had written since the reading."""

    async def race(self, seed: int, callers: Iterable[Awaitable[Any]]) -> list[Any]:
        """Let all of them go at once; each is one caller, with one call at a time."""
        entries = list(callers)
        self._random = Random(seed)
        self._racing = len(entries)
        return await asyncio.gather(*(self._run(each) for each in entries))

    async def _run(self, caller: Awaitable[Any]) -> Any:
        with self._one_less_afterwards():
            return await caller

    @contextmanager
    def _one_less_afterwards(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._racing -= 1
            self._draw()

    async def get(self, job: str) -> StoredJob | None:
        await self._turn()
        found: StoredJob | None = await self._jobs.get(job)
        return found

    async def replace(self, *row: Any, **expected: Any) -> bool:
        await self._turn()
        written = bool(await self._jobs.replace(*row, **expected))
        self.outrun += not written
        return written

    async def remove(self, *place: Any) -> bool:
        await self._turn()
        return bool(await self._jobs.remove(*place))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._jobs, name)

    async def _turn(self) -> None:
        if not self._racing:
            return
        mine = asyncio.get_running_loop().create_future()
        self._waiting.append(mine)
        self._draw()
        await mine

    def _draw(self) -> None:
        if self._waiting and len(self._waiting) == self._racing:
            self._waiting.pop(self._random.randrange(len(self._waiting))).set_result(None)
