"""What the gateway needs of its surroundings, and where clients find it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from msgspec import Struct

from shared.ports import UploadPart

BASES = ("/v1/everydream-v1", "/v2/everydream-v1")
"""The endpoint's paths on this server."""


Status = Literal["IN_QUEUE", "IN_PROGRESS", "COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"]
ENDS: tuple[Status, ...] = ("COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT")


@runtime_checkable
class KeepsFiles(Protocol):
    """A store whose objects are files on this machine; the gateway serves its links."""

    def path_of(self, key: str) -> Path:
        """The object's file. Raises NotFound or Refused."""

    def free_bytes(self) -> int:
        """What can still be kept. Raises Unavailable."""


class StoredJob(Struct, frozen=True, kw_only=True):
    """A job's row: what is queried stands in columns, the record itself in ``record`` (JSON)."""

    id: str
    owner: str
    status: str
    version: int
    """Grows by one with every write; the key of compare-and-set."""
    run: int = 1
    created_at: float
    ended_at: float | None
    record: bytes


class RemovedJob(NamedTuple):
    """A job that its owner has removed."""

    id: str
    at: float
    """Seconds since the epoch, by the gateway's clock."""


class StoredEvent(Struct, frozen=True, kw_only=True):
    """Something that happened to a job, written in the commit that made it so."""

    job: str
    version: int
    """Of the job's row that shows it."""
    number: int
    """Among those of one version, from 0."""
    at: float
    """Seconds since the epoch, by the gateway's clock."""
    type: str
    data: bytes
    """JSON; store keys where clients will see links."""


class Outgoing(Struct, frozen=True, kw_only=True):
    """A message that must leave when its time comes, written in the commit that causes it."""

    id: str
    """Deterministic: writing the same one twice keeps one."""
    message: bytes
    """The encoded body."""
    queue: str | None = None
    """A queue's name: by the default exchange; None: by the topic exchange under its type."""
    mandatory: bool = True
    due_at: float = 0.0
    """Seconds since the epoch, by the gateway's clock."""

    @property
    def job(self) -> str:
        """An outgoing message's id begins with its job's."""
        return self.id.partition("/")[0]


class JobStore(Protocol):
    """The gateway's record and its outbox; the gateway is the only writer.

    All calls raise ``Unavailable`` when the database does not answer.
    """

    async def migrate(self) -> None:
        """Bring the schema up to date; safe when several processes do it at once."""

    async def insert(
        self, job: StoredJob, outgoing: Sequence[Outgoing], happened: Sequence[StoredEvent] = ()
    ) -> bool:
        """Add a job and what it causes in one commit.

        False when the id exists already, or belonged to a job of :meth:`removed`.
        """

    async def get(self, job_id: str) -> StoredJob | None: ...

    async def replace(
        self,
        job: StoredJob,
        outgoing: Sequence[Outgoing],
        happened: Sequence[StoredEvent] = (),
        *,
        expected_version: int,
    ) -> bool:
        """Compare-and-set with what it causes, in one commit; False when somebody was faster.

        ``job.version`` must be ``expected_version + 1``.
        """

    def live(self) -> AsyncIterator[StoredJob]:
        """Every job whose status is not an end, oldest first."""

    async def ended_before(self, moment: float, limit: int = 100) -> Sequence[str]:
        """Ids of jobs that ended before the moment (seconds since the epoch)."""

    async def delete(self, job_id: str) -> None:
        """Forget a job, its events, what was streamed of it, and that it was removed."""

    async def remove(self, job_id: str, at: float) -> bool:
        """Forget a job and all that it would say after the moment, but for its having been removed.

        False: there is none.
        """

    async def removed(self) -> Sequence[RemovedJob]:
        """The jobs that were removed and not yet deleted, the longest ago first."""

    async def counts(self, owner: str) -> Mapping[str, int]:
        """How many jobs an owner has, by status; a status without any is left out."""

    async def count_retried(self, owner: str) -> int:
        """How often an owner's jobs were run again."""

    async def count_ahead(self, created_at: float, job_id: str) -> int:
        """How many jobs, of any owner, wait in front of this one."""

    async def newest(
        self,
        *,
        owner: str | None = None,
        statuses: Sequence[str] = (),
        before: tuple[float, str] | None = None,
        limit: int = 100,
    ) -> Sequence[StoredJob]:
        """Jobs, newest first: of one owner or all, with one of the statuses or any.

        ``before``: only those older than this (created_at, id); the last of a page gives the next.
        """

    async def events_after(
        self, job_id: str, version: int, number: int, limit: int = 100
    ) -> Sequence[StoredEvent]:
        """What happened to a job after (version, number), in order."""

    async def streamed(self, job_id: str) -> tuple[str, float]:
        """The mark of what was streamed of a job last, and when; ``""`` and 0: nothing yet."""

    async def stream(self, job_id: str, digest: str, at: float, *, expected: str) -> bool:
        """Move the mark, if it is still where it was; of several callers one is told True."""

    async def take_due(self, now: float, until: float, limit: int = 100) -> Sequence[Outgoing]:
        """Outgoing messages whose time has come, in the order of writing.

        They are the caller's until that moment: nobody else gets them, nor others of the same
        jobs, so that each leaves once and a job's leave in order, however many gateways there are.
        Who is killed meanwhile loses nothing: afterwards another gets them.
        """

    async def sent(self, outgoing_id: str) -> None:
        """Forget an outgoing message; it has left."""

    async def postpone(self, outgoing_id: str, due_at: float) -> None:
        """Try an outgoing message again later; it is nobody's until then."""

    async def close(self) -> None: ...


