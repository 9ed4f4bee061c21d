"""How many workers there are for a stage: those that wait for work, and those that have some."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import NamedTuple

import structlog

from services.gateway.ports import JobStore
from services.gateway.turns.stale_cache import StaleCache
from shared.errors import Unavailable
from shared.messaging.messages import Stage
from shared.messaging.topology import STAGE_QUEUES
from shared.ports import Bus

BROKER_SECONDS = 0.5
"""How long the broker's count of consumers is waited for."""

log = structlog.get_logger()


class Idle(NamedTuple):
    number: int
    is_known: bool
    """Whether the broker answered; else the number is its last answer."""


class Workers:
    """Counts idle ones by the broker's consumers, busy ones by the claims."""

    def __init__(self, bus: Bus, jobs: JobStore) -> None:
        self._bus = bus
        self._jobs = jobs
        self._last: Counter[Stage] = Counter()
        self._idle = StaleCache(self._count_idle)
        self._all = StaleCache(self._count_all)

    async def idle(self, stage: Stage) -> Idle:
        """Those that wait for this stage's work, as some seconds ago."""
        return await self._idle.get(stage)

    async def busy(self) -> Counter[Stage]:
        """Those that have a claim, by stage. Raises Unavailable."""
        return Counter(each.stage for each in await self._jobs.claims())

    def last_seen(self, stage: Stage) -> int:
        """Idle and busy ones, as they were counted last, without a wait; 0 at first."""
        return self._all.newest(stage) or 0

    async def _count_all(self, stage: Stage) -> int:
        """A worker may serve several stages by one queue."""
        busy = await self.busy()
        queue = STAGE_QUEUES[stage]
        alike = [each for each, of in STAGE_QUEUES.items() if of == queue]
        return (await self.idle(stage)).number + sum(busy[each] for each in alike)

    async def _count_idle(self, stage: Stage) -> Idle:
        try:
            async with asyncio.timeout(BROKER_SECONDS):
                self._last[stage] = await self._bus.consumers(STAGE_QUEUES[stage])
        except (Unavailable, TimeoutError) as error:
            log.warning("workers_unknown", stage=stage, reason=str(error) or "out of time")
            return Idle(self._last[stage], is_known=False)
        return Idle(self._last[stage], is_known=True)
