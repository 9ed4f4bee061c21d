"""Receive uploads in parts, so that any gateway can take the next one."""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, TypedDict
from weakref import WeakValueDictionary

import structlog
from msgspec import Meta
from msgspec.structs import replace

from services.gateway import metrics
from services.gateway.jobs.budgets import Budgets
from services.gateway.upload_ports import StoredUpload, UploadStore
from shared.concurrency import in_thread
from shared.errors import Full, NotFound, Unavailable
from shared.ports import LocalStore, ObjectStore, UploadPart
from shared.request import BASE_PATHS
from shared.storage.uploads import sha256_of_parts, upload_prefix, write_list

PART_BYTES = 8 << 20
"""Size of a part, which is held in memory."""
SHORT_PART_BYTES = 512 << 10
"""Size of a part while many uploads come at once."""
PARTS_MEMORY, SHORT_PARTS_MEMORY = 64 << 20, 80 << 20
"""Bytes held of all uploads, until parts become short and until none more are taken."""
LEAST_CHUNK_BYTES, MOST_CHUNKS = 64 << 10, 10_000
"""No chunk but the last may be shorter, or so short that the upload would have more chunks."""
ADDRESSES = re.compile(rf"(?:{'|'.join(BASE_PATHS)})/uploads/([0-9a-f-]{{36}})")

log = structlog.get_logger()


class Upload(TypedDict):
    """An uploaded file, complete or not."""

    id: str
    bytes: Annotated[int, Meta(ge=1)]
    received: Annotated[int, Meta(ge=0)]
    sha256: str | None
    """Null until all bytes have arrived."""
    data_url: str
    """To be used as ``data_url`` in a request."""


class ListedUpload(Upload):
    """An upload in a list."""

    changed_at: str
    """When its last part arrived, or it was begun."""


class UploadPage(TypedDict):
    """A page of uploads."""

    uploads: list[ListedUpload]
    next: str | None
    """The cursor of the next page; null on the last."""


class UploadConflict(Exception):
    """Another request has continued or removed this upload."""


