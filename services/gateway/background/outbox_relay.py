"""From the outbox to the broker: what a commit has caused leaves when its time has come."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress

import structlog

from services.gateway.ports import JobStore, Outgoing
from shared.errors import Unavailable
from shared.messaging.messages import decode
from shared.ports import Bus
from shared.retry import reconnect_delay

MOST_BUSY = 32
"""Jobs whose messages are on their way; with more, nothing new is taken."""
ROWS = 50
TAKEN_HEARTBEATS = 2
"""For so long what one gateway has taken is not another's, should it die."""

log = structlog.get_logger()


class OutboxRelay:
    """Publishes with confirm; one job's messages in order, and no job waits for another."""

    def __init__(
        self, bus: Bus, jobs: JobStore, *, clock: Callable[[], float], heartbeat: float
    ) -> None:
        self._bus = bus
        self._jobs = jobs
        self._clock = clock
        self._poll = min(max(heartbeat / 10, 0.05), 1.0)
        self._lease = TAKEN_HEARTBEATS * heartbeat
        self._woken = asyncio.Event()
        self._busy: set[str] = set()
        """Jobs whose messages are on their way."""
        self._failures: dict[str, int] = {}
        """In a row, by outgoing message."""

    def wake(self) -> None:
        """Something new is due; look now."""
        self._woken.set()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                self._woken.clear()
                for job, rows in (await self._taken()).items():
                    if job not in self._busy:  # else the broker is slow, and they are on their way
                        self._busy.add(job)
                        group.create_task(self._publish_all(job, rows))
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._poll):
                        await self._woken.wait()

    async def _taken(self) -> dict[str, list[Outgoing]]:
        """What is due, and ours to send, by job, both in the order of writing."""
        by_job: dict[str, list[Outgoing]] = {}
        now = self._clock()
        try:
            if len(self._busy) < MOST_BUSY:
                for row in await self._jobs.take_due(now, now + self._lease, ROWS):
                    by_job.setdefault(row.job, []).append(row)
        except Unavailable as error:
            log.warning("outbox_unreadable", reason=str(error))
        return by_job

    async def _publish_all(self, job: str, rows: Sequence[Outgoing]) -> None:
        try:
            for row in rows:
                await self._publish_or_postpone(row)
        except Unavailable as error:  # of the database: the rows are taken once more
            log.warning("outbox_unwritable", job=job, reason=str(error))
        else:
            self.wake()  # there may be more than one look could show
        finally:
            self._busy.discard(job)

    async def _publish_or_postpone(self, row: Outgoing) -> None:
        try:
            await self._publish(row)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one, the others go on
            await self._postpone(row, error)
        else:
            self._failures.pop(row.id, None)
            await self._jobs.sent(row.id)

    async def _publish(self, row: Outgoing) -> None:
        message = decode(row.message)
        if row.queue is None:
            await self._bus.publish(message, mandatory=row.mandatory)
        else:
            await self._bus.send(row.queue, message, mandatory=row.mandatory)

    async def _postpone(self, row: Outgoing, error: Exception) -> None:
        failures = self._failures[row.id] = self._failures.get(row.id, 0) + 1
        wait = reconnect_delay(failures)
        log.warning("not_published", id=row.id, again_in=wait, reason=str(error))
        await self._jobs.postpone(row.id, self._clock() + wait)
