"""Make what is written of a job: its row, messages and events; what is large goes to the store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from uuid import uuid4

import msgspec

from services.gateway.jobs.job_events import job_events
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
from services.gateway.jobs.webhook_schedule import webhook_failed_at
from services.gateway.ports import (
    JobStore,
    Outgoing,
    Replacement,
    StoredEvent,
    StoredJob,
    StoredProgress,
)
from shared.messaging.messages import Message, WebhookDue, decode, encode
from shared.ports import ObjectStore
from shared.storage.large_fields import LARGE, put_value, store_fields, store_message
from shared.telemetry import tracing


class Made(NamedTuple):
    """What is to be written of a step."""

    replacement: Replacement
    edits: str | None
    """Key of the job's edits, if they are in the store."""


class RowMaker:
    """Makes rows, messages and events of steps. All calls raise Unavailable."""

    def __init__(
        self,
        store: ObjectStore,
        jobs: JobStore,
        presenter: Presenter,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._jobs = jobs
        self._presenter = presenter
        self._clock = clock

    async def make(
        self,
        before: Job | None,
        step: Step,
        version: int,
        known: set[str],
        *,
        request_bytes: int = 0,
    ) -> Made:
        """What a step writes.

        Args:
            before: the job before it; None: it is a new one.
            step: the job afterwards, and its messages.
            version: of the row that is made.
            known: keys of values that are in the store already; new ones are added.
            request_bytes: of a new job's request, else what is added to them.
        """
        outgoing = await self._outgoing(step, version, known)
        record = await self._with_stored(step, known)
        stages = open_stages(step.job)
        is_same = before is not None and stages == open_stages(before)
        replacement = Replacement(
            job=msgspec.structs.replace(row_of(record, version), request_bytes=request_bytes),
            outgoing=outgoing,
            happened=await self._events(before, step.job, version, known),
            stages=None if is_same else stages,
        )
        return Made(replacement, record.stored.get(EDITS))

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
        whole, current = tracing.context_of(step.job), tracing.context()
        outgoing: list[Outgoing] = []
        for number, effect in enumerate(durable):
            is_webhook = isinstance(effect.message, WebhookDue)
            context = whole if is_webhook else current or whole
            outgoing.append(
                Outgoing(
                    id=f"{step.job.id}/{version}/{number}",
                    message=await self._body(step.job, effect, known),
                    queue=effect.queue,
                    mandatory=effect.mandatory,
                    due_at=self._clock() + effect.delay,
                    owner=step.job.owner if is_webhook else None,
                    **tracing.kept(context),
                )
            )
        return outgoing

    async def _body(self, job: Job, effect: Effect, known: set[str]) -> bytes:
        """The encoded message; a webhook's body is the response of ``/status``, byte for byte."""
        message = effect.message
        if isinstance(message, WebhookDue):
            live = None if job.ended else await self._jobs.get_live(job.id)
            status = await self._presenter.status(with_progress(job, live[1] if live else ()))
            message = msgspec.structs.replace(message, body=status.decode())
        return await self._small(message, known)


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
