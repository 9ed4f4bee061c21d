"""Read and write jobs; each change is a compare-and-set, in one commit with its messages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from contextvars import Context, copy_context
from functools import partial
from math import inf
from typing import NamedTuple

import msgspec
import structlog

from services.gateway.jobs.change_notifier import ChangeNotifier
from services.gateway.jobs.job_metrics import count_change
from services.gateway.jobs.presenter import Presenter
from services.gateway.jobs.record import EDITS, Effect, Job, Step, is_staging, webhook_id
from services.gateway.jobs.rows import Made, RowMaker, read, with_progress
from services.gateway.jobs.transitions import give_up_message
from services.gateway.ports import JobStore, StoredJob, StoredProgress
from shared.errors import NotFound, Unavailable, Unpublishable, Unroutable, shorten
from shared.messaging.messages import Message, type_of
from shared.ports import Bus, ObjectStore
from shared.storage.large_fields import LARGE, load_fields, store_message

log = structlog.get_logger()


class JobVersion(NamedTuple):
    """A live job with its progress, or one that has ended, as it stood at a version of its row."""

    job: Job
    version: int
    sequence: int = 0
    """How often its progress has changed, which does not change the version."""


class Change(NamedTuple):
    """What is to become of a job; see :meth:`JobRepository.change`."""

    job: str
    decide: Callable[[Job], Step]
    results: bool = False
    context: Context | None = None
    """Of several changes, what each belongs to."""


class Changed(NamedTuple):
    """What came of many changes. A job in neither does not exist."""

    jobs: Mapping[str, JobVersion]
    """The jobs afterwards, by id."""
    outrun: frozenset[str]
    """Jobs that another writer changed meanwhile: theirs are to be tried again."""


class _Pending(NamedTuple):
    """A change that is decided on, and not yet written."""

    before: Job
    version: int
    """Of the row that it was decided on."""
    step: Step
    edits: str | None
    """Key of the job's edits so far, if they are in the store."""
    made: Made | None
    """What is to be written; None: nothing."""

    @property
    def outcome(self) -> JobVersion:
        return JobVersion(self.step.job, self.version + (self.made is not None))


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
        self._rows = RowMaker(store, jobs, presenter, clock)
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
            made = await self._rows.make(None, step, 1, known, request_bytes=request_bytes)
            first = made.replacement
            new = await self._jobs.insert(
                first.job, first.outgoing, first.happened, first.stages or ()
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
            pending = await self._decided(Change(job_id, decide, results), row, request_bytes)
            if pending is not None and await self._write(pending):
                return pending.step.job
        return None

    async def change_many(self, changes: Sequence[Change]) -> Changed:
        """Replace different jobs in one commit; what another writer outran is not written.

        Otherwise as :meth:`change`. If one raises an error, none is written.

        Raises:
            Unavailable: the database or the store does not answer.
        """
        rows = {row.id: row for row in await self._jobs.get_many([each.job for each in changes])}
        pending: dict[str, _Pending | None] = {}
        for change in changes:
            if (row := rows.get(change.job)) is not None:
                # A task also lets requests go on in between.
                deciding = asyncio.create_task(self._decided(change, row), context=change.context)
                pending[change.job] = await deciding
        to_write = [each.made.replacement for each in pending.values() if each and each.made]
        written = await self._jobs.replace_many(to_write) if to_write else ()
        done: dict[str, JobVersion] = {}
        for change in changes:
            each, context = pending.get(change.job), change.context or copy_context()
            if each and context.run(self._tell, each, written=change.job in written):
                done[change.job] = each.outcome
        return Changed(done, frozenset(pending.keys() - done.keys()))

    async def row_versions(self, job_ids: Sequence[str]) -> Mapping[str, int]:
        """Of those of these jobs that there are, the versions of their rows. Raises Unavailable."""
        return await self._jobs.versions(job_ids)

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

    async def _decided(
        self, change: Change, row: StoredJob, request_bytes: int = 0
    ) -> _Pending | None:
        """What the change makes of the job in this row; None: the job was removed meanwhile."""
        before = read(row)
        known, edits = {*before.stored.values()}, before.stored.get(EDITS)
        if change.results:
            if (edited := await self.with_edits(before)) is None:
                return None
            before = await self._presenter.whole(edited)
        step, made = change.decide(before), None
        if step.job != before or any(effect.durable for effect in step.effects):
            made = await self._rows.make(
                before, step, row.version + 1, known, request_bytes=request_bytes
            )
        return _Pending(before, row.version, step, edits, made)

    async def _write(self, pending: _Pending) -> bool:
        """Write it unless another writer was faster; whether it is as it should be."""
        if pending.made is None:
            return self._tell(pending, written=True)
        row = pending.made.replacement
        written = await self._jobs.replace(
            row.job, row.outgoing, row.happened, row.stages, expected_version=pending.version
        )
        return self._tell(pending, written=written)

    def _tell(self, pending: _Pending, *, written: bool) -> bool:
        """Settle it and send its replies; whether it is as it should be."""
        if pending.made is not None and not self._settle(pending, written=written):
            return False
        self.send_replies(pending.step.effects)
        return True

    def _settle(self, pending: _Pending, *, written: bool) -> bool:
        """Tell everybody of what was written, or drop what was put for it; ``written`` again."""
        before, step, edits = pending.before, pending.step, pending.edits
        new = pending.made.edits if pending.made else edits
        unneeded = edits if written else new
        if edits != new and unneeded is not None:
            self._on_replaced(unneeded)
        if not written:
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
            _log_end(step.job)
            self._on_end(step.job)
        if before.ended and step.job.webhook_settled and not before.webhook_settled:
            _warn_if_undelivered(step.job)
        return True


def _turn_of(job: Job) -> tuple[object, ...]:
    """What the places are counted by."""
    return job.status, job.released_at, is_staging(job)


def _log_end(job: Job) -> None:
    """How a job has ended, and how long it took since it was submitted."""
    seconds = round((job.ended_at or 0.0) - job.created_at, 3)
    log.info(
        "job_ended", job=job.id, status=job.status, error=job.error, run=job.run, seconds=seconds
    )


def _warn_if_undelivered(job: Job) -> None:
    """Its ``completed`` webhook is settled, perhaps without a successful delivery."""
    webhook = webhook_id(job, "completed", 0)
    for last in [each for each in job.webhook_tries if each.id == webhook][-1:]:
        if last.reason is not None:
            log.warning("webhook_given_up", job=job.id, tries=last.attempt, reason=last.reason)
