"""The job store in a database; see :class:`services.gateway.ports.JobStore`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from typing import Any, Self, get_args

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Row
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.dml import ReturningUpdate

from services.gateway.database.connection import Database
from services.gateway.database.job_rows import (
    Insert,
    add_beside,
    columns_of,
    last_event_at,
    replace_rows,
)
from services.gateway.database.tables import (
    COUNTED,
    STORED,
    dead_letters,
    events,
    jobs,
    open_stages,
    outbox,
    progress,
    removed,
    streams,
)
from services.gateway.ports import (
    DELETED,
    END_STATUSES,
    Due,
    JobUsage,
    Line,
    OpenStage,
    Outgoing,
    RemovedJob,
    Replacement,
    Status,
    StoredEvent,
    StoredJob,
    StoredProgress,
)
from shared.messaging.messages import STAGES

EVENT = [events.c[name] for name in StoredEvent.__struct_fields__]
PAGE = 100
"""Rows fetched at a time when all are requested."""
OUTBOX_LOCK = 0x6F757462
"""Advisory lock under which one gateway at a time leases from the outbox."""

WITH_PROGRESS = sa.select(
    jobs,
    *(progress.c.stage, progress.c.run.label("of_run"), progress.c.numbers, progress.c.sequence),
).outerjoin(progress, (progress.c.job == jobs.c.id) & jobs.c.ended_at.is_(None))


def _free(*which: sa.ColumnElement[bool]) -> sa.Select[tuple[int]]:
    """Numbers of the rows that are due ``now``, and whose jobs have no leased rows."""
    now, others = sa.bindparam("now", type_=outbox.c.due_at.type), outbox.alias("others")
    taken = sa.exists().where(others.c.job == outbox.c.job, others.c.taken_until > now)
    return sa.select(outbox.c.number).where(outbox.c.due_at <= now, ~taken, *which)


def _of_owners_in_turn() -> sa.Select[tuple[int]]:
    """Of webhooks, each owner's first, then each owner's second."""
    in_order = (outbox.c.due_at, outbox.c.number)
    number = sa.func.row_number().over(partition_by=outbox.c.owner, order_by=in_order)
    due = _free(IS_WEBHOOK).add_columns(number.label("of_owner"), outbox.c.due_at).subquery()
    return sa.select(due.c.number).order_by(due.c.of_owner, due.c.due_at)


def _take(chosen: sa.Select[tuple[int]]) -> ReturningUpdate[Any]:
    """Lease the first ``most`` of these rows ``until`` a moment."""
    first = chosen.limit(sa.bindparam("most", type_=sa.Integer))
    leased = sa.bindparam("until", type_=outbox.c.taken_until.type)
    of_first = outbox.c.number.in_(first)
    return sa.update(outbox).where(of_first).values(taken_until=leased).returning(outbox)


IS_WEBHOOK = outbox.c.owner.is_not(None)
# Made once: to put one together takes longer than to have it carried out, several times a second.
DUE = sa.select(
    _free(~IS_WEBHOOK).exists().label("messages"), _free(IS_WEBHOOK).exists().label("webhooks")
)
TAKE_MESSAGES = _take(_free(~IS_WEBHOOK).order_by(outbox.c.due_at, outbox.c.number))
TAKE_WEBHOOKS = _take(_of_owners_in_turn())


class SqlJobStore:
    """Jobs, their events, and the outbox."""

    def __init__(self, database: Database) -> None:
        self._database = database
        is_sqlite = database.dialect == "sqlite"
        self._upsert_progress = _each_progress if is_sqlite else _all_progress

    @classmethod
    def open(cls, url: str) -> Self:
        """A store with connections of its own; see :meth:`.connection.Database.open`."""
        return cls(Database.open(url))

    async def migrate(self) -> None:
        await self._database.migrate()

    async def insert(
        self,
        job: StoredJob,
        outgoing: Sequence[Outgoing],
        happened: Sequence[StoredEvent] = (),
        stages: Sequence[OpenStage] = (),
    ) -> bool:
        gone = sa.select(removed).where(removed.c.job == job.id)
        async with self._database.writing() as connection:
            if (await connection.execute(gone)).first():
                return False
            row = self._database.insert(jobs).values(**columns_of(job)).on_conflict_do_nothing()
            if (await connection.execute(row)).rowcount == 0:
                return False
            new = Replacement(job=job, outgoing=outgoing, happened=happened, stages=stages)
            await add_beside(connection, self._database.insert, [new], {})
            return True

    async def get(self, job_id: str) -> StoredJob | None:
        found = await self._database.all(sa.select(jobs).where(jobs.c.id == job_id))
        return stored_job(found[0]) if found else None

    async def get_many(self, job_ids: Sequence[str]) -> Sequence[StoredJob]:
        found = await self._database.all(sa.select(jobs).where(jobs.c.id.in_(job_ids)))
        return [stored_job(row) for row in found]

    async def versions(self, job_ids: Sequence[str]) -> Mapping[str, int]:
        narrow = sa.select(jobs.c.id, jobs.c.version).where(jobs.c.id.in_(job_ids))
        return {row.id: row.version for row in await self._database.all(narrow)}

    async def replace(
        self,
        job: StoredJob,
        outgoing: Sequence[Outgoing],
        happened: Sequence[StoredEvent] = (),
        stages: Sequence[OpenStage] | None = None,
        *,
        expected_version: int,
    ) -> bool:
        if job.version != expected_version + 1:
            raise ValueError(f"version {job.version} cannot follow {expected_version}")
        new = Replacement(job=job, outgoing=outgoing, happened=happened, stages=stages)
        return bool(await self.replace_many([new]))

    async def replace_many(self, replacements: Sequence[Replacement]) -> Collection[str]:
        async with self._database.writing() as connection:
            return await replace_rows(connection, self._database.insert, replacements)

    async def claims(self) -> Sequence[OpenStage]:
        claimed = sa.select(open_stages).where(open_stages.c.claim.is_not(None))
        return [open_stage(row) for row in await self._database.all(claimed)]

    async def waiting(self, now: float, limit: int = 100) -> Sequence[OpenStage]:
        due = open_stages.c.claim.is_(None) & (open_stages.c.due_at <= now)
        first = sa.select(open_stages).where(due).order_by(open_stages.c.due_at).limit(limit)
        of_each = (first.where(open_stages.c.stage == stage).subquery() for stage in STAGES)
        every = sa.union_all(*(sa.select(each) for each in of_each))
        return [open_stage(row) for row in await self._database.all(every)]

    async def overdue(self, now: float) -> AsyncIterator[str]:
        position = sa.tuple_(jobs.c.overdue_at, jobs.c.id)
        every = sa.select(*position.clauses).where(jobs.c.overdue_at < now)
        every = every.order_by(*position.clauses).limit(PAGE)
        page = await self._database.all(every)
        while page:
            for row in page:
                yield row.id
            page = await self._database.all(every.where(position > tuple(page[-1])))

    async def write_progress(self, rows: Sequence[StoredProgress]) -> None:
        if rows:
            async with self._database.writing() as connection:
                await connection.execute(*self._upsert_progress(rows))

    async def get_live(self, job_id: str) -> tuple[StoredJob, Sequence[StoredProgress]] | None:
        rows = await self._database.all(WITH_PROGRESS.where(jobs.c.id == job_id))
        if not rows:
            return None
        columns = {column.name: rows[0]._mapping[column] for column in jobs.c}  # noqa: SLF001
        return StoredJob(**columns), [
            StoredProgress(job_id, row.stage, row.of_run, row.numbers, row.sequence)
            for row in rows
            if row.stage is not None
        ]

    async def progress_of(self, job_ids: Sequence[str]) -> Sequence[StoredProgress]:
        wanted = sa.select(progress).where(progress.c.job.in_(job_ids))
        return [StoredProgress(**row._mapping) for row in await self._database.all(wanted)]  # noqa: SLF001

    async def ended_before(
        self, moment: float, limit: int = 100, *, after: float = 0.0, now: float | None = None
    ) -> Sequence[str]:
        between = (jobs.c.ended_at < moment) & (jobs.c.ended_at > after)
        if now is not None:
            between &= jobs.c.kept_until.is_(None) | (jobs.c.kept_until < now)
        old = jobs.c.status.in_(END_STATUSES) & between
        ids = sa.select(jobs.c.id).where(old).order_by(jobs.c.ended_at).limit(limit)
        return [row.id for row in await self._database.all(ids)]

    async def delete(self, job_id: str) -> None:
        async with self._database.writing() as connection:
            await _delete(connection, job_id)
            await connection.execute(sa.delete(removed).where(removed.c.job == job_id))

    async def remove(self, job_id: str, at: float) -> bool:
        later = (outbox.c.job == job_id) & (outbox.c.due_at > at)
        last = sa.select(jobs.c.owner, jobs.c.version, last_event_at(job_id))
        # Locked, so that nobody adds an event that would be left over.
        locked = last.where(jobs.c.id == job_id).with_for_update()
        async with self._database.writing() as connection:
            if (row := (await connection.execute(locked)).first()) is None:
                return False
            await _delete(connection, job_id)
            await connection.execute(sa.delete(outbox).where(later))
            await connection.execute(self._database.insert(removed).values(job=job_id, at=at))
            gone = {"job": job_id, "version": row.version + 1, "number": 0, "owner": row.owner}
            told = {"at": max(at, row.last_at or 0.0), "type": DELETED, "data": b"{}"}
            await connection.execute(self._database.insert(events).values(**gone, **told))
            return True

    async def removed(self) -> Sequence[RemovedJob]:
        rows = await self._database.all(sa.select(removed).order_by(removed.c.at, removed.c.job))
        return [RemovedJob(row.job, row.at) for row in rows]

    async def take_due(self, now: float, until: float, limit: int = 100) -> Sequence[Outgoing]:
        return await self._take(TAKE_MESSAGES, now, until, limit)

    async def due(self, now: float) -> Due:
        (row,) = await self._database.all(DUE, {"now": now})
        return Due(messages=bool(row.messages), webhooks=bool(row.webhooks))

    async def take_webhooks(self, now: float, until: float, limit: int) -> Sequence[Outgoing]:
        return await self._take(TAKE_WEBHOOKS, now, until, limit)

    async def _take(
        self, take: sa.Executable, now: float, until: float, limit: int
    ) -> Sequence[Outgoing]:
        values = {"now": now, "until": until, "most": limit}
        async with self._database.writing(lock=OUTBOX_LOCK) as connection:
            rows = (await connection.execute(take, values)).all()
        return [_outgoing(row) for row in sorted(rows, key=lambda row: (row.due_at, row.number))]

    async def sent(self, outgoing_id: str) -> None:
        await self._database.do(sa.delete(outbox).where(outbox.c.id == outgoing_id))

    async def postpone(self, outgoing_id: str, due_at: float) -> None:
        row = sa.update(outbox).where(outbox.c.id == outgoing_id)
        await self._database.do(row.values(due_at=due_at, taken_until=0.0))

    async def counts(self, owner: str, limit: int | None = None) -> Mapping[str, int]:
        number = sa.func.count().label("number")
        theirs = sa.select(jobs.c.status).where(jobs.c.owner == owner)
        first = theirs.order_by(jobs.c.created_at, jobs.c.id).limit(limit)
        some = sa.union_all(
            *(
                sa.select(first.where(jobs.c.status == status).subquery())
                for status in get_args(Status)
            )
        )
        counted = (theirs if limit is None else some).subquery()
        by_status = sa.select(counted.c.status, number).group_by(counted.c.status)
        rows = await self._database.all(by_status)
        return {row.status: int(row.number) for row in rows}

    async def usage(self, owner: str) -> JobUsage:
        """By the index alone."""
        each = sa.select(
            jobs.c.status,
            sa.func.count().label("number"),
            sa.func.sum(jobs.c.request_bytes).label("size"),
        )
        by_status = each.where(jobs.c.owner == owner).group_by(jobs.c.status)
        rows = await self._database.all(by_status)
        return JobUsage(
            live=sum(int(row.number) for row in rows if row.status not in END_STATUSES),
            kept=sum(int(row.number) for row in rows),
            request_bytes=sum(int(row.size) for row in rows),
        )

    async def kept_bytes(self, owner: str) -> int:
        """By the index alone."""
        size = sa.func.coalesce(sa.func.sum(jobs.c.kept_bytes), 0).label("size")
        theirs = sa.select(size).where(jobs.c.owner == owner, STORED)
        (row,) = await self._database.all(theirs)
        return int(row.size)

    async def model_bytes(self, owner: str, *, without: str = "") -> int:
        """By the index alone."""
        size = sa.func.max(jobs.c.model_bytes).label("size")
        theirs = (jobs.c.owner == owner) & (jobs.c.model != without)
        each = sa.select(size).where(theirs, COUNTED).group_by(jobs.c.model)
        return sum(int(row.size) for row in await self._database.all(each))

    async def needs_model(self, prefix: str) -> bool:
        """By the index alone."""
        needing = sa.select(jobs.c.model).where(jobs.c.model == prefix).limit(1)
        return bool(await self._database.all(needing))

    async def kept_before(self, moment: float, limit: int = 100) -> Sequence[str]:
        over = sa.select(jobs.c.id).where(jobs.c.kept_until < moment).limit(limit)
        return [row.id for row in await self._database.all(over)]

    async def count_retried(self, owner: str) -> int:
        more = sa.func.coalesce(sa.func.sum(jobs.c.run - 1), 0).label("number")
        retried = (jobs.c.owner == owner) & (jobs.c.run > 1)
        (row,) = await self._database.all(sa.select(more).where(retried))
        return int(row.number)

    async def queued(self, owner: str) -> Sequence[str]:
        waiting = (jobs.c.owner == owner) & (jobs.c.status == "IN_QUEUE")
        newest_first = (jobs.c.created_at.desc(), jobs.c.id.desc())
        ids = sa.select(jobs.c.id).where(waiting).order_by(*newest_first)
        return [row.id for row in await self._database.all(ids)]

    async def execution_seconds(self, line: Line, limit: int) -> Sequence[float]:
        seconds = (jobs.c.ended_at - jobs.c.started_at).label("seconds")
        completed = (jobs.c.status == "COMPLETED") & jobs.c.started_at.is_not(None)
        ran = completed & (jobs.c.line == line)
        newest = sa.select(seconds).where(ran).order_by(jobs.c.created_at.desc()).limit(limit)
        return [row.seconds for row in await self._database.all(newest)]

    async def newest(
        self,
        *,
        owner: str | None = None,
        statuses: Sequence[str] = (),
        lines: Sequence[Line] = (),
        before: tuple[float, str] | None = None,
        id_begins: str = "",
        limit: int = 100,
    ) -> Sequence[StoredJob]:
        position = sa.tuple_(jobs.c.created_at, jobs.c.id)
        wanted = sa.select(jobs).order_by(jobs.c.created_at.desc(), jobs.c.id.desc()).limit(limit)
        if owner is not None:
            wanted = wanted.where(jobs.c.owner == owner)
        if statuses:
            wanted = wanted.where(jobs.c.status.in_(statuses))
        if lines:
            wanted = wanted.where(jobs.c.line.in_(lines) | jobs.c.line.is_(None))
        if before is not None:
            wanted = wanted.where(position < before)
        if id_begins:
            wanted = wanted.where(jobs.c.id.startswith(id_begins, autoescape=True))
        return [stored_job(row) for row in await self._database.all(wanted)]

    async def events_after(
        self, job_id: str, version: int, number: int, limit: int = 100
    ) -> Sequence[StoredEvent]:
        position = sa.tuple_(events.c.version, events.c.number)
        later = (events.c.job == job_id) & (position > (version, number))
        rows = sa.select(*EVENT).where(later).order_by(*position.clauses).limit(limit)
        return [stored_event(row) for row in await self._database.all(rows)]

    async def streamed(self, job_id: str) -> tuple[str, float]:
        rows = await self._database.all(sa.select(streams).where(streams.c.job == job_id))
        return (rows[0].digest, rows[0].at) if rows else ("", 0.0)

    async def stream(self, job_id: str, digest: str, at: float, *, expected: str) -> bool:
        mark = {"digest": digest, "at": at}
        if expected:
            unchanged = (streams.c.job == job_id) & (streams.c.digest == expected)
            return await self._database.do(sa.update(streams).where(unchanged).values(mark)) == 1
        first = self._database.insert(streams).values(job=job_id, **mark).on_conflict_do_nothing()
        return await self._database.do(first) == 1

    async def close(self) -> None:
        await self._database.close()


async def _delete(connection: AsyncConnection, job_id: str) -> bool:
    """Delete a job with all that is kept beside it; whether there was one."""
    for table in (events, streams, open_stages, progress, dead_letters):
        await connection.execute(sa.delete(table).where(table.c.job == job_id))
    return (await connection.execute(sa.delete(jobs).where(jobs.c.id == job_id))).rowcount == 1


PROGRESS = ("job", "stage", "run", "numbers")


def _upsert_progress(insert: Insert, given: sa.Select[Any]) -> sa.Executable:
    """Set a stage's numbers and count the change; nothing if its job is gone or none changed."""
    add = insert(progress).from_select([*PROGRESS, "sequence"], given)
    new = add.excluded
    return add.on_conflict_do_update(
        index_elements=["job", "stage"],
        set_={"run": new.run, "numbers": new.numbers, "sequence": progress.c.sequence + 1},
        where=(progress.c.numbers != new.numbers) | (progress.c.run != new.run),
    )


