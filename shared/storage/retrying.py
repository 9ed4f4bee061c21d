"""Retries an object store's calls while it is unavailable."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from time import monotonic
from typing import TypeVar

import structlog

from shared.errors import Unavailable
from shared.ports import ObjectStore, StoredObject, no_keepalive
from shared.retry import Reconnects

STORE_HEARTBEATS = 50
"""Heartbeats that a store may be unavailable within one call of a worker.

Fewer than ``PATIENCE_HEARTBEATS`` of the runtime, so that the job's record shows the store's
reason.
"""

log = structlog.get_logger()
T = TypeVar("T")


class RetryingStore:
    """Wraps a store: calls are retried while it is unavailable.

    A worker keeps its claim and its progress meanwhile; no failure is counted.
    """

    def __init__(self, store: ObjectStore, *, deadline: float = math.inf) -> None:
        """``deadline``: seconds after its first failure at which a call gives up."""
        self._store = store
        self._deadline = deadline

    async def put(self, key: str, data: bytes) -> None:
        await self._retry(lambda: self._store.put(key, data))

    async def get(self, key: str) -> bytes:
        return await self._retry(lambda: self._store.get(key))

    async def upload(
        self,
        path: Path,
        key: str,
        *,
        keepalive: Callable[[], None] = no_keepalive,
        immutable: bool = False,
    ) -> None:
        call = partial(self._store.upload, path, key, keepalive=keepalive, immutable=immutable)
        await self._retry(call)

    async def download(
        self,
        key: str,
        path: Path,
        *,
        keepalive: Callable[[], None] = no_keepalive,
        immutable: bool = False,
    ) -> None:
        call = partial(self._store.download, key, path, keepalive=keepalive, immutable=immutable)
        await self._retry(call)

    async def exists(self, key: str) -> bool:
        return await self._retry(lambda: self._store.exists(key))

    async def list(self, prefix: str) -> AsyncIterator[StoredObject]:
        """Listed whole before the first entry is yielded, so that a retry starts over."""
        for entry in await self._retry(lambda: self._list_all(prefix)):
            yield entry

    async def delete(self, prefix: str) -> int:
        return await self._retry(lambda: self._store.delete(prefix))

    async def link(self, key: str, *, seconds: int, filename: str | None = None) -> str:
        return await self._store.link(key, seconds=seconds, filename=filename)

    async def close(self) -> None:
        await self._store.close()

    async def _list_all(self, prefix: str) -> tuple[StoredObject, ...]:
        return tuple([entry async for entry in self._store.list(prefix)])

    async def _retry(self, call: Callable[[], Awaitable[T]]) -> T:
        give_up_at, said = math.inf, ""
        async for _ in Reconnects():
            try:
                return await call()
            except Unavailable as error:
                give_up_at = min(give_up_at, monotonic() + self._deadline)
                if monotonic() >= give_up_at:
                    raise
                if said != str(error):
                    said = str(error)
                    log.warning("store_unavailable", reason=said)
        raise AssertionError("attempts never end")
