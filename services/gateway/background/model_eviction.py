"""Delete stored models that no job needs any more, the least recently used ones first."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import NamedTuple

import structlog

from services.gateway.ports import JobStore
from shared.disk import CACHE_BYTES
from shared.errors import NotFound
from shared.ports import ObjectStore
from shared.storage.manifest import MANIFEST
from shared.storage.models import MODEL, MODELS

USED_SECONDS = 15 * 60.0
"""A model that was used of late stays: a job may have it whose record does not say so yet."""
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

    @property
    def manifest(self) -> str:
        return f"{self.prefix}/{MANIFEST}"


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
        """Delete models beyond ``max_bytes`` that no job needs and none was given of late.

        Raises:
            Unavailable: the database or the store does not answer; the rest is deleted next time.
        """
        unneeded = 0
        found = [model async for model in self._found(MODELS)]
        for model in sorted(found, key=lambda model: model.touched_at, reverse=True):
            age = self._clock() - model.touched_at
            if age < (USED_SECONDS if model.whole else UNFINISHED_SECONDS):
                unneeded += model.bytes
            elif await self._jobs.needs_model(model.prefix):
                continue
            elif not model.whole or (unneeded := unneeded + model.bytes) > self._max_bytes:
                await self._delete(model)

    async def _found(self, below: str) -> AsyncIterator[FoundModel]:
        """Every model; the objects of each follow one another."""
        model = FoundModel("")
        async for each in self._store.list(below):
            if not (match := MODEL.match(each.key)):
                continue
            if match[0] != model.prefix:
                if model.prefix:
                    yield model
                model = FoundModel(match[0])
            model = FoundModel(
                model.prefix,
                model.bytes + each.bytes,
                max(model.touched_at, each.modified),
                model.whole or each.key == model.manifest,
            )
        if model.prefix:
            yield model

    async def _delete(self, model: FoundModel) -> None:
        """Take the manifest away, and then the files, unless a fetcher has used it meanwhile.

        A fetcher notes a use before it looks for the manifest. So either the note is seen here, or
        the fetcher sees no manifest, and stores what it then misses.
        """
        manifest: bytes | None = None
        if model.whole:
            try:
                manifest = await self._store.get(model.manifest)
            except NotFound:  # another gateway was faster
                return
            await self._store.delete(model.manifest)
        async for now in self._found(f"{model.prefix}/"):
            if now.touched_at > model.touched_at:
                if manifest is not None:
                    await self._store.put(model.manifest, manifest)
                return
        await self._store.delete(f"{model.prefix}/")
        log.info("model_evicted", prefix=model.prefix, bytes=model.bytes)
