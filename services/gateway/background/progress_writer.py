"""Write the progress of many jobs at once, beside their records."""

from __future__ import annotations

import asyncio

import msgspec
import structlog

from services.gateway.jobs.repository import JobRepository
from services.gateway.ports import StoredProgress
from shared.errors import Unavailable
from shared.messaging.messages import Progressed, Stage

PROGRESS_SECONDS = 1.0
"""Between two writes; of what a stage reports in between, the newest is written."""

log = structlog.get_logger()


class ProgressWriter:
    """Holds the newest numbers of each stage until they are written."""

    def __init__(self, repository: JobRepository) -> None:
        self._repository = repository
        self._newest: dict[tuple[str, Stage], StoredProgress] = {}
        self._noted = asyncio.Event()

    def note(self, fact: Progressed, run: int) -> None:
        """A live claim reported this, in this run of its job."""
        if not fact.progress:
            return
        numbers = msgspec.json.encode(fact.progress)
        self._newest[fact.job, fact.stage] = StoredProgress(fact.job, fact.stage, run, numbers)
        self._noted.set()

    async def run(self) -> None:
        """Write whenever there is something new, until cancelled."""
        while True:
            await self._noted.wait()
            self._noted.clear()
            await self.write()
            await asyncio.sleep(PROGRESS_SECONDS)

    async def write(self) -> None:
        """Write what was noted; what cannot be written is kept for the next time."""
        rows, self._newest = self._newest, {}
        try:
            await self._repository.write_progress([*rows.values()])
        except Unavailable as error:
            log.warning("progress_not_written", reason=str(error))
            self._newest = rows | self._newest
            self._noted.set()
