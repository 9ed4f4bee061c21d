"""How long the line is: a waiting job's place in it, and when its turn may come."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from statistics import fmean
from time import monotonic
from typing import NamedTuple

import structlog

from services.gateway.jobs.capacity import BROKER_SECONDS, Capacity
from services.gateway.jobs.presenter import iso_or_null
from services.gateway.jobs.record import Job, execution_time
from services.gateway.jobs.repository import read
from services.gateway.jobs.response_types import Place
from services.gateway.ports import JobStore
from shared.errors import Unavailable

NEWEST = 20
"""Finished jobs whose time is averaged."""
KEPT_SECONDS = 10.0
"""How long what is known of the workers and their pace is used again."""

log = structlog.get_logger()


class Pace(NamedTuple):
    """How fast the line moves."""

    idle: int
    """Trainers that wait for a job."""
    trainers: int
    seconds: float
    """The mean time of a job."""

    def wait(self, position: int) -> float:
        """Seconds until the job at this position, from 1, has its turn."""
        return max(position - self.idle, 0) * self.seconds / self.trainers


class QueuePositions:
    """Tells jobs that wait where they are; the broker may be away meanwhile."""

    def __init__(self, capacity: Capacity, jobs: JobStore, clock: Callable[[], float]) -> None:
        self._capacity = capacity
        self._jobs = jobs
        self._clock = clock
        self._turn = asyncio.Lock()
        self._pace: Pace | None = None
        self._looked_at = float("-inf")

    async def position(self, job: Job) -> Place | None:
        """The place among everybody's jobs; None: the job waits no more. Raises Unavailable."""
        if job.status != "IN_QUEUE":
            return None
        position = await self._jobs.count_ahead(job.created_at, job.id) + 1
        pace = await self._newest_pace()
        start = self._clock() + pace.wait(position) if pace else None
        return {"position": position, "estimated_start": iso_or_null(start)}

    async def _newest_pace(self) -> Pace | None:
        """One asks at a time, the others use the answer."""
        async with self._turn:
            if monotonic() - self._looked_at >= KEPT_SECONDS:
                self._pace = await self._look()
                self._looked_at = monotonic()
            return self._pace

    async def _look(self) -> Pace | None:
        """None: nobody is there, or nothing has been finished yet."""
        rows = await self._jobs.newest(statuses=("COMPLETED",), limit=NEWEST)
        times = [execution_time(read(row), self._clock()) / 1000 for row in rows]
        try:
            async with asyncio.timeout(BROKER_SECONDS):
                idle, trainers = await self._capacity.trainers()
        except (Unavailable, TimeoutError) as error:
            log.warning("workers_unknown", reason=str(error) or "out of time")
            return None
        return Pace(idle, trainers, fmean(times)) if times and trainers else None