class StoredKey(Struct, frozen=True, kw_only=True):
    """A key that clients send, as it is known here: by its digest."""

    digest: str
    """Its SHA-256, hexadecimal."""
    name: str
    scopes: tuple[str, ...]
    created_at: float
    """Seconds since the epoch, as the others."""
    disabled_at: float | None = None
    last_used_at: float | None = None
    """To the minute."""


class KeyStore(Protocol):
    """The keys that were made; all calls raise ``Unavailable`` without the database."""

    async def add(self, key: StoredKey) -> bool:
        """Keep a new key; False when there is one of this name or digest."""

    async def find(self, digest: str) -> StoredKey | None: ...

    async def all(self) -> Sequence[StoredKey]:
        """Every key, disabled ones too, oldest first."""

    async def disable(self, name: str, at: float) -> bool:
        """Let a key in no more, for ever; False when there is none of this name that is let in."""

    async def used(self, digest: str, at: float) -> None:
        """Note the moment of a key's last use."""


class StoredUpload(Struct, frozen=True, kw_only=True):
    """A file that a client uploads, or has uploaded."""

    id: str
    owner: str
    bytes: int
    """The whole file's, as the client has announced them."""
    received: int = 0
    """So many bytes, from the first on, are in the store."""
    expected: str = ""
    """The SHA-256 that the client has announced, hexadecimal; empty: none."""
    sha256: str = ""
    """Of what has arrived; empty until all has."""
    touched_at: float
    """When it was begun, or the last part arrived; seconds since the epoch."""
    finished_at: float | None = None
    """When it was whole, and what was expected."""


class UploadStore(Protocol):
    """What is known of uploads; all calls raise ``Unavailable`` without the database."""

    async def add(self, upload: StoredUpload) -> None:
        """Begin an upload under a new id."""

    async def find(self, upload_id: str) -> StoredUpload | None: ...

    async def count_unfinished(self, owner: str) -> int: ...

    async def append(self, part: UploadPart, at: float) -> bool:
        """Note a part that is in the store, and the moment.

        Returns:
            False, and nothing is noted: the upload has more or fewer bytes by now than the part's
            offset, or is gone.
        """

    async def parts(self, upload_id: str) -> Sequence[UploadPart]:
        """What there is of an upload, in order."""

    async def settle(self, upload_id: str, sha256: str, finished_at: float | None) -> None:
        """Note what an upload turned out to be; None: not what was expected."""

    async def expired(
        self, *, untouched_since: float, finished_before: float, limit: int = 100
    ) -> Sequence[str]:
        """Ids of uploads that nobody went on with, and of finished ones whose time is over."""

    async def delete(self, upload_id: str) -> None:
        """Forget an upload and its parts."""


class Record(NamedTuple):
    """What the gateway keeps in its database."""

    jobs: JobStore
    keys: KeyStore
    uploads: UploadStore
