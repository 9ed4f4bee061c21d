"""Uploads in the database; see :class:`services.gateway.ports.UploadStore`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from msgspec.structs import asdict
from sqlalchemy.engine import Row

from services.gateway.database.connection import Database
from services.gateway.database.tables import upload_parts, uploads
from services.gateway.upload_ports import StoredUpload, UploadUsage
from shared.ports import UploadPart


class SqlUploadStore:
    """A row for each upload, and one for each of its parts."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, upload: StoredUpload) -> None:
        await self._database.do(sa.insert(uploads).values(asdict(upload)))

    async def find(self, upload_id: str) -> StoredUpload | None:
        rows = await self._database.all(sa.select(uploads).where(uploads.c.id == upload_id))
        return StoredUpload(**_fields(rows[0])) if rows else None

    async def newest(
        self, owner: str, *, before: tuple[float, str] | None, limit: int
    ) -> Sequence[StoredUpload]:
        position = sa.tuple_(uploads.c.touched_at, uploads.c.id)
        wanted = sa.select(uploads).where(uploads.c.owner == owner)
        if before is not None:
            wanted = wanted.where(position < before)
        order = (uploads.c.touched_at.desc(), uploads.c.id.desc())
        rows = await self._database.all(wanted.order_by(*order).limit(limit))
        return [StoredUpload(**_fields(row)) for row in rows]

    async def usage(self, owner: str) -> UploadUsage:
        totals = sa.select(
            sa.func.count(),
            sa.func.coalesce(sa.func.sum(uploads.c.bytes), 0),
            sa.func.count() - sa.func.count(uploads.c.finished_at),
            sa.func.coalesce(sa.func.sum(uploads.c.parts), 0),
        )
        (row,) = await self._database.all(totals.where(uploads.c.owner == owner))
        return UploadUsage(*map(int, row))

    async def append(self, part: UploadPart, at: float) -> bool:
        end = part.offset + part.bytes
        unchanged = (uploads.c.id == part.upload) & (uploads.c.received == part.offset)
        async with self._database.writing() as connection:
            moved = await connection.execute(
                sa.update(uploads)
                .where(unchanged)
                .values(received=end, parts=uploads.c.parts + 1, touched_at=at)
            )
            if moved.rowcount != 1:
                return False
            await connection.execute(sa.insert(upload_parts).values(asdict(part)))
        return True

    async def parts(self, upload_id: str) -> Sequence[UploadPart]:
        parts = sa.select(upload_parts).where(upload_parts.c.upload == upload_id)
        rows = await self._database.all(parts.order_by(upload_parts.c.offset))
        return [UploadPart(**_fields(row)) for row in rows]

    async def settle(self, upload_id: str, sha256: str, finished_at: float | None) -> bool:
        row = sa.update(uploads).where(uploads.c.id == upload_id)
        values = row.values(sha256=sha256, finished_at=finished_at)
        return await self._database.do(values) == 1

    async def expired(
        self, *, untouched_since: float, finished_before: float, limit: int = 100
    ) -> Sequence[str]:
        abandoned = uploads.c.finished_at.is_(None) & (uploads.c.touched_at < untouched_since)
        old = abandoned | (uploads.c.finished_at < finished_before)
        rows = await self._database.all(sa.select(uploads.c.id).where(old).limit(limit))
        return [row.id for row in rows]

    async def delete(self, upload_id: str) -> None:
        async with self._database.writing() as connection:
            await connection.execute(sa.delete(uploads).where(uploads.c.id == upload_id))
            await connection.execute(
                sa.delete(upload_parts).where(upload_parts.c.upload == upload_id)
            )


def _fields(row: Row[Any]) -> dict[str, Any]:
    return dict(row._mapping)  # noqa: SLF001 - its documented name
