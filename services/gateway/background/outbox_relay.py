"""Publish the outbox: each message leaves once it is due."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import structlog

from services.gateway.ports import JobStore, Outgoing
from shared.errors import Unavailable, Unpublishable
from shared.messaging.messages import Message, decode, type_of
from shared.messaging.topology import NOTIFIER_WEBHOOKS
from shared.ports import Bus
from shared.retry import reconnect_delay
from shared.telemetry import tracing

MAX_BUSY = 32
"""No more messages are leased while those of so many jobs are being published."""
ROWS = 50
"""Most messages leased at once."""
WEBHOOKS_WAITING = 16
"""In the notifiers' queue. No more are published, so that whose webhook is next is decided late."""
LEASE_HEARTBEATS = 2
"""After this time another gateway takes over the messages of one that died."""
PAUSE_SECONDS = 0.02
"""Between two looks: of many messages that are written at once, each would cost one."""

log = structlog.get_logger()


class OutboxRelay:
    """Publishes with confirms: a job's messages in order, different jobs concurrently.

    Webhooks leave in turns: an endpoint that hangs delays its owner's others, and nobody else's.
    """

    def __init__(
        self,
        bus: Bus,
        jobs: JobStore,
        *,
        clock: Callable[[], float],
        heartbeat: float,
        on_unpublishable: Callable[[Message, str], Awaitable[None]],
    ) -> None:
        """Connect the parts.

        Args:
            bus: where messages are published.
            jobs: the outbox.
            clock: seconds since the epoch.
            heartbeat: seconds between heartbeats.
            on_unpublishable: called with a message that the broker refuses for good, and why;
                afterwards the message is forgotten.
        """
        self._bus = bus
        self._jobs = jobs
        self._clock = clock
        self._poll = min(max(heartbeat / 10, 0.05), 1.0)
        self._on_unpublishable = on_unpublishable
        self._lease = LEASE_HEARTBEATS * heartbeat
        self._woken = asyncio.Event()
        self._busy: set[str] = set()
        """Jobs whose messages are being published."""
        self._failures: dict[str, int] = {}
        """In a row, by outgoing message."""

    def wake(self) -> None:
        """There are new messages; look now."""
        self._woken.set()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                self._woken.clear()
                for job, rows in (await self._take_due()).items():
                    if job not in self._busy:  # the lease ran out while the broker was slow
                        self._busy.add(job)
                        group.create_task(self._publish_all(job, rows))
                await asyncio.sleep(PAUSE_SECONDS)
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._poll):
                        await self._woken.wait()

    async def _take_due(self) -> dict[str, list[Outgoing]]:
        """Leased messages by job, both in the order of writing."""
        by_job: dict[str, list[Outgoing]] = {}
        now = self._clock()
        try:
            if len(self._busy) < MAX_BUSY:
                for row in await self._take(now):
                    by_job.setdefault(row.job, []).append(row)
        except Unavailable as error:
            log.warning("outbox_unreadable", reason=str(error))
        return by_job

    async def _take(self, now: float) -> Sequence[Outgoing]:
        due, until = await self._jobs.due(now), now + self._lease
        rows = await self._jobs.take_due(now, until, ROWS) if due.messages else ()
        return (*rows, *(await self._take_webhooks(now) if due.webhooks else ()))

    async def _take_webhooks(self, now: float) -> Sequence[Outgoing]:
        try:
            waiting = await self._bus.depth(NOTIFIER_WEBHOOKS)
        except Unavailable as error:
            log.warning("webhooks_put_off", reason=str(error))
            return ()
        room = WEBHOOKS_WAITING - waiting - len(self._busy)
        return await self._jobs.take_webhooks(now, now + self._lease, room) if room > 0 else ()

    async def _publish_all(self, job: str, rows: Sequence[Outgoing]) -> None:
        try:
            for row in rows:
                await self._publish_or_postpone(row)
        except Unavailable as error:  # of the database: the rows are leased again later
            log.warning("outbox_unwritable", job=job, reason=str(error))
        else:
            self.wake()  # there may be more than ROWS
        finally:
            self._busy.discard(job)

    async def _publish_or_postpone(self, row: Outgoing) -> None:
        try:
            await self._publish(row)
        except Unpublishable as error:
            await self._on_unpublishable(decode(row.message), str(error))
            await self._forget(row)
        except Exception as error:  # noqa: BLE001 - one bad message must not stop the others
            failures = self._failures[row.id] = self._failures.get(row.id, 0) + 1
            wait = reconnect_delay(failures)
            log.warning("not_published", id=row.id, job=row.job, again_in=wait, reason=str(error))
            await self._jobs.postpone(row.id, self._clock() + wait)
        else:
            await self._forget(row)

    async def _forget(self, row: Outgoing) -> None:
        self._failures.pop(row.id, None)
        await self._jobs.sent(row.id)

    async def _publish(self, row: Outgoing) -> None:
        message = decode(row.message)
        with tracing.span(
            f"publish {type_of(message)}", parent=tracing.context_of(row), kind="producer",
            everydream__job=row.job,
        ):  # fmt: skip
            if row.queue is None:
                await self._bus.publish(message, mandatory=row.mandatory)
            else:
                await self._bus.send(row.queue, message, mandatory=row.mandatory)
