"""The stream of a job's output: each call gets what is new, each piece is given once."""

from __future__ import annotations

from collections.abc import Callable

from services.gateway.jobs.presenter import Presenter, output_digest
from services.gateway.jobs.record import Job
from services.gateway.jobs.response_types import Piece
from services.gateway.ports import JobStore

PAUSE = 1.0
"""Seconds between two pieces of a job that still runs."""


class OutputStreams:
    """Keeps each stream's position in the database, so that any gateway can continue it."""

    def __init__(
        self,
        jobs: JobStore,
        presenter: Presenter,
        clock: Callable[[], float],
    ) -> None:
        self._jobs = jobs
        self._presenter = presenter
        self._clock = clock

    async def next(self, job: Job) -> list[Piece]:
        """The next piece, or an empty list when there is none at this moment.

        A piece is the whole output at one moment, so several changes make one piece.
        """
        return [{"output": await self._presenter.output(job)}] if await self._claim(job) else []

    async def _claim(self, job: Job) -> bool:
        """Whether this output is new, and this call is the one that gives it."""
        digest = output_digest(await self._presenter.whole(job))
        last, at = await self._jobs.streamed(job.id)
        now = self._clock()
        if digest == last or (not job.ended and now - at < PAUSE):
            return False
        return await self._jobs.stream(job.id, digest, now, expected=last)
