"""What all jobs come to, in a database; see :class:`services.gateway.system_ports.SystemStore`."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from services.gateway.database.connection import Database
from services.gateway.database.jobs import open_stage, stored_job
from services.gateway.database.tables import (
    COUNTED,
    FAILED_WEBHOOKS,
    STORED,
    WAITING,
    jobs,
    open_stages,
    uploads,
)
from services.gateway.ports import StoredJob
from services.gateway.system_ports import LineLoad, StageLoad, StoredBytes, Work, WorkPlace

NUMBER = sa.func.count().label("number")
DATABASE_BYTES = {
    "sqlite": sa.text("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size"),
    "postgresql": sa.text("SELECT pg_database_size(current_database())"),
}


class SqlSystemStore:
    """Reads the rows of jobs, open stages and uploads."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def work(self, after: WorkPlace | None, limit: int) -> Sequence[Work]:
        place = sa.tuple_(open_stages.c.due_at, open_stages.c.job, open_stages.c.stage)
        claimed = sa.select(open_stages).where(open_stages.c.claim.is_not(None))
        if after is not None:
            claimed = claimed.where(place > after)
        first = claimed.order_by(*place.clauses).limit(limit)
        stages = [open_stage(row) for row in await self._database.all(first)]
        theirs = sa.select(jobs).where(jobs.c.id.in_({stage.job for stage in stages}))
        of = {row.id: stored_job(row) for row in await self._database.all(theirs)}
        return [Work(stage, of[stage.job]) for stage in stages if stage.job in of]

    async def stages(self, now: float) -> Sequence[StageLoad]:
        waits = open_stages.c.claim.is_(None) & (open_stages.c.due_at <= now)
        each = sa.select(
            open_stages.c.stage,
            NUMBER,
            sa.func.count(open_stages.c.claim).label("claimed"),
            sa.func.sum(sa.case((waits, 1), else_=0)).label("waiting"),
            sa.func.min(sa.case((waits, open_stages.c.due_at))).label("oldest"),
        ).group_by(open_stages.c.stage)
        return [
            StageLoad(
                stage=row.stage,
                claimed=int(row.claimed),
                waiting=int(row.waiting),
                delayed=int(row.number) - int(row.claimed) - int(row.waiting),
                oldest=row.oldest,
            )
            for row in await self._database.all(each)
        ]

    async def lines(self) -> Sequence[LineLoad]:
        oldest = sa.func.min(jobs.c.created_at).label("oldest")
        each = sa.select(jobs.c.line, NUMBER, oldest).where(WAITING, jobs.c.line.is_not(None))
        rows = await self._database.all(each.group_by(jobs.c.line))
        return [LineLoad(row.line, int(row.number), row.oldest) for row in rows]

    async def given_up(self, before: tuple[float, str] | None, limit: int) -> Sequence[StoredJob]:
        place = sa.tuple_(jobs.c.webhook_failed_at, jobs.c.id)
        wanted = sa.select(jobs).where(FAILED_WEBHOOKS)
        if before is not None:
            wanted = wanted.where(place < before)
        newest = wanted.order_by(jobs.c.webhook_failed_at.desc(), jobs.c.id.desc()).limit(limit)
        return [stored_job(row) for row in await self._database.all(newest)]

    async def stored_bytes(self) -> StoredBytes:
        model = sa.func.max(jobs.c.model_bytes).label("bytes")
        models = sa.select(model).where(COUNTED).group_by(jobs.c.model).subquery()
        each = sa.select(
            _sum(uploads.c.received, sa.true()).label("uploads"),
            _sum(jobs.c.kept_bytes, STORED).label("datasets"),
            _sum(models.c.bytes, sa.true()).label("models"),
        )
        (row,) = await self._database.all(each)
        ((database,),) = await self._database.all(DATABASE_BYTES[self._database.dialect])
        return StoredBytes(int(row.uploads), int(row.datasets), int(row.models), int(database))


def _sum(
    column: sa.ColumnElement[int], where: sa.ColumnElement[bool] | sa.TextClause
) -> sa.ScalarSelect[int]:
    return sa.select(sa.func.coalesce(sa.func.sum(column), 0)).where(where).scalar_subquery()
