"""A look into the outbox, which takes nothing."""

from __future__ import annotations

import sqlalchemy as sa

from services.gateway.database.connection import Sql
from services.gateway.database.tables import outbox
from shared.service_process import closing


async def ids_in_outbox(url: str) -> list[str]:
    """Ids of the messages that have not left, in the order of writing."""
    async with closing(Sql.open(url)) as sql:
        return [row.id for row in await sql.all(sa.select(outbox.c.id).order_by(outbox.c.number))]
