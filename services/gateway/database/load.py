"""How much there is to do; see :class:`services.gateway.system_ports.LoadStore`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from services.gateway.database.connection import Database
from services.gateway.database.tables import WAITING, dead_letters, jobs, open_stages, outbox
from services.gateway.ports import LINES, Line
from services.gateway.system_ports import LineClass, OutboxLoad, StageClass, SystemLoad

NUMBER = sa.func.count().label("number")


class SqlLoadStore:
    """Only released jobs have rows of open stages: there are as many as workers need, not more."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def load(self, now: float) -> SystemLoad:
        (letters,) = await self._database.all(sa.select(NUMBER).select_from(dead_letters))
        return SystemLoad(
            stages=await self._stages(now),
            lines=await self._lines(),
            outbox=await self._outbox(now),
            dead_letters=int(letters.number),
        )

    async def _stages(self, now: float) -> Sequence[StageClass]:
        waits = open_stages.c.claim.is_(None) & (open_stages.c.due_at <= now)
        each = (
            sa.select(
                open_stages.c.stage,
                jobs.c.low,
                NUMBER,
                sa.func.count(open_stages.c.claim).label("claimed"),
                sa.func.sum(sa.case((waits, 1), else_=0)).label("waiting"),
                sa.func.min(sa.case((waits, open_stages.c.due_at))).label("oldest"),
            )
            .join(jobs, jobs.c.id == open_stages.c.job)
            .group_by(open_stages.c.stage, jobs.c.low)
        )
        return [
            StageClass(
                stage=row.stage,
                low=bool(row.low),
                claimed=int(row.claimed),
                waiting=int(row.waiting),
                delayed=int(row.number) - int(row.claimed) - int(row.waiting),
                oldest=row.oldest,
            )
            for row in await self._database.all(each)
        ]

    async def _lines(self) -> Sequence[LineClass]:
        """By the index alone: each class is a part of it."""
        rows = await self._database.all(
            sa.union_all(*(_line_class(line, low) for line in LINES for low in (False, True)))
        )
        return [
            LineClass(row.line, bool(row.low), int(row.number), row.oldest)
            for row in rows
            if row.number
        ]

    async def _outbox(self, now: float) -> Sequence[OutboxLoad]:
        webhooks = outbox.c.owner.is_not(None)
        due_at = sa.case((outbox.c.due_at <= now, outbox.c.due_at))
        each = sa.select(webhooks.label("webhooks"), NUMBER, sa.func.min(due_at).label("oldest"))
        rows = await self._database.all(each.group_by(webhooks))
        return [OutboxLoad(bool(row.webhooks), int(row.number), row.oldest) for row in rows]


def _line_class(line: Line, low: bool) -> sa.Select[*tuple[Any, ...]]:  # noqa: FBT001 - a class of two
    return sa.select(
        sa.literal(line).label("line"),
        sa.literal(low).label("low"),
        NUMBER,
        sa.func.min(jobs.c.created_at).label("oldest"),
    ).where(WAITING, jobs.c.line == line, jobs.c.low == low)
