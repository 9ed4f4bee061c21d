"""What is stored, and how much more fits."""

from __future__ import annotations

import asyncio

from aiohttp import web

from services.gateway.endpoints.admin.response_types import Disk, KeptBytes, LocalDisk
from services.gateway.system_ports import StoredBytes, SystemStore
from services.gateway.turns.stale_cache import StaleCache
from services.gateway.web.application import in_time
from services.gateway.web.routing import Answer, route
from shared.ports import LocalStore, ObjectStore
from shared.release import release


class AdminDiskRoutes:
    """``/admin/disk``."""

    def __init__(self, system: SystemStore, store: ObjectStore) -> None:
        self._system = system
        self._store = store
        self._stored = StaleCache(self._count)

    @route(
        "GET",
        "/admin/disk",
        "Get what is stored, and how much more fits",
        needs="operate",
        answers={200: Answer("Of the store and the database; seconds old at most.", Disk)},
    )
    async def _disk(self, _request: web.Request, _owner: str) -> web.Response:
        async with in_time():
            stored = await self._stored.get("")
            disk = await self._local_disk()
        kept: KeptBytes = {
            "uploads": stored.uploads,
            "datasets": stored.datasets,
            "models": stored.models,
        }
        body: Disk = {
            "version": release() or None,
            "store": disk,
            "kept": kept,
            "database_bytes": stored.database,
        }
        return web.json_response(body)

    async def _count(self, _: str) -> StoredBytes:
        return await self._system.stored_bytes()

    async def _local_disk(self) -> LocalDisk | None:
        if not isinstance(self._store, LocalStore):
            return None
        total = await asyncio.to_thread(self._store.total)
        return {
            "total_bytes": total.bytes,
            "free_bytes": await asyncio.to_thread(self._store.free_bytes),
            "total_files": total.files,
            "free_files": await asyncio.to_thread(self._store.free_files),
        }
