"""Whose turn it is, in a database; see :class:`services.gateway.ports.TurnStore`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cache

import sqlalchemy as sa
from sqlalchemy.sql.selectable import FromClause

from services.gateway.database.connection import Database
from services.gateway.database.tables import RELEASED, WAITING, jobs, open_stages, turns
from services.gateway.ports import Held, Line, Place, Standing
from shared.messaging.messages import Stage

OF_JOB = sa.tuple_(jobs.c.created_at, jobs.c.id)
LAST_TURN = sa.func.coalesce(turns.c.released_at, 0.0)
NUMBER = sa.func.count().label("number")


class SqlTurnStore:
    """Reads the jobs' rows by two partial indexes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def held(self) -> Sequence[Held]:
        staging = sa.func.sum(sa.case((jobs.c.staging, 1), else_=0)).label("staging")
        of_each = sa.select(jobs.c.line, jobs.c.owner, NUMBER, staging).where(RELEASED)
        rows = await self._database.all(of_each.group_by(jobs.c.line, jobs.c.owner))
        return [Held(row.line, row.owner, int(row.number), int(row.staging)) for row in rows]

    async def is_waited_in(self, line: Line) -> bool:
        return bool(await self._database.all(_first_waiting(line)))

    async def next(self, line: Line, barred: Collection[str] = ()) -> tuple[str, str] | None:
        for low in (False, True):
            most = {"most": len(barred) + 1}
            owners = await self._database.all(_next_owners(line, low=low), most)
            if owners:
                free = [row.owner for row in owners if row.owner not in barred]
                return await self._oldest(Place(line, low, free[0])) if free else None
        return None

    async def _oldest(self, place: Place) -> tuple[str, str] | None:
        first = sa.select(jobs.c.id).where(*_there(place)).order_by(*OF_JOB.clauses).limit(1)
        rows = await self._database.all(first)
        return (rows[0].id, place.owner) if rows else None

    async def claims_of(self, stages: Collection[Stage]) -> Mapping[str, int]:
        claimed = open_stages.c.claim.is_not(None) & open_stages.c.stage.in_(stages)
        of_each = sa.select(jobs.c.owner, NUMBER).join(open_stages, open_stages.c.job == jobs.c.id)
        rows = await self._database.all(of_each.where(claimed).group_by(jobs.c.owner))
        return {row.owner: int(row.number) for row in rows}

    async def standings(self, line: Line, *, low: bool) -> Sequence[Standing]:
        there = (WAITING, jobs.c.line == line, jobs.c.low == low)
        oldest = sa.func.min(jobs.c.created_at).label("oldest")
        waiting = (
            sa.select(jobs.c.owner, NUMBER, oldest).where(*there).group_by(jobs.c.owner).subquery()
        )
        rows = await self._database.all(
            sa.select(waiting, LAST_TURN.label("last"))
            .select_from(_with_turns(waiting, line))
            .order_by(LAST_TURN, waiting.c.oldest, waiting.c.owner)
        )
        return [Standing(row.owner, int(row.number), row.last, row.oldest) for row in rows]

    async def count_released(self, line: Line) -> int:
        released = sa.select(NUMBER).where(RELEASED, jobs.c.line == line)
        (row,) = await self._database.all(released)
        return int(row.number)

    async def released_before(self, line: Line, job_ids: Sequence[str]) -> Mapping[str, int]:
        number = sa.func.row_number().over(order_by=(jobs.c.released_at, jobs.c.id)).label("number")
        every = sa.select(jobs.c.id, number).where(RELEASED, jobs.c.line == line).subquery()
        wanted = sa.select(every).where(every.c.id.in_(job_ids))
        return {row.id: row.number - 1 for row in await self._database.all(wanted)}

    async def count_ahead(
        self,
        place: Place,
        position: tuple[float, str],
        *,
        behind: tuple[float, str] | None = None,
        limit: int | None = None,
    ) -> int:
        ahead = sa.select(jobs.c.id).where(*_there(place), position > OF_JOB)
        if behind is not None:
            ahead = ahead.where(behind < OF_JOB)
        if limit is not None:  # in order: else PostgreSQL may look for the few in the whole table
            ahead = ahead.order_by(*OF_JOB.clauses).limit(limit)
        (row,) = await self._database.all(sa.select(NUMBER).select_from(ahead.subquery()))
        return int(row.number)

    async def every_waiting(self, place: Place, step: int) -> Sequence[tuple[float, str]]:
        number = sa.func.row_number().over(order_by=OF_JOB.clauses).label("number")
        waiting = sa.select(*OF_JOB.clauses, number).where(*_there(place)).subquery()
        every = sa.select(waiting).where(waiting.c.number % step == 0).order_by(waiting.c.number)
        return [(row.created_at, row.id) for row in await self._database.all(every)]


def _there(place: Place) -> tuple[sa.ColumnElement[bool] | sa.TextClause, ...]:
    return (
        WAITING,
        jobs.c.line == place.line,
        jobs.c.low == place.low,
        jobs.c.owner == place.owner,
    )


@cache
def _first_waiting(line: Line) -> sa.Select[tuple[str]]:
    """In order: else a database may look for the one in the whole table."""
    there = sa.select(jobs.c.id).where(WAITING, jobs.c.line == line)
    return there.order_by(jobs.c.low, jobs.c.owner).limit(1)


@cache  # to put it together takes longer than to have it carried out, at every job that comes
def _next_owners(line: Line, *, low: bool) -> sa.Select[tuple[str]]:
    """The first ``most`` of the owners with jobs that wait, in the order of their turns.

    Each owner is found by one step in the index, however many jobs it has.
    """
    there = (WAITING, jobs.c.line == line, jobs.c.low == low)
    first = sa.func.min(jobs.c.owner).label("owner")
    owners = sa.select(first).where(*there).cte("owners", recursive=True)
    following = sa.select(first).where(*there, jobs.c.owner > owners.c.owner).scalar_subquery()
    owners = owners.union_all(sa.select(following).where(owners.c.owner.is_not(None)))
    oldest = (
        sa.select(sa.func.min(jobs.c.created_at))
        .where(*there, jobs.c.owner == owners.c.owner)
        .scalar_subquery()
    )
    return (
        sa.select(owners.c.owner)
        .select_from(_with_turns(owners, line))
        .where(owners.c.owner.is_not(None))
        .order_by(LAST_TURN, oldest, owners.c.owner)
        .limit(sa.bindparam("most", type_=sa.Integer))
    )


def _with_turns(owners: FromClause, line: Line) -> FromClause:
    """With the owner's last turn in the line, if it had one."""
    return owners.outerjoin(turns, (turns.c.owner == owners.c.owner) & (turns.c.line == line))
