"""Read and write jobs; each change is a compare-and-set, in one commit with its messages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing
from functools import partial
from math import inf
from typing import Any, NamedTuple
from uuid import uuid4

import msgspec
import structlog

from services.gateway.jobs.change_notifier import ChangeNotifier
from services.gateway.jobs.job_events import job_events, log_end
from services.gateway.jobs.job_metrics import count_change
from services.gateway.jobs.presenter import Presenter
from services.gateway.jobs.record import (
    EDITS,
    LARGE_FIELDS,
    Effect,
    Job,
    StageRecord,
    Step,
    files_due_at,
    is_staging,
    kept_bytes,
    needed_model,
    open_stages,
    overdue_at,
)
from services.gateway.jobs.transitions import give_up_message
from services.gateway.jobs.webhook_schedule import warn_if_undelivered, webhook_failed_at
from services.gateway.ports import JobStore, Outgoing, StoredEvent, StoredJob, StoredProgress
from shared.errors import NotFound, Unavailable, Unpublishable, Unroutable, shorten
from shared.messaging.messages import Message, WebhookDue, decode, encode, type_of
from shared.ports import Bus, ObjectStore
from shared.storage.large_fields import LARGE, load_fields, put_value, store_fields, store_message
from shared.telemetry import tracing

log = structlog.get_logger()


class JobVersion(NamedTuple):
    """A live job with its progress, or one that has ended, as it stood at a version of its row."""

    job: Job
    version: int
    sequence: int = 0
    """How often its progress has changed, which does not change the version."""


class UnknownJob(Exception):
    """The job never existed, or was removed."""

    def __init__(self, job: str) -> None:
        super().__init__(f"there is no job {job[:80]!r} of this key")


class JobRepository:
    """The only writer of jobs in a gateway."""

    def __init__(
        self,
        bus: Bus,
        store: ObjectStore,
        jobs: JobStore,
        presenter: Presenter,
        *,
        clock: Callable[[], float],
        on_due: Callable[[], None],
        on_turn: Callable[[], None],
        on_end: Callable[[Job], None],
        on_replaced: Callable[[str], None],
        on_uncertain: Callable[[str], None],
    ) -> None:
        """Connect stores and callbacks.

        Args:
            bus: for replies to workers.
            store: for what is too large for records and messages.
            jobs: the records and the outbox.
            presenter: renders the bodies of webhooks.
            clock: seconds since the epoch.
            on_due: called after rows were added to the outbox.
            on_turn: called when a job begins to wait for its turn, or a place may be free.
            on_end: called when a job has ended.
            on_replaced: called with the key, or the prefix, of what nothing names any more.
            on_uncertain: called with the id of a job that has objects and perhaps no row.
        """
        self._bus = bus
        self._store = store
        self._jobs = jobs
        self._presenter = presenter
        self._clock = clock
        self._on_due = on_due
        self._on_turn = on_turn
        self._on_end = on_end
        self._on_replaced = on_replaced
        self._on_uncertain = on_uncertain
        self._change_notifier = ChangeNotifier()
        self._sending: set[asyncio.Task[None]] = set()
        """Replies being sent; a task without a reference could be collected."""

    async def get(self, job_id: str) -> Job | None:
        """The job; None when there is none. Raises Unavailable."""
        current = await self.version(job_id)
        return current.job if current else None

    async def version(self, job_id: str) -> JobVersion | None:
        """The job with the version of its row, and its progress. Raises Unavailable."""
        found = await self._jobs.get_live(job_id)
        if found is None:
            return None
        row, progress = found
        job = read(row)
        return JobVersion(
            with_progress(job, progress), row.version, sum(each.sequence for each in progress)
        )

    async def versions(self, job_id: str, seconds: float = inf) -> AsyncGenerator[JobVersion, None]:
        """The job now, at each change, and when the time is over.

        A change that another gateway wrote comes within a second; the same version may come more
        than once. Close the iterator (``aclosing``) when leaving it early.

        Raises:
            UnknownJob: the job does not exist, or was removed.
            Unavailable: the database does not answer.
        """
        async with aclosing(self._change_notifier.changes(job_id, seconds)) as changes:
            async for _ in changes:
                current = await self.version(job_id)
                if current is None:
                    raise UnknownJob(job_id)
                yield current

    def changes(self, owner: str) -> AsyncGenerator[None, None]:
        """Now, whenever this gateway changes a job of the owner, and each second; to be closed."""
        return self._change_notifier.changes(owner)

    async def create(self, step: Step, request_bytes: int) -> bool:
        """Write a new job; False when its id is used already.

        Raises:
            Unavailable: the database does not answer; or a field is large, and the store does not.
        """
        is_large = request_bytes > LARGE or len(msgspec.json.encode(step.job)) > LARGE
        if is_large and await self._jobs.get(step.job.id) is not None:
            return False  # nothing is put into the store for it
        known: set[str] = set()
        try:
            record = await self._with_stored(step, known)
            new = await self._jobs.insert(
                msgspec.structs.replace(row_of(record, 1), request_bytes=request_bytes),
                await self._outgoing(step, 1, known),
                await self._events(None, step.job, 1, known),
                open_stages(step.job),
            )
        except BaseException:  # also a request that is out of time
            if is_large:
                self._on_uncertain(step.job.id)
            raise
        if new:
            count_change(None, step.job, self._clock())
        self._on_due()
        self._change_notifier.notify(step.job.owner)
        if step.job.released_at is None:
            self._on_turn()
        return new

    async def with_edits(self, job: Job) -> Job | None:
        """The job with the changes of its pictures; None: it was removed.

        What a later change replaces is deleted, perhaps while it is read here: then the job is as
        it was changed. Changes that the store has lost are left out.

        Raises:
            Unavailable: the database or the store does not answer.
        """
        while True:
            try:
                return await load_fields(self._store, job, [EDITS])
            except NotFound:
                now = await self.get(job.id)
            if now is None:
                return None
            if now.stored.get(EDITS) == job.stored[EDITS]:
                return await self._presenter.whole(job, [EDITS])
            job = now

    async def change(
        self,
        job_id: str,
        decide: Callable[[Job], Step],
        *,
        results: bool = False,
        request_bytes: int = 0,
    ) -> Job | None:
        """Replace a job by what ``decide`` returns, and send the messages of that step.

        When another writer was faster, ``decide`` is called again with the newer record. Fields
        of it that are in the store are left empty; with ``results`` only the input is.
        ``request_bytes`` are added to those of the job's request.

        Returns:
            The job afterwards; None when there is no such job.

        Raises:
            Unavailable: the database or the store does not answer; nothing is written.
        """
        while (row := await self._jobs.get(job_id)) is not None:
            before = read(row)
            known, edits = {*before.stored.values()}, before.stored.get(EDITS)
            if results:
                if (edited := await self.with_edits(before)) is None:
                    continue
                before = await self._presenter.whole(edited)
            step = decide(before)
            if await self._write(
                before, row.version + 1, step, known, edits=edits, request_bytes=request_bytes
            ):
                self.send_replies(step.effects)
                return step.job
        return None

    async def give_up_message(self, message: Message, reason: str) -> None:
        """Record that the broker refuses a job's message for good. Raises Unavailable."""
        log.warning("message_given_up", job=message.job, type=type_of(message), reason=reason)
        give_up = partial(
            give_up_message, message=message, reason=shorten(reason), now=self._clock()
        )
        await self.change(message.job, give_up)

    async def write_progress(self, rows: Sequence[StoredProgress]) -> None:
        """Set the newest progress of many jobs at once. Raises Unavailable."""
        await self._jobs.write_progress(rows)
        for row in rows:
            self._change_notifier.notify(row.job)

    async def remove(self, job_id: str, owner: str) -> bool:
        """Remove an owner's job; False when there is none. Raises Unavailable."""
        removed = await self._jobs.remove(job_id, self._clock())
        if removed:
            log.info("job_removed", job=job_id)
            self._change_notifier.notify(job_id, owner)
        return removed

    def send_replies(self, effects: Iterable[Effect]) -> None:
        """Send the messages that are not durable, once; a worker that misses a reply asks again.

        They are sent in the background: a stalled broker must not delay the response to a client.
        """
        for effect in effects:
            if not effect.durable and effect.queue:
                task = asyncio.create_task(self._send(effect.queue, effect.message))
                self._sending.add(task)
                task.add_done_callback(self._sending.discard)

    async def _send(self, queue: str, message: Message) -> None:
        try:
            small = await store_message(self._store, message)
            await self._bus.send(queue, small, mandatory=False)
        except (Unavailable, Unroutable) as error:
            log.warning("answer_lost", job=message.job, reason=str(error))
        except Unpublishable as error:
            await self._give_up_answer(message, str(error))

    async def _give_up_answer(self, message: Message, reason: str) -> None:
        try:
            await self.give_up_message(message, reason)
        except Unavailable as error:  # the worker asks again
            log.warning("answer_lost", job=message.job, reason=str(error))

    async def _write(
        self,
        before: Job,
        version: int,
        step: Step,
        known: set[str],
        *,
        edits: str | None,
        request_bytes: int,
    ) -> bool:
        """Write the step unless another writer was faster; returns whether it was written.

        ``known`` has the keys of values that are in the store already; ``edits`` is the key of the
        job's edits so far, if they are in the store.
        """
        if step.job == before and not any(effect.durable for effect in step.effects):
            return True
        outgoing = await self._outgoing(step, version, known)
        record = await self._with_stored(step, known)
        row = msgspec.structs.replace(row_of(record, version), request_bytes=request_bytes)
        events = await self._events(before, step.job, version, known)
        stages = open_stages(step.job)
        is_written = await self._jobs.replace(
            row,
            outgoing,
            events,
            None if stages == open_stages(before) else stages,
            expected_version=version - 1,
        )
        new = record.stored.get(EDITS)
        unneeded = edits if is_written else new
        if edits != new and unneeded is not None:
            self._on_replaced(unneeded)
        if not is_written:
            return False
        count_change(before, step.job, self._clock())
        for prefix in step.job.files_to_delete:
            if prefix not in before.files_to_delete:
                self._on_replaced(prefix)
        self._on_due()
        if _turn_of(step.job) != _turn_of(before):
            self._on_turn()
        self._change_notifier.notify(step.job.id, step.job.owner)
        if step.job.ended and not before.ended:
            log_end(step.job)
            self._on_end(step.job)
        if before.ended and step.job.webhook_settled and not before.webhook_settled:
            warn_if_undelivered(step.job)
        return True

    async def _with_stored(self, step: Step, known: set[str]) -> Job:
        """The record as it is written: what is large is in the store."""
        stages = {
            stage: msgspec.structs.replace(
                record, trigger=await self._small(_trigger(record, step), known)
            )
            if len(record.trigger) > LARGE
            else record
            for stage, record in step.job.stages.items()
        }
        job = await self._with_stored_edits(msgspec.structs.replace(step.job, stages=stages))
        return await store_fields(self._store, job, job.id, LARGE_FIELDS, known)

    async def _with_stored_edits(self, job: Job) -> Job:
        """Large edits go into the store, each time under a new key: the former one is deleted."""
        if len(text := msgspec.json.encode(job.edits)) <= LARGE:
            return job
        key = f"jobs/{job.id}/values/edits-{uuid4().hex}.json"
        await self._store.put(key, text)
        return msgspec.structs.replace(job, edits={}, stored={**job.stored, EDITS: key})

    async def _small(self, message: Message, known: set[str]) -> bytes:
        return encode(await store_message(self._store, message, known))

    async def _events(
        self, before: Job | None, after: Job, version: int, known: set[str]
    ) -> list[StoredEvent]:
        told = [
            (kind, await self._event_data(after.id, data, known))
            for kind, data in job_events(before, after)
        ]
        now = self._clock()  # not before, so that it is soon seen by whoever follows the owner
        return [
            StoredEvent(job=after.id, version=version, number=number, at=now, type=kind, data=data)
            for number, (kind, data) in enumerate(told)
        ]

    async def _event_data(self, job_id: str, data: dict[str, Any], known: set[str]) -> bytes:
        text = msgspec.json.encode(data)
        if len(text) <= LARGE:
            return text
        return msgspec.json.encode({"stored": await put_value(self._store, job_id, text, known)})

    async def _outgoing(self, step: Step, version: int, known: set[str]) -> list[Outgoing]:
        durable = [effect for effect in step.effects if effect.durable]
        # Each try of a webhook is a part of the whole: the last may come hours after the first.
        whole, current = step.job.traceparent, tracing.traceparent()
        return [
            Outgoing(
                id=f"{step.job.id}/{version}/{number}",
                message=await self._body(step.job, effect, known),
                queue=effect.queue,
                mandatory=effect.mandatory,
                due_at=self._clock() + effect.delay,
                owner=step.job.owner if isinstance(effect.message, WebhookDue) else None,
                traceparent=(whole if isinstance(effect.message, WebhookDue) else current or whole),
            )
            for number, effect in enumerate(durable)
        ]

    async def _body(self, job: Job, effect: Effect, known: set[str]) -> bytes:
        """The encoded message; a webhook's body is the response of ``/status``, byte for byte."""
        message = effect.message
        if isinstance(message, WebhookDue):
            live = None if job.ended else await self._jobs.get_live(job.id)
            status = await self._presenter.status(with_progress(job, live[1] if live else ()))
            message = msgspec.structs.replace(message, body=status.decode())
        return await self._small(message, known)


