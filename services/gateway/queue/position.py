"""The queue position of a waiting job, and its estimated start."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean
from typing import NamedTuple

from services.gateway.jobs.presenter import iso_or_null
from services.gateway.jobs.record import Job
from services.gateway.jobs.response_types import QueuePosition
from services.gateway.jobs.rows import read, with_progress
from services.gateway.ports import JobStore, Line, Place, Standing, TurnStore
from services.gateway.turns.places import WORKERS_STAGE
from services.gateway.turns.stale_cache import StaleCache
from services.gateway.turns.workers import Workers
from shared.messaging.messages import Stage

NEWEST = 20
"""Number of finished jobs that the mean time is taken from."""
SHORTEST, HALVINGS = 0.001, 50
"""The least seconds of a job; how finely the moment of a turn is looked for."""
YEAR = 365 * 86_400
ASKED = 20
"""Busy workers that are asked for each line how long they still need."""
COUNTED = 1000
"""An owner's jobs that are counted for each request; the others in such steps, some seconds ago."""


class Pace(NamedTuple):
    """How fast a line moves."""

    idle: int
    """Workers without a job."""
    workers: int
    seconds: float
    """Mean execution time of a job."""
    left: tuple[float, ...] = ()
    """Seconds that busy workers say they still need; the others' ends are spread evenly."""

    def wait(self, position: int) -> float:
        """Seconds until the job at this position (from 1) starts."""
        unsaid = range(1, self.workers - self.idle - len(self.left) + 1)
        spread = (number * self.seconds / self.workers for number in unsaid)
        free = (*(0.0,) * self.idle, *self.left, *spread)
        each = max(self.seconds, SHORTEST)
        early, late = min(free), min(free) + (position - 1) * each
        for _ in range(HALVINGS):
            middle = (early + late) / 2
            started = sum((middle - at) // each + 1 for at in free if at <= middle)
            early, late = (early, middle) if started >= position else (middle, late)
        return late


class QueuePositions:
    """Finds positions in the order of the turns, as if nobody came and no job were cancelled.

    Without the broker, the estimated start is unknown.
    """

    def __init__(
        self, workers: Workers, jobs: JobStore, turns: TurnStore, clock: Callable[[], float]
    ) -> None:
        self._workers = workers
        self._jobs = jobs
        self._turns = turns
        self._clock = clock
        self._steps = StaleCache(self._steps_of)
        self._standings = StaleCache(self._standings_of)
        self._pace = StaleCache(self._measured_pace)

    async def position(self, job: Job) -> QueuePosition | None:
        """The position; None: the job is not in the queue. Raises Unavailable."""
        return (await self.positions([job])).get(job.id)

    async def positions(self, jobs: Iterable[Job]) -> dict[str, QueuePosition]:
        """Those of all that wait, by their ids; of a page as few queries as of a job.

        Of an owner's jobs in a line only the first is looked up: no other of its jobs may be
        between those that are given. Raises Unavailable.
        """
        found: dict[str, QueuePosition] = {}
        by_line: dict[Line, list[Job]] = {}
        for job in sorted(jobs, key=lambda each: (each.created_at, each.id)):
            if job.status == "IN_QUEUE":
                by_line.setdefault(job.line, []).append(job)
        for line, waiting in by_line.items():
            pace = await self._pace.get(line)
            for job_id, before in (await self._count_before(line, waiting)).items():
                start = self._clock() + pace.wait(before + 1) if pace else None
                found[job_id] = {"position": before + 1, "estimated_start": iso_or_null(start)}
        return found

    async def _count_before(self, line: Line, jobs: Iterable[Job]) -> dict[str, int]:
        """Jobs whose turn comes earlier, and those that had it and have not begun yet, by id."""
        released = [job.id for job in jobs if job.released_at is not None]
        found = {**await self._turns.released_before(line, released)} if released else {}
        others = [job for job in jobs if job.released_at is None]
        at_front = await self._turns.count_released(line) if others else 0
        own: dict[Place, int] = {}
        for job in others:
            place = Place(line, job.policy.lowPriority, job.owner)
            if place in own:
                own[place] += 1
            else:
                own[place] = await self._count_ahead(place, (job.created_at, job.id))
            found[job.id] = at_front + await self._turns_before(place, own[place])
        return found

    async def _turns_before(self, place: Place, own: int) -> int:
        """Of others too, when so many of the owner's wait in front."""
        before = ahead_of(place.owner, own, await self._standings.get((place.line, place.low)))
        if place.low:
            normal = await self._standings.get((place.line, False))
            before += sum(owner.waiting for owner in normal)
        return before

    async def _count_ahead(self, place: Place, position: tuple[float, str]) -> int:
        """Of the owner's own; however many they are, only some are counted for each request."""
        ahead = await self._turns.count_ahead(place, position, limit=COUNTED + 1)
        if ahead <= COUNTED:
            return ahead
        steps = await self._steps.get(place)
        known = bisect_left(steps, position)
        behind = steps[known - 1] if known else None
        return known * COUNTED + await self._turns.count_ahead(place, position, behind=behind)

    async def _steps_of(self, place: Place) -> Sequence[tuple[float, str]]:
        return await self._turns.every_waiting(place, COUNTED)

    async def _standings_of(self, of: tuple[Line, bool]) -> Sequence[Standing]:
        line, low = of
        return await self._turns.standings(line, low=low)

    async def _measured_pace(self, line: Line) -> Pace | None:
        """Of the newest finished jobs; None: there are none, or no workers."""
        times = await self._jobs.execution_seconds(line, NEWEST)
        stage = WORKERS_STAGE[line]
        idle = await self._workers.idle(stage)
        at_work = [each.job for each in await self._jobs.claims() if each.stage == stage]
        workers = idle.number + len(at_work)
        if not times or not workers or not idle.is_known:
            return None
        left = await asyncio.gather(*(self._seconds_left(job, stage) for job in at_work[:ASKED]))
        said = tuple(each for each in left if each is not None)
        return Pace(idle.number, workers, fmean(times), said)

    async def _seconds_left(self, job: str, stage: Stage) -> float | None:
        """What a stage's worker has said last of how long it still needs."""
        found = await self._jobs.get_live(job)
        if found is None:
            return None
        row, progress = found
        seconds = with_progress(read(row), progress).progress.get(stage, {}).get("eta_seconds")
        return float(seconds) if isinstance(seconds, int | float) and 0 <= seconds < YEAR else None


def ahead_of(owner: str, own: int, standings: Iterable[Standing]) -> int:
    """How many turns come before that of an owner's job.

    Each owner has one turn after the other, so between two of this owner's there is one of each
    that still has jobs.

    Args:
        owner: whose job it is.
        own: how many of the owner's jobs wait in front of it.
        standings: the owners with jobs that wait, the next to have its turn first.
    """
    ahead, is_next_before = own, True
    for each in standings:
        if each.owner == owner:
            is_next_before = False
        else:
            ahead += min(each.waiting, own + is_next_before)
    return ahead
