"""The queue position of a waiting job, and its estimated start."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Callable
from statistics import fmean
from typing import NamedTuple

import structlog

from services.gateway.jobs.capacity import BROKER_SECONDS, Capacity
from services.gateway.jobs.presenter import iso_or_null
from services.gateway.jobs.record import Job
from services.gateway.jobs.response_types import QueuePosition
from services.gateway.jobs.stale_cache import StaleCache
from services.gateway.ports import JobStore
from shared.errors import Unavailable

NEWEST = 20
"""Number of finished jobs that the mean time is taken from."""
COUNTED = 1000
"""Waiting jobs that are counted for each request; the others in such steps, some seconds ago."""

log = structlog.get_logger()


class Pace(NamedTuple):
    """How fast the queue moves."""

    idle: int
    """Trainers without a job."""
    trainers: int
    seconds: float
    """Mean execution time of a job."""

    def wait(self, position: int) -> float:
        """Seconds until the job at this position (from 1) starts."""
        return max(position - self.idle, 0) * self.seconds / self.trainers


class QueuePositions:
    """Finds positions; without the broker, the estimated start is unknown."""

    def __init__(self, capacity: Capacity, jobs: JobStore, clock: Callable[[], float]) -> None:
        self._capacity = capacity
        self._jobs = jobs
        self._clock = clock
        self._steps = StaleCache(jobs.every_waiting)
        self._pace = StaleCache(self._measured_pace)

    async def position(self, job: Job) -> QueuePosition | None:
        """The position; None: the job is not in the queue. Raises Unavailable."""
        if job.status != "IN_QUEUE":
            return None
        position = await self._count_ahead(job) + 1
        pace = await self._pace.get(NEWEST)
        start = self._clock() + pace.wait(position) if pace else None
        return {"position": position, "estimated_start": iso_or_null(start)}

    async def _count_ahead(self, job: Job) -> int:
        """However many jobs wait, only some are counted for each request."""
        ahead = await self._jobs.count_ahead(job.created_at, job.id, limit=COUNTED + 1)
        if ahead <= COUNTED:
            return ahead
        steps = await self._steps.get(COUNTED)
        known = bisect_left(steps, (job.created_at, job.id))
        behind = steps[known - 1] if known else None
        rest = await self._jobs.count_ahead(job.created_at, job.id, behind=behind)
        return known * COUNTED + rest

    async def _measured_pace(self, newest: int) -> Pace | None:
        """Of so many finished jobs; None: there are none, or no trainers."""
        times = await self._jobs.execution_seconds(newest)
        try:
            async with asyncio.timeout(BROKER_SECONDS):
                idle, trainers = await self._capacity.trainers()
        except (Unavailable, TimeoutError) as error:
            log.warning("workers_unknown", reason=str(error) or "out of time")
            return None
        return Pace(idle, trainers, fmean(times)) if times and trainers else None