FIRST = sa.literal_column("1", sa.Integer).label("sequence")
_each = [sa.bindparam(name, type_=progress.c[name].type) for name in PROGRESS]
UPSERT_EACH = _upsert_progress(
    sqlite.insert, sa.select(*_each, FIRST).where(jobs.c.id == sa.bindparam("job"))
)
_every = sa.func.unnest(
    *(sa.bindparam(name, type_=sa.ARRAY(progress.c[name].type)) for name in PROGRESS)
).table_valued(*(sa.column(name, progress.c[name].type) for name in PROGRESS), name="given")
_every = _every.render_derived()
UPSERT_ALL = _upsert_progress(
    postgresql.insert, sa.select(*_every.c, FIRST).where(jobs.c.id == _every.c.job)
)


def _each_progress(rows: Sequence[StoredProgress]) -> tuple[sa.Executable, Any]:
    """A statement with what it is executed with."""
    return UPSERT_EACH, [row._asdict() for row in rows]


def _all_progress(rows: Sequence[StoredProgress]) -> tuple[sa.Executable, Any]:
    """As one array for each column: half the work of a statement for each row."""
    newest = {(row.job, row.stage): row for row in rows}
    columns = zip(*(row[: len(PROGRESS)] for row in newest.values()), strict=True)
    return UPSERT_ALL, dict(zip(PROGRESS, map(list, columns), strict=True))


def stored_job(row: Row[Any]) -> StoredJob:
    return StoredJob(**row._mapping)  # noqa: SLF001 - SQLAlchemy's public name for it


def open_stage(row: Row[Any]) -> OpenStage:
    return OpenStage(row.job, row.stage, row.claim, row.due_at)


def stored_event(row: Row[Any]) -> StoredEvent:
    return StoredEvent(**row._mapping)  # noqa: SLF001 - as above


def _outgoing(row: Row[Any]) -> Outgoing:
    return Outgoing(
        id=row.id,
        message=row.message,
        queue=row.queue,
        mandatory=row.mandatory,
        due_at=row.due_at,
        owner=row.owner,
        traceparent=row.traceparent,
        tracestate=row.tracestate,
    )