class Uploads:
    """Receives files, and tracks what has arrived."""

    def __init__(
        self,
        table: UploadStore,
        store: ObjectStore,
        budgets: Budgets,
        public_url: str,
        clock: Callable[[], float],
    ) -> None:
        self._table = table
        self._store = store
        self._budgets = budgets
        self._public_url = public_url
        self._clock = clock
        self._finishing: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._held = 0
        """Bytes for which parts have room in memory."""

    def address(self, upload_id: str) -> str:
        """The ``data_url`` for requests."""
        return f"{self._public_url}{BASE_PATHS[0]}/uploads/{upload_id}"

    def id_in(self, address: str) -> str | None:
        """The id in an upload's address; None: it is none."""
        found = ADDRESSES.fullmatch(address.removeprefix(self._public_url))
        return found[1] if found and address.startswith(self._public_url) else None

    async def find(self, upload_id: str, owner: str) -> StoredUpload | None:
        """The upload; None: it does not exist, or has another owner. Raises Unavailable."""
        upload = await self._table.find(upload_id)
        return upload if upload and upload.owner == owner else None

    async def newest(
        self, owner: str, before: tuple[float, str] | None, limit: int
    ) -> Sequence[StoredUpload]:
        """The owner's uploads that changed last, after a position. Raises Unavailable."""
        return await self._table.newest(owner, before=before, limit=limit)

    async def create(self, owner: str, size: int, expected: str) -> StoredUpload:
        """A new upload of ``size`` bytes; ``expected`` is its SHA-256, or empty.

        Raises:
            BudgetExceeded: the owner may have no more uploads, or none as large.
            Full: the store has no room for it.
            Unavailable: the database does not answer.
        """
        await self._require_room(size)
        upload = StoredUpload(
            id=str(uuid.uuid4()), owner=owner, bytes=size, expected=expected,
            touched_at=self._clock(),
        )  # fmt: skip
        async with self._budgets.new_upload(owner, size):
            await self._table.add(upload)
        metrics.UPLOADS.labels("begun").inc()
        return upload

    async def _require_room(self, size: int) -> None:
        """Check a local disk; other stores report by themselves when they are full."""
        if isinstance(self._store, LocalStore):
            free = await asyncio.to_thread(self._store.free_bytes)
            if free < size:
                raise Full(f"the store has no room for {size} bytes: {free} are free")

    async def append(self, upload: StoredUpload, pieces: AsyncIterator[bytes]) -> StoredUpload:
        """Add bytes to an upload, and finish it when it is complete.

        Fewer bytes than :func:`least_chunk` are not kept, unless they are the last.

        Raises:
            UploadConflict: another request has continued it.
            BudgetExceeded: the owner may have no more parts; earlier ones stay.
            Unavailable: the store or the database does not answer; earlier parts stay.
        """
        digest = hashlib.sha256() if upload.received == 0 else None
        begun, waiting = upload.received, bytearray()
        while True:
            with self._room_for_part(upload.bytes - upload.received) as most:
                part = await next_part(waiting, pieces, most)
                end = upload.received + len(part)
                if not part or (end < upload.bytes and end - begun < least_chunk(upload.bytes)):
                    break
                upload = await self._append_part(upload, part)
                if digest:
                    await in_thread(digest.update, part)
        if upload.received < upload.bytes:
            return upload
        await anext(pieces, None)  # reads to the end of the request, and raises if there is more
        return await self.finish(upload, digest.hexdigest() if digest else None)

    async def finish(self, upload: StoredUpload, sha256: str | None = None) -> StoredUpload:
        """Compare a complete upload with what was expected.

        ``sha256`` is its digest if it is known; else the whole file is read again.

        Raises:
            UploadConflict: the upload was removed.
            Unavailable: the store or the database does not answer; a later call can finish it.
        """
        async with self._finishing.setdefault(upload.id, asyncio.Lock()):
            known = await self._table.find(upload.id)
            if known is None:
                raise UploadConflict
            return known if known.sha256 else await self._settle(known, sha256)

    async def remove(self, upload_id: str) -> None:
        """Delete an upload and its parts. Raises Unavailable."""
        await self._store.delete(upload_prefix(upload_id))
        await self._table.delete(upload_id)
        # A part that another request stored between the two calls would stay.
        await self._store.delete(upload_prefix(upload_id))
        metrics.UPLOADS.labels("removed").inc()
        log.info("upload_removed", upload=upload_id)

    async def remove_expired(self, *, untouched_since: float, finished_before: float) -> None:
        """Delete abandoned uploads, and finished ones past their retention. Raises Unavailable."""
        while expired := await self._table.expired(
            untouched_since=untouched_since, finished_before=finished_before
        ):
            for upload_id in expired:
                await self.remove(upload_id)

    @contextmanager
    def _room_for_part(self, left: int) -> Iterator[int]:
        """Room in memory for the next part of ``left`` bytes; yields its largest size.

        Raises:
            Unavailable: the uploads of all keys take too much already.
        """
        is_short = self._held + min(left, PART_BYTES) > PARTS_MEMORY
        most = min(left, SHORT_PART_BYTES if is_short else PART_BYTES)
        if self._held + most > SHORT_PARTS_MEMORY:
            raise Unavailable("too many uploads arrive at once")
        self._held += most
        try:
            yield most
        finally:
            self._held -= most

    async def _append_part(self, upload: StoredUpload, data: bytes) -> StoredUpload:
        """Store a part under a unique key; the table refuses one of two with the same offset."""
        name = f"{upload.received:012}-{secrets.token_hex(8)}"
        part = UploadPart(
            upload=upload.id, offset=upload.received, bytes=len(data),
            key=f"{upload_prefix(upload.id)}{name}",
        )  # fmt: skip
        async with self._budgets.new_part(upload.owner):
            await self._store.put(part.key, data)
            now = self._clock()
            if not await self._table.append(part, now):
                await self._store.delete(part.key)
                raise UploadConflict
        metrics.UPLOAD_BYTES.inc(len(data))
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
        if not await self._table.settle(upload.id, sha256, finished_at):
            # It was removed meanwhile, perhaps before its list was written.
            await self._store.delete(upload_prefix(upload.id))
            raise UploadConflict
        metrics.UPLOADS.labels("finished" if finished_at else "refused").inc()
        log.info("upload_received", upload=upload.id, bytes=upload.bytes, sha256=sha256)
        return replace(upload, sha256=sha256, finished_at=finished_at)


async def next_part(waiting: bytearray, pieces: AsyncIterator[bytes], most: int) -> bytes:
    """The next bytes, at most so many; fewer only at the end.

    ``waiting`` is what has arrived of the part after it.
    """
    while len(waiting) < most and (piece := await anext(pieces, None)) is not None:
        waiting += piece
    part = bytes(memoryview(waiting)[:most])
    del waiting[:most]
    return part


def least_chunk(size: int) -> int:
    """The fewest bytes of any chunk but the last, in an upload of ``size`` bytes."""
    return max(LEAST_CHUNK_BYTES, -(-size // MOST_CHUNKS))
