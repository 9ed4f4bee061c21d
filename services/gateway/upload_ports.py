"""The store of uploads that the gateway needs, as a protocol."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from msgspec import Struct

from shared.ports import UploadPart


class StoredUpload(Struct, frozen=True, kw_only=True):
    """A file that a client uploads, finished or not."""

    id: str
    owner: str
    bytes: int
    """Size of the whole file, as the client announced it."""
    received: int = 0
    """Bytes in the store so far."""
    parts: int = 0
    """In which they are stored."""
    expected: str = ""
    """The SHA-256 that the client announced, hexadecimal; empty: none."""
    sha256: str = ""
    """Of the received file; empty until it is complete."""
    touched_at: float
    """When the upload was created or the last part arrived; seconds since the epoch."""
    finished_at: float | None = None
    """When it was complete and had the expected SHA-256."""


class UploadUsage(NamedTuple):
    """What an owner's uploads use."""

    uploads: int
    bytes: int
    """As announced."""
    unfinished: int
    parts: int


class UploadStore(Protocol):
    """Uploads and their parts.

    All calls raise ``Unavailable`` when the database does not answer.
    """

    async def add(self, upload: StoredUpload) -> None:
        """Add an upload under a new id."""

    async def find(self, upload_id: str) -> StoredUpload | None: ...

    async def newest(
        self, owner: str, *, before: tuple[float, str] | None, limit: int
    ) -> Sequence[StoredUpload]:
        """An owner's uploads, the last changed first.

        ``before`` is (touched_at, id) of the last one that is known already.
        """

    async def usage(self, owner: str) -> UploadUsage: ...

    async def append(self, part: UploadPart, at: float) -> bool:
        """Record a part that is in the store.

        Returns:
            False when the upload does not end at the part's offset (any more), or is gone.
        """

    async def parts(self, upload_id: str) -> Sequence[UploadPart]:
        """The parts of an upload, in order."""

    async def settle(self, upload_id: str, sha256: str, finished_at: float | None) -> bool:
        """Record a complete upload; ``finished_at`` None: its SHA-256 is not the expected one.

        Returns:
            Whether the upload was there; False: it has been deleted.
        """

    async def expired(
        self, *, untouched_since: float, finished_before: float, limit: int = 100
    ) -> Sequence[str]:
        """Ids of abandoned uploads, and of finished ones past their retention."""

    async def delete(self, upload_id: str) -> None:
        """Delete an upload and its parts."""
