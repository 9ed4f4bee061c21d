"""Write the rows of jobs with what lies beside them, many in one transaction."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from services.gateway.database.tables import events, jobs, open_stages, outbox, turns
from services.gateway.ports import Line, Outgoing, Replacement, StoredEvent, StoredJob

Insert = Callable[[sa.Table], sqlite.Insert | postgresql.Insert]


def columns_of(row: StoredJob | Outgoing | StoredEvent) -> Mapping[str, Any]:
    columns = msgspec.structs.asdict(row)
    return {**columns, "job": row.job} if isinstance(row, Outgoing) else columns


def last_event_at(job_id: str | sa.ColumnElement[str]) -> sa.Label[float]:
    """When the job's last event was; NULL: it has none."""
    last = sa.select(events.c.at).where(events.c.job == job_id)
    last = last.order_by(events.c.version.desc(), events.c.number.desc()).limit(1)
    return last.correlate(jobs).scalar_subquery().label("last_at")


def _update() -> sa.Executable:
    """Compare-and-set of one row, whose columns are bound as ``new_NAME``."""
    new: dict[str, Any] = {
        column.name: sa.bindparam(f"new_{column.name}", type_=column.type) for column in jobs.c
    }
    job_id = sa.bindparam("new_id", type_=jobs.c.id.type)
    unchanged = (jobs.c.id == job_id) & (jobs.c.version == sa.bindparam("expected_version"))
    new["request_bytes"] = jobs.c.request_bytes + new["request_bytes"]
    return (
        sa.update(jobs).where(unchanged).values(new).returning(jobs.c.id, last_event_at(jobs.c.id))
    )


def _update_all() -> sa.Executable:
    """The same of many rows, each column as an array; PostgreSQL's."""
    given = (
        sa.func.unnest(
            sa.bindparam("expected_version", type_=sa.ARRAY(jobs.c.version.type)),
            *(sa.bindparam(f"new_{each.name}", type_=sa.ARRAY(each.type)) for each in jobs.c),
        )
        .table_valued(
            sa.column("expected_version", jobs.c.version.type),
            *(sa.column(each.name, each.type) for each in jobs.c),
            name="given",
        )
        .render_derived()
    )
    ids = sa.bindparam("new_id", type_=sa.ARRAY(jobs.c.id.type))
    locked = sa.select(jobs.c.id).where(jobs.c.id == sa.any_(ids)).order_by(jobs.c.id.collate("C"))
    in_order = locked.with_for_update().cte("locked")
    new: dict[str, sa.ColumnElement[Any]] = {each.name: given.c[each.name] for each in jobs.c}
    new["request_bytes"] = jobs.c.request_bytes + new["request_bytes"]
    unchanged = (jobs.c.id == given.c.id) & (jobs.c.version == given.c.expected_version)
    update = sa.update(jobs).where(unchanged, jobs.c.id == in_order.c.id).values(new)
    return update.returning(jobs.c.id, last_event_at(jobs.c.id))


UPDATE = _update()
UPDATE_ALL = _update_all()


async def replace_rows(
    connection: AsyncConnection, insert: Insert, replacements: Sequence[Replacement]
) -> Collection[str]:
    """Replace those that have the version before; their ids.

    All jobs' rows are locked before any other, in the order of their ids, so that no two writers
    wait for each other.
    """
    values = [
        {
            **{f"new_{name}": value for name, value in columns_of(each.job).items()},
            "expected_version": each.job.version - 1,
        }
        for each in sorted(replacements, key=lambda each: each.job.id)
    ]
    if len(values) > 1 and connection.dialect.name == "postgresql":
        arrays = {name: [each[name] for each in values] for name in values[0]}
        found = [*await connection.execute(UPDATE_ALL, arrays)]
    else:  # SQLite answers at once
        found = [row for each in values for row in await connection.execute(UPDATE, each)]
    last_at = {row.id: row.last_at or 0.0 for row in found}
    written = [each for each in replacements if each.job.id in last_at]
    if changed := [each.job.id for each in written if each.stages is not None]:
        await connection.execute(sa.delete(open_stages).where(open_stages.c.job.in_(changed)))
    await add_beside(connection, insert, written, last_at)
    return last_at.keys()


async def add_beside(
    connection: AsyncConnection,
    insert: Insert,
    rows: Sequence[Replacement],
    last_at: Mapping[str, float],
) -> None:
    """Add what is written beside the jobs' rows.

    Of a job's events none is earlier than ``last_at``, whosever clock is slow.
    """
    await _note_turns(connection, insert, [each.job for each in rows])
    told = [
        {
            **columns_of(event),
            "owner": each.job.owner,
            "at": max(event.at, last_at.get(each.job.id, 0.0)),
        }
        for each in rows
        for event in each.happened
    ]
    for table, new in (
        (outbox, [columns_of(row) for each in rows for row in each.outgoing]),
        (events, told),
        (open_stages, [row._asdict() for each in rows for row in each.stages or ()]),
    ):
        if new:
            await connection.execute(insert(table).on_conflict_do_nothing(), new)


async def _note_turns(
    connection: AsyncConnection, insert: Insert, written: Sequence[StoredJob]
) -> None:
    """Of an owner's turns in a line the last is kept, also when its job is deleted."""
    newest: dict[tuple[str, Line], float] = {}
    for job in written:
        if job.status == "IN_QUEUE" and job.released_at and job.line is not None:
            key = job.owner, job.line
            newest[key] = max(job.released_at, newest.get(key, 0.0))
    if not newest:
        return
    add = insert(turns)
    later = add.excluded.released_at
    upsert = add.on_conflict_do_update(
        index_elements=["owner", "line"],
        set_={"released_at": later},
        where=turns.c.released_at < later,
    )
    turn = [
        {"owner": owner, "line": line, "released_at": at}
        for (owner, line), at in sorted(newest.items())
    ]
    await connection.execute(upsert, turn)
