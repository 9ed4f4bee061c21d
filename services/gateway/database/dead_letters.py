"""Dead letters in a database; see :class:`services.gateway.system_ports.DeadLetterStore`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Row

from services.gateway.database.connection import Database
from services.gateway.database.job_rows import columns_of
from services.gateway.database.tables import dead_letters, outbox
from services.gateway.ports import Outgoing
from services.gateway.system_ports import StoredDeadLetter
from shared.ports import DeadLetter

POSITION = sa.tuple_(dead_letters.c.at, dead_letters.c.id)
NEWEST_FIRST = (dead_letters.c.at.desc(), dead_letters.c.id.desc())


class SqlDeadLetterStore:
    """A row for each dead letter."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, letter: StoredDeadLetter) -> None:
        values = {"id": letter.id, "at": letter.at, **msgspec.structs.asdict(letter.letter)}
        row = self._database.insert(dead_letters).values(values)
        await self._database.do(row.on_conflict_do_nothing())

    async def find(self, letter_id: str) -> StoredDeadLetter | None:
        one = sa.select(dead_letters).where(dead_letters.c.id == letter_id)
        rows = await self._database.all(one)
        return _stored(rows[0]) if rows else None

    async def newest(
        self, before: tuple[float, str] | None, limit: int
    ) -> Sequence[StoredDeadLetter]:
        wanted = sa.select(dead_letters).order_by(*NEWEST_FIRST).limit(limit)
        if before is not None:
            wanted = wanted.where(before > POSITION)
        return [_stored(row) for row in await self._database.all(wanted)]

    async def requeue(self, letter_id: str, message: Outgoing) -> bool:
        gone = sa.delete(dead_letters).where(dead_letters.c.id == letter_id)
        add = self._database.insert(outbox).values(columns_of(message))
        async with self._database.writing() as connection:
            if (await connection.execute(gone)).rowcount == 0:
                return False
            await connection.execute(add.on_conflict_do_nothing())
            return True

    async def delete(self, letter_id: str) -> bool:
        one = sa.delete(dead_letters).where(dead_letters.c.id == letter_id)
        return await self._database.do(one) == 1

    async def trim(self, before: float, most: int) -> None:
        last = sa.select(*POSITION.clauses).order_by(*NEWEST_FIRST).offset(most).limit(1)
        old = sa.or_(
            dead_letters.c.at < before,
            *(tuple(row) >= POSITION for row in await self._database.all(last)),
        )
        await self._database.do(sa.delete(dead_letters).where(old))


def _stored(row: Row[Any]) -> StoredDeadLetter:
    columns = dict(row._mapping)  # noqa: SLF001 - SQLAlchemy's public name for it
    return StoredDeadLetter(columns.pop("id"), columns.pop("at"), DeadLetter(**columns))
