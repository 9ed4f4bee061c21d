"""Files that clients upload: kept in parts, so that any gateway takes the next one."""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
import uuid
from collections.abc import AsyncIterator, Callable
from weakref import WeakValueDictionary

import structlog
from msgspec.structs import replace

from services.gateway.jobs.request_parser import Invalid
from services.gateway.ports import BASE_PATHS, LocalStore, StoredUpload, UploadStore
from shared.concurrency import in_thread
from shared.errors import Full, NotFound
from shared.ports import ObjectStore, UploadPart
from shared.storage.uploads import sha256_of_parts, upload_prefix, write_list

PART_BYTES = 8 << 20
"""Of a part, which is in memory while it arrives."""
MOST_UNFINISHED = 16
"""Of one key, at one time."""
ADDRESSES = re.compile(rf"(?:{'|'.join(BASE_PATHS)})/uploads/([0-9a-f-]{{36}})")

log = structlog.get_logger()


class UploadConflict(Exception):
    """Another request has gone on with this upload, or removed it."""


class Uploads:
    """Takes files, and knows what has arrived."""

    def __init__(
        self, table: UploadStore, store: ObjectStore, public_url: str, clock: Callable[[], float]
    ) -> None:
        self._table = table
        self._store = store
        self._public_url = public_url
        self._clock = clock
        self._finishing: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def address(self, upload_id: str) -> str:
        """What a request gives as its ``data_url``."""
        return f"{self._public_url}{BASE_PATHS[0]}/uploads/{upload_id}"

    def id_in(self, address: str) -> str | None:
        """The id of the upload that has this address; None: it is no upload's."""
        found = ADDRESSES.fullmatch(address.removeprefix(self._public_url))
        return found[1] if found and address.startswith(self._public_url) else None

    async def find(self, upload_id: str, owner: str) -> StoredUpload | None:
        """The upload; somebody else's is as unknown as one that never was. Raises Unavailable."""
        upload = await self._table.find(upload_id)
        return upload if upload and upload.owner == owner else None

    async def begin(self, owner: str, size: int, expected: str) -> StoredUpload:
        """A new upload of so many bytes; ``expected`` is its SHA-256, or nothing.

        Raises:
            Invalid: the owner has too many that are not finished.
            Full: the store has no room for it.
            Unavailable: the database does not answer.
        """
        await self._require_room(size)
        if await self._table.count_unfinished(owner) >= MOST_UNFINISHED:
            raise Invalid(
                [f"{MOST_UNFINISHED} of your uploads are not finished; finish or DELETE one first"]
            )
        upload = StoredUpload(
            id=str(uuid.uuid4()), owner=owner, bytes=size, expected=expected,
            touched_at=self._clock(),
        )  # fmt: skip
        await self._table.add(upload)
        return upload

    async def _require_room(self, size: int) -> None:
        """Where the store is on this machine; another says itself when it is full."""
        if isinstance(self._store, LocalStore):
            free = await asyncio.to_thread(self._store.free_bytes)
            if free < size:
                raise Full(f"the store has no room for {size} bytes: {free} are free")

    async def take(self, upload: StoredUpload, pieces: AsyncIterator[bytes]) -> StoredUpload:
        """Go on with an upload where it stands; it is finished when all has arrived.

        Raises:
            UploadConflict: somebody else went on with it.
            Unavailable: the store or the database does not answer; what was kept before stays.
        """
        digest = hashlib.sha256() if upload.received == 0 else None
        async for part in in_parts(pieces):
            upload = await self._keep(upload, part)
            if digest:
                await in_thread(digest.update, part)
        if upload.received < upload.bytes:
            return upload
        return await self.finish(upload, digest.hexdigest() if digest else None)

    async def finish(self, upload: StoredUpload, sha256: str | None = None) -> StoredUpload:
        """Find out what has arrived; ``sha256`` where it is known, else all is read once more.

        Raises:
            UploadConflict: the upload was removed.
            Unavailable: the store or the database does not answer; it can be finished later.
        """
        async with self._finishing.setdefault(upload.id, asyncio.Lock()):
            known = await self._table.find(upload.id)
            if known is None:
                raise UploadConflict
            return known if known.sha256 else await self._settle(known, sha256)

    async def remove(self, upload_id: str) -> None:
        """Forget an upload and what has arrived of it. Raises Unavailable."""
        await self._store.delete(upload_prefix(upload_id))
        await self._table.delete(upload_id)
        # A part that arrived between the two is not refused by the table, and goes now.
        await self._store.delete(upload_prefix(upload_id))
        log.info("upload_removed", upload=upload_id)

    async def remove_expired(self, *, untouched_since: float, finished_before: float) -> None:
        """Forget what nobody went on with, and what was kept long enough. Raises Unavailable."""
        while expired := await self._table.expired(
            untouched_since=untouched_since, finished_before=finished_before
        ):
            for upload_id in expired:
                await self.remove(upload_id)

    async def _keep(self, upload: StoredUpload, data: bytes) -> StoredUpload:
        """Under a name of its own: of two that send the same part, one is told so by the table."""
        name = f"{upload.received:012}-{secrets.token_hex(8)}"
        part = UploadPart(
            upload=upload.id, offset=upload.received, bytes=len(data),
            key=f"{upload_prefix(upload.id)}{name}",
        )  # fmt: skip
        await self._store.put(part.key, data)
        now = self._clock()
        if not await self._table.append(part, now):
            await self._store.delete(part.key)
            raise UploadConflict
        return replace(upload, received=upload.received + len(data), touched_at=now)

    async def _settle(self, upload: StoredUpload, sha256: str | None) -> StoredUpload:
        parts = await self._table.parts(upload.id)
        try:
            sha256 = sha256 or await sha256_of_parts(self._store, parts)
        except NotFound:
            raise UploadConflict from None
        finished_at = self._clock() if upload.expected in ("", sha256) else None
        if finished_at is not None:
            await write_list(self._store, upload.id, sha256, parts)
        await self._table.settle(upload.id, sha256, finished_at)
        log.info("upload_received", upload=upload.id, bytes=upload.bytes, sha256=sha256)
        return replace(upload, sha256=sha256, finished_at=finished_at)


async def in_parts(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same bytes in parts of ``PART_BYTES``; the last one has the rest."""
    waiting = bytearray()
    async for piece in pieces:
        waiting += piece
        while len(waiting) >= PART_BYTES:
            yield bytes(waiting[:PART_BYTES])
            del waiting[:PART_BYTES]
    if waiting:
        yield bytes(waiting)