def _turn_of(job: Job) -> tuple[object, ...]:
    """What the places are counted by."""
    return job.status, job.released_at, is_staging(job)


def _trigger(record: StageRecord, step: Step) -> Message:
    """The message that asked for the stage; decoded anew, its texts would be in memory twice."""
    at_hand = (step.due, *(effect.message for effect in step.effects))
    for message in at_hand:
        if message is not None and encode(message) == record.trigger:
            return message
    return decode(record.trigger)


def read(row: StoredJob) -> Job:
    """The job in a row."""
    return msgspec.json.decode(row.record, type=Job)


def with_progress(job: Job, rows: Sequence[StoredProgress]) -> Job:
    """The job with the numbers of its current run."""
    progress = {
        row.stage: msgspec.json.decode(row.numbers, type=dict[str, Any])
        for row in rows
        if row.run == job.run
    }
    return msgspec.structs.replace(job, progress=progress)


def row_of(job: Job, version: int) -> StoredJob:
    """The row for a job, with the fields that are queried in columns of their own."""
    model = needed_model(job)
    return StoredJob(
        id=job.id,
        owner=job.owner,
        status=job.status,
        version=version,
        run=job.run,
        created_at=job.created_at,
        started_at=job.started_at,
        ended_at=job.ended_at,
        overdue_at=overdue_at(job),
        line=job.line,
        low=job.policy.lowPriority,
        released_at=job.released_at,
        staging=is_staging(job),
        kept_until=files_due_at(job),
        kept_bytes=kept_bytes(job),
        model=model.prefix if model else None,
        model_bytes=model.bytes if model else 0,
        webhook_failed_at=webhook_failed_at(job),
        record=msgspec.json.encode(msgspec.structs.replace(job, progress={})),
    )
