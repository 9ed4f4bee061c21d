"""Release the jobs whose turn it is, as soon as there are places for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

import structlog

from services.gateway.jobs.repository import JobRepository
from services.gateway.jobs.transitions import release
from services.gateway.ports import LINES, Line
from services.gateway.turns.places import Places
from shared.errors import Unavailable

PAUSE_SECONDS = 0.05
"""Between two looks: of many jobs that come at once, each would cost one."""

log = structlog.get_logger()


class Releaser:
    """Looks when it is woken: when a job came, a place became free, or a heartbeat came back.

    All is read from the jobs' rows, and a job is released by a compare-and-set. So any gateway may
    do it, and another goes on alike.
    """

    def __init__(
        self, repository: JobRepository, places: Places, *, clock: Callable[[], float]
    ) -> None:
        self._repository = repository
        self._places = places
        self._clock = clock
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """A job may have its turn; look now."""
        self._woken.set()

    async def run(self) -> None:
        while True:
            await self._woken.wait()
            self._woken.clear()
            try:
                for line in LINES:
                    await self._release(line)
            except Unavailable as error:  # the next heartbeat wakes it
                log.warning("not_released", reason=str(error))
            await asyncio.sleep(PAUSE_SECONDS)

    async def _release(self, line: Line) -> None:
        """Release jobs until there is no place, or nobody waits."""
        skipped: set[str] = set()
        while turn := await self._places.next(line, skipped):
            job_id, owner = turn
            now = self._clock()
            try:
                await self._repository.change(job_id, partial(release, now=now))
            except Unavailable:
                raise
            except Exception:  # a bad record must not block other owners' jobs
                log.exception("cannot_release", job=job_id)
                skipped.add(owner)
            else:
                log.info("job_released", job=job_id, line=line)
