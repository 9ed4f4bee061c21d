"""Count waiting and running jobs, and the workers for them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog

from services.gateway.jobs.record import GPU_STAGES
from services.gateway.jobs.response_types import Health
from services.gateway.jobs.stale_cache import StaleCache
from services.gateway.ports import JobStore
from shared.errors import Unavailable
from shared.messaging.messages import Stage
from shared.messaging.topology import STAGE_QUEUES
from shared.ports import Bus

COUNTED = 1000
"""Jobs of a status that are counted for each request; larger numbers may be some seconds old."""
BROKER_SECONDS = 0.5
"""How long a client waits for the broker's count of workers."""

log = structlog.get_logger()


class Capacity:
    """Counts jobs and workers, for ``/health`` and the queue positions."""

    def __init__(self, bus: Bus, jobs: JobStore) -> None:
        self._bus = bus
        self._jobs = jobs
        self._last_idle = 0
        """Idle workers when the broker last answered."""
        self._large_counts = StaleCache(jobs.counts)
        self._idle = StaleCache(self._count_idle)

    async def health(self, owner: str) -> Health:
        """The body that RunPod has: the owner's jobs, and all workers with a GPU.

        While the broker is away, workers that were idle before count as unhealthy, because they
        get no work. Busy workers are counted from the records.

        Raises:
            Unavailable: the database does not answer.
        """
        counts = await self._jobs.counts(owner, COUNTED + 1)
        if max(counts.values(), default=0) > COUNTED:
            counts = await self._large_counts.get(owner)
        running = {each.job for each in await self._jobs.claims() if each.stage in GPU_STAGES}
        idle, unreachable = await self._idle.get(GPU_STAGES)
        return {
            "jobs": {
                "completed": counts.get("COMPLETED", 0),
                "failed": counts.get("FAILED", 0) + counts.get("TIMED_OUT", 0),
                "inProgress": counts.get("IN_PROGRESS", 0),
                "inQueue": counts.get("IN_QUEUE", 0),
                "retried": await self._jobs.count_retried(owner),
            },
            "workers": {
                "idle": idle,
                "initializing": 0,
                "ready": idle + len(running),
                "running": len(running),
                "throttled": 0,
                "unhealthy": unreachable,
            },
        }

    async def _count_idle(self, stages: tuple[Stage, ...]) -> tuple[int, int]:
        """Idle workers, and those that the broker's absence makes unreachable."""
        try:
            async with asyncio.timeout(BROKER_SECONDS):
                counting = (self._bus.consumers(STAGE_QUEUES[stage]) for stage in stages)
                self._last_idle = sum(await asyncio.gather(*counting))
        except (Unavailable, TimeoutError) as error:
            log.warning("workers_unknown", reason=str(error) or "out of time")
            return 0, self._last_idle
        return self._last_idle, 0

    async def trainers(self) -> tuple[int, int]:
        """The number of idle trainers, and of all. Raises Unavailable."""
        idle = await self._bus.consumers(STAGE_QUEUES["training"])
        busy = [each for each in await self._jobs.claims() if each.stage == "training"]
        return idle, idle + len(busy)

    async def queued(self, owner: str) -> Sequence[str]:
        """The ids of an owner's jobs that are IN_QUEUE. Raises Unavailable."""
        return await self._jobs.queued(owner)
