"""A job's output piece by piece: whoever asks gets what is new, and each piece is given once."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing

from aiohttp import web

from services.gateway.jobs.presenter import Presenter, output_digest
from services.gateway.jobs.record import Job
from services.gateway.jobs.repository import JobRepository
from services.gateway.jobs.response_types import Piece
from services.gateway.ports import JobStore
from services.gateway.web.application import is_gone

PAUSE = 1.0
"""Seconds between two pieces of a job that still runs."""


class OutputStreams:
    """Remembers in the database what was given, so that any gateway goes on with it."""

    def __init__(
        self,
        jobs: JobStore,
        repository: JobRepository,
        presenter: Presenter,
        clock: Callable[[], float],
    ) -> None:
        self._jobs = jobs
        self._repository = repository
        self._presenter = presenter
        self._clock = clock

    async def next(self, request: web.Request, job: Job, wait: float) -> tuple[list[Piece], Job]:
        """The next piece, waiting for it so many seconds, and the job as it was then.

        Changes between two pieces are told as one: a piece is the whole output as it stands. An
        empty list: nothing is new, and never will be if the job has ended.
        """
        async with aclosing(self._repository.versions(job.id, wait)) as versions:
            async for current in versions:
                job = current.job
                if await self._is_new(job):
                    return [{"output": await self._presenter.output(job)}], job
                if job.ended or is_gone(request):
                    break
        return [], job

    async def _is_new(self, job: Job) -> bool:
        """Whether this output is to be given now, and by us."""
        digest = output_digest(job)
        last, at = await self._jobs.streamed(job.id)
        now = self._clock()
        if digest == last or (not job.ended and now - at < PAUSE):
            return False
        return await self._jobs.stream(job.id, digest, now, expected=last)
