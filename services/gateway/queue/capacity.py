"""Count waiting and running jobs, and the workers for them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from services.gateway.jobs.record import GPU_STAGES
from services.gateway.jobs.response_types import Health
from services.gateway.ports import JobStore
from services.gateway.turns.stale_cache import StaleCache
from services.gateway.turns.workers import Workers

COUNTED = 1000
"""Jobs of a status that are counted for each request; larger numbers may be some seconds old."""


class Capacity:
    """Counts jobs and workers, for ``/health``."""

    def __init__(self, workers: Workers, jobs: JobStore) -> None:
        self._workers = workers
        self._jobs = jobs
        self._large_counts = StaleCache(jobs.counts)

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
        every = await asyncio.gather(*(self._workers.idle(stage) for stage in GPU_STAGES))
        idle = sum(each.number for each in every if each.is_known)
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
                "unhealthy": sum(each.number for each in every if not each.is_known),
            },
        }

    async def queued(self, owner: str) -> Sequence[str]:
        """The ids of an owner's jobs that are IN_QUEUE. Raises Unavailable."""
        return await self._jobs.queued(owner)
