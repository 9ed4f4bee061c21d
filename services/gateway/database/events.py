"""The events of all jobs of an owner; see :class:`services.gateway.ports.EventStore`."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from services.gateway.database.connection import Database
from services.gateway.database.jobs import EVENT, stored_event
from services.gateway.database.tables import events, jobs, open_stages, progress
from services.gateway.ports import EventPlace, StoredEvent, StoredProgress

PLACE = [events.c[name] for name in EventPlace._fields]


class SqlEventStore:
    """Reads what the job store writes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def count(self, owner: str, after: float) -> tuple[int, float]:
        each = sa.union_all(*_of(owner, after)).subquery()
        counted = sa.select(
            sa.func.count().label("number"),
            sa.func.coalesce(sa.func.max(each.c.at), 0.0).label("last"),
        ).select_from(each)
        (row,) = await self._database.all(counted)
        return int(row.number), float(row.last)

    async def places(
        self, owner: str, after: float, limit: int | None = None
    ) -> Sequence[EventPlace]:
        first = (
            sa.select(some.order_by(*PLACE).limit(limit).subquery()) for some in _of(owner, after)
        )
        each = sa.union_all(*first).subquery()
        order = [each.c[name] for name in EventPlace._fields]
        rows = await self._database.all(sa.select(*order).order_by(*order).limit(limit))
        return [EventPlace._make(row) for row in rows]

    async def read(self, places: Sequence[EventPlace]) -> Sequence[StoredEvent]:
        if not places:
            return []
        names = ("job", "version", "number")
        columns = [sa.column(name, events.c[name].type) for name in names]
        # SQLite would compare a list of rows with each event; these it looks up.
        wanted = sa.values(*columns).data([place[1:] for place in places]).cte("wanted")
        same = (events.c[name] == wanted.c[name] for name in names)
        rows = sa.select(*EVENT).join(wanted, sa.and_(*same)).order_by(*PLACE)
        return [stored_event(row) for row in await self._database.all(rows)]

    async def progress(self, owner: str) -> Sequence[StoredProgress]:
        of_stage = (progress.c.job == open_stages.c.job) & (progress.c.stage == open_stages.c.stage)
        numbers = sa.select(*(progress.c[name] for name in StoredProgress._fields))
        numbers = numbers.select_from(open_stages).join(jobs, jobs.c.id == open_stages.c.job)
        numbers = numbers.join(progress, of_stage & (progress.c.run == jobs.c.run))
        claimed = numbers.where(open_stages.c.claim.is_not(None), _is_owned(owner))
        return [StoredProgress._make(row) for row in await self._database.all(claimed)]


def _of(owner: str, after: float) -> list[sa.Select[tuple[float, str, int, int]]]:
    """Places of the owner's events, and of those that an earlier version wrote without owner."""
    later = sa.select(*PLACE).where(events.c.at > after)
    unowned = later.join(jobs, jobs.c.id == events.c.job).where(events.c.owner.is_(None))
    return [later.where(events.c.owner == owner), unowned.where(_is_owned(owner))]


def _is_owned(owner: str) -> sa.ColumnElement[bool]:
    """For jobs that are found otherwise: by the index on owners it could be 100,000 of them."""
    return jobs.c.owner.concat("") == owner
