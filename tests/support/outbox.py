"""Read the outbox without changing it."""

from __future__ import annotations

import sqlalchemy as sa

from services.gateway.database.connection import Database
from services.gateway.database.tables import outbox
from shared.service_process import closing


async def ids_in_outbox(url: str) -> list[str]:
    """Ids of the unsent messages, in the order of writing."""
    async with closing(Database.open(url)) as database:
        return [
            row.id for row in await database.all(sa.select(outbox.c.id).order_by(outbox.c.number))
        ]
