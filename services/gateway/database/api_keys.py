"""API keys in the database; see :class:`services.gateway.ports.KeyStore`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Row

from services.gateway.database.connection import Database
from services.gateway.database.tables import api_keys
from services.gateway.key_ports import StoredKey


class SqlKeyStore:
    """A row for each key."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, key: StoredKey) -> bool:
        row = self._database.insert(api_keys).values(
            digest=key.digest,
            name=key.name,
            scopes=",".join(key.scopes),
            created_at=key.created_at,
            disabled_at=key.disabled_at,
            last_used_at=key.last_used_at,
        )
        return await self._database.do(row.on_conflict_do_nothing()) == 1

    async def find(self, digest: str) -> StoredKey | None:
        rows = await self._database.all(sa.select(api_keys).where(api_keys.c.digest == digest))
        return _key(rows[0]) if rows else None

    async def all(self) -> Sequence[StoredKey]:
        order = (api_keys.c.created_at, api_keys.c.name)
        return [_key(row) for row in await self._database.all(sa.select(api_keys).order_by(*order))]

    async def disable(self, name: str, at: float) -> bool:
        enabled = (api_keys.c.name == name) & (api_keys.c.disabled_at.is_(None))
        return (
            await self._database.do(sa.update(api_keys).where(enabled).values(disabled_at=at)) == 1
        )

    async def used(self, digest: str, at: float) -> None:
        row = sa.update(api_keys).where(api_keys.c.digest == digest)
        await self._database.do(row.values(last_used_at=at))


def _key(row: Row[Any]) -> StoredKey:
    return StoredKey(
        digest=row.digest,
        name=row.name,
        scopes=tuple(row.scopes.split(",")),
        created_at=row.created_at,
        disabled_at=row.disabled_at,
        last_used_at=row.last_used_at,
    )
