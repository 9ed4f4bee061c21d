"""The stores that the gateway needs, as protocols, and the paths that it serves."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from msgspec import Struct

from shared.messaging.messages import Stage
from shared.ports import UploadPart

BASE_PATHS = ("/v1/everydream-v1", "/v2/everydream-v1")
"""The endpoint's paths on this server."""


Status = Literal["IN_QUEUE", "IN_PROGRESS", "COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"]
END_STATUSES: tuple[Status, ...] = ("COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT")


@runtime_checkable
class LocalStore(Protocol):
    """An object store that keeps files on this machine; the gateway serves its links."""

    def path_of(self, key: str) -> Path:
        """The object's file. Raises NotFound or Refused."""

    def free_bytes(self) -> int:
        """Free space on the disk. Raises Unavailable."""

    def free_files(self) -> int | None:
        """How many more files fit on the disk; None: no limit. Raises Unavailable."""


class StoredJob(Struct, frozen=True, kw_only=True):
    """A job's row: a column for each field that is queried, the whole record as JSON."""

    id: str
    owner: str
    status: str
    version: int
    """Grows by one with every write, for compare-and-set."""
    run: int = 1
    created_at: float
    started_at: float | None = None
    ended_at: float | None
    overdue_at: float | None = None
    """When its first time limit passes; seconds since the epoch. None: it has ended."""
    record: bytes
    request_bytes: int = 0
    """Size of the request, as compact JSON; set by :meth:`JobStore.insert` alone."""


class JobUsage(NamedTuple):
    """What an owner's jobs use."""

    live: int
    """Jobs that have not ended."""
    kept: int
    """All jobs."""
    request_bytes: int
    """Of all jobs."""


class OpenStage(NamedTuple):
    """A stage that a live job waits for: all that supervision reads of it."""

    job: str
    stage: Stage
    claim: str | None
    """The live claim's id; None: it waits for a worker."""
    due_at: float
    """When it was last queued, or will be; seconds since the epoch."""


class StoredProgress(NamedTuple):
    """The newest numbers of a stage, beside the job's row."""

    job: str
    stage: Stage
    run: int
    """Of the job; an earlier run's numbers are not shown."""
    numbers: bytes
    """JSON."""
    sequence: int = 0
    """How often they have changed; the store counts."""


class RemovedJob(NamedTuple):
    """A job that its owner removed."""

    id: str
    at: float
    """Seconds since the epoch, by the gateway's clock."""


class StoredEvent(Struct, frozen=True, kw_only=True):
    """Something that happened to a job, written in the same commit as the change."""

    job: str
    version: int
    """Of the job's row after the change."""
    number: int
    """From 0, among the events of one version."""
    at: float
    """Seconds since the epoch, by the gateway's clock."""
    type: str
    data: bytes
    """JSON, with store keys in place of links."""


class Outgoing(Struct, frozen=True, kw_only=True):
    """A message to publish when it is due, written in the same commit as its cause."""

    id: str
    """Deterministic, so that writing a message twice keeps one."""
    message: bytes
    """The encoded body."""
    queue: str | None = None
    """Sent by the default exchange; None: published on the topic exchange under its type."""
    mandatory: bool = True
    due_at: float = 0.0
    """Seconds since the epoch, by the gateway's clock."""

    @property
    def job(self) -> str:
        """The id of its job, which its own id begins with."""
        return self.id.partition("/")[0]


