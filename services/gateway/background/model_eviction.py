"""Delete stored models that no job needs any more, the least recently used ones first."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import structlog

from services.gateway.ports import JobStore
from shared.ports import ObjectStore
from shared.storage.cache import CACHE_BYTES, KEPT_SECONDS
from shared.storage.manifest import MANIFEST
from shared.storage.models import MODEL, MODELS

UNFINISHED_SECONDS = 24 * 3600.0
"""A model without its manifest that nothing was added to for so long is a dead fetcher's."""

log = structlog.get_logger()


class FoundModel(NamedTuple):
    """A model in the store, whole or not."""

    prefix: str
    bytes: int = 0
    touched_at: float = 0.0
    """When it was last used or added to; seconds since the epoch."""
    whole: bool = False


class ModelEviction:
    """Keeps what jobs need, and of the rest what fits into ``max_bytes``."""

    def __init__(
        self,
        jobs: JobStore,
        store: ObjectStore,
        *,
        clock: Callable[[], float],
        max_bytes: int = CACHE_BYTES,
    ) -> None:
        self._jobs = jobs
        self._store = store
        self._clock = clock
        self._max_bytes = max_bytes

    async def evict(self) -> None:
        """Delete models beyond ``max_bytes`` that no job needs and none was given for an hour.

        Raises:
            Unavailable: the database or the store does not answer; the rest is deleted next time.
        """
        unneeded = 0
        for model in await self._newest_first():
            age = self._clock() - model.touched_at
            if age < (KEPT_SECONDS if model.whole else UNFINISHED_SECONDS):
                unneeded += model.bytes
            elif await self._jobs.needs_model(model.prefix):
                continue
            elif not model.whole or (unneeded := unneeded + model.bytes) > self._max_bytes:
                await self._delete(model)

    async def _newest_first(self) -> list[FoundModel]:
        found: dict[str, FoundModel] = {}
        async for each in self._store.list(MODELS):
            if match := MODEL.match(each.key):
                so_far = found.get(match[0], FoundModel(match[0]))
                found[match[0]] = FoundModel(
                    match[0],
                    so_far.bytes + each.bytes,
                    max(so_far.touched_at, each.modified),
                    so_far.whole or each.key == f"{match[0]}/{MANIFEST}",
                )
        return sorted(found.values(), key=lambda model: model.touched_at, reverse=True)

    async def _delete(self, model: FoundModel) -> None:
        """Without its manifest the folder is gone for everybody; then its files go."""
        await self._store.delete(f"{model.prefix}/{MANIFEST}")
        await self._store.delete(f"{model.prefix}/")
        log.info("model_evicted", prefix=model.prefix, bytes=model.bytes)
