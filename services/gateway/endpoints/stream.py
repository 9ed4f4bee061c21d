"""A job's output piece by piece: whoever asks gets what is new, and each piece is given once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiohttp import web

from services.gateway.jobs.change_notifier import ChangeNotifier
from services.gateway.jobs.presenter import Presenter, output_digest
from services.gateway.jobs.repository import JobRepository, Seen
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
        change_notifier: ChangeNotifier,
        clock: Callable[[], float],
    ) -> None:
        self._jobs = jobs
        self._repository = repository
        self._presenter = presenter
        self._change_notifier = change_notifier
        self._clock = clock

    async def next(self, request: web.Request, seen: Seen, wait: float) -> tuple[list[Piece], Seen]:
        """The next piece, waiting for it so many seconds, and the job as it was then.

        Changes between two pieces are told as one: a piece is the whole output as it stands. An
        empty list: nothing is new, and never will be if the job has ended.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + wait
        with self._change_notifier.watch(seen.job.id) as watch:
            while True:
                newest = await self._repository.look(seen.job.id)
                if newest is None:
                    raise web.HTTPNotFound(text="there is no such job")
                seen = newest
                if await self._is_new(seen):
                    return [{"output": await self._presenter.output(seen.job)}], seen
                left = end - loop.time()
                if seen.job.ended or left <= 0 or is_gone(request):
                    return [], seen
                await watch.wait(left)

    async def _is_new(self, seen: Seen) -> bool:
        """Whether this output is to be given now, and by us."""
        digest = output_digest(seen.job)
        last, at = await self._jobs.streamed(seen.job.id)
        now = self._clock()
        if digest == last or (not seen.job.ended and now - at < PAUSE):
            return False
        return await self._jobs.stream(seen.job.id, digest, now, expected=last)