class JobStore(Protocol):
    """Jobs, their events, and the outbox; only gateways write them.

    All calls raise ``Unavailable`` when the database does not answer.
    """

    async def migrate(self) -> None:
        """Upgrade the schema; safe when several processes do it at once."""

    async def insert(
        self,
        job: StoredJob,
        outgoing: Sequence[Outgoing],
        happened: Sequence[StoredEvent] = (),
        stages: Sequence[OpenStage] = (),
    ) -> bool:
        """Add a job with its messages, events and open stages, in one commit.

        False when the id exists already, or belongs to a job of :meth:`removed`.
        """

    async def get(self, job_id: str) -> StoredJob | None: ...

    async def replace(
        self,
        job: StoredJob,
        outgoing: Sequence[Outgoing],
        happened: Sequence[StoredEvent] = (),
        stages: Sequence[OpenStage] | None = None,
        *,
        expected_version: int,
    ) -> bool:
        """Compare-and-set, with the messages, events and open stages, in one commit.

        ``stages`` takes the place of the job's former open stages; None: they stay.

        False when another writer was faster. ``job.version`` must be ``expected_version + 1``.
        """

    async def claims(self) -> Sequence[OpenStage]:
        """Every stage that is claimed: as many as workers are busy."""

    async def waiting(self, now: float, limit: int = 100) -> Sequence[OpenStage]:
        """Of each stage the first ``limit`` that were due by now and that nobody has claimed."""

    def overdue(self, now: float) -> AsyncIterator[str]:
        """Ids of live jobs of which a time limit has passed, the longest first."""

    async def write_progress(self, rows: Sequence[StoredProgress]) -> None:
        """Set the newest numbers of many stages in one commit; of jobs that are gone, none."""

    async def progress(self, job_id: str) -> Sequence[StoredProgress]:
        """The newest numbers of a job's stages, of any run."""

    async def ended_before(
        self, moment: float, limit: int = 100, *, after: float = 0.0
    ) -> Sequence[str]:
        """Ids of jobs that ended before this moment and after the other, oldest end first.

        Both in seconds since the epoch, exclusive.
        """

    async def delete(self, job_id: str) -> None:
        """Delete a job, all that is kept beside it, and the note that it was removed."""

    async def remove(self, job_id: str, at: float) -> bool:
        """Delete a job and its messages due after ``at``, and note that it was removed.

        False when there is no such job.
        """

    async def removed(self) -> Sequence[RemovedJob]:
        """The jobs that were removed and not yet deleted, oldest removal first."""

    async def counts(self, owner: str, limit: int | None = None) -> Mapping[str, int]:
        """How many jobs an owner has, by status; a status without jobs is left out.

        Of each status at most ``limit`` are counted.
        """

    async def usage(self, owner: str) -> JobUsage:
        """What an owner's jobs use; removed ones use nothing."""

    async def count_retried(self, owner: str) -> int:
        """How often an owner's jobs were run again."""

    async def count_ahead(
        self,
        created_at: float,
        job_id: str,
        *,
        behind: tuple[float, str] | None = None,
        limit: int | None = None,
    ) -> int:
        """How many jobs, of any owner, wait in front of this one.

        Args:
            created_at: of the job.
            job_id: of the job.
            behind: only jobs behind this (created_at, id).
            limit: the most to count.
        """

    async def every_waiting(self, step: int) -> Sequence[tuple[float, str]]:
        """(created_at, id) of each ``step``-th job that waits, in the order of the queue."""

    async def queued(self, owner: str) -> Sequence[str]:
        """Ids of an owner's jobs that are IN_QUEUE, newest first."""

    async def execution_seconds(self, limit: int) -> Sequence[float]:
        """From start to end, in seconds, of the newest jobs that have completed."""

    async def newest(
        self,
        *,
        owner: str | None = None,
        statuses: Sequence[str] = (),
        before: tuple[float, str] | None = None,
        limit: int = 100,
    ) -> Sequence[StoredJob]:
        """Jobs, newest first.

        Args:
            owner: None: of all owners.
            statuses: only jobs with one of these; empty: any.
            before: only jobs older than this (created_at, id), for the next page.
            limit: the most jobs to return.
        """

    async def events_after(
        self, job_id: str, version: int, number: int, limit: int = 100
    ) -> Sequence[StoredEvent]:
        """A job's events after (version, number), in order."""

    async def streamed(self, job_id: str) -> tuple[str, float]:
        """The digest of the output that was streamed last, and when; ``""`` and 0: nothing yet."""

    async def stream(self, job_id: str, digest: str, at: float, *, expected: str) -> bool:
        """Set that digest, if it still is ``expected``; True for one of several callers."""

    async def take_due(self, now: float, until: float, limit: int = 100) -> Sequence[Outgoing]:
        """Lease outgoing messages that are due, in the order of writing.

        Until ``until`` no other caller gets them, nor other messages of the same jobs. So each is
        published once and a job's messages in order, however many gateways there are. If the
        caller dies, another gets them after that moment.
        """

    async def sent(self, outgoing_id: str) -> None:
        """Delete an outgoing message that was published."""

    async def postpone(self, outgoing_id: str, due_at: float) -> None:
        """Make an outgoing message due later, and release its lease."""

    async def close(self) -> None: ...


class StoredKey(Struct, frozen=True, kw_only=True):
    """An API key; only its digest is stored."""

    digest: str
    """Its SHA-256, hexadecimal."""
    name: str
    scopes: tuple[str, ...]
    created_at: float
    """Seconds since the epoch, like the next two."""
    disabled_at: float | None = None
    last_used_at: float | None = None
    """To the minute."""


class KeyStore(Protocol):
    """API keys made by the command line.

    All calls raise ``Unavailable`` when the database does not answer.
    """

    async def add(self, key: StoredKey) -> bool:
        """Add a new key; False when its name or digest exists already."""

    async def find(self, digest: str) -> StoredKey | None: ...

    async def all(self) -> Sequence[StoredKey]:
        """Every key, disabled ones too, oldest first."""

    async def disable(self, name: str, at: float) -> bool:
        """Disable a key for good; False when there is no enabled key with this name."""

    async def used(self, digest: str, at: float) -> None:
        """Record when a key was last used."""


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

    async def usage(self, owner: str) -> UploadUsage: ...

    async def append(self, part: UploadPart, at: float) -> bool:
        """Record a part that is in the store.

        Returns:
            False when the upload does not end at the part's offset (any more), or is gone.
        """

    async def parts(self, upload_id: str) -> Sequence[UploadPart]:
        """The parts of an upload, in order."""

    async def settle(self, upload_id: str, sha256: str, finished_at: float | None) -> None:
        """Record a complete upload; ``finished_at`` None: its SHA-256 is not the expected one."""

    async def expired(
        self, *, untouched_since: float, finished_before: float, limit: int = 100
    ) -> Sequence[str]:
        """Ids of abandoned uploads, and of finished ones past their retention."""

    async def delete(self, upload_id: str) -> None:
        """Delete an upload and its parts."""


class Stores(NamedTuple):
    """The three stores of the gateway, in one database."""

    jobs: JobStore
    keys: KeyStore
    uploads: UploadStore
