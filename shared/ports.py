"""What the project needs of the outside world, and what each adapter promises.

Adapters speak our language: they raise the errors of :mod:`shared.errors` and nothing of their
vendor's. The contract tests hold every adapter of a port to the same promises.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import NamedTuple, Protocol

from msgspec import Struct

from shared.messaging.envelope import Envelope
from shared.messaging.messages import AnyMessage, Message
from shared.messaging.topology import Queue


class Delivery(Protocol):
    """One message taken from a queue, ours until it is acked, buried or the channel is lost."""

    @property
    def message(self) -> AnyMessage: ...

    @property
    def envelope(self) -> Envelope: ...

    async def ack(self) -> None:
        """Take it off the queue for good. On a lost channel: returns quietly, it comes again."""

    async def release(self) -> None:
        """Give it back to the queue now. On a lost channel: returns quietly."""

    async def bury(self, reason: str) -> None:
        """Move it to the dead letters with the reason, the body's length and its sha256."""


class Control(Protocol):
    """A worker's own, exclusive queue; it dies with its connection, and a new one follows."""

    @property
    def address(self) -> str:
        """The name to give as ``reply_to``; changes when the connection was lost."""

    def messages(self) -> AsyncIterator[AnyMessage]:
        """What arrives here, for ever; survives lost connections. What was in flight is lost."""


class Bus(Protocol):
    """A topic exchange with durable queues, at-least-once.

    The queues are :data:`shared.messaging.topology.QUEUES`.

    Every process declares the whole topology when it opens the bus. No call raises a vendor's
    error. A message that cannot be decoded is buried by the adapter and never handed out.
    """

    @property
    def source(self) -> str:
        """Who we are on the bus, for example ``trainer/host-123``; the CloudEvents source."""

    async def publish(
        self, message: Message, *, reply_to: str | None = None, needs_listener: bool = True
    ) -> None:
        """Put on the exchange under the message's type; returns when the broker has it.

        Raises:
            Unroutable: ``needs_listener`` and no queue is bound for the type.
            Unavailable: no confirm within the time-out; it may have arrived all the same.
        """

    async def send(self, queue: str, message: Message, *, needs_listener: bool = False) -> None:
        """Put on one queue by name, past the exchange; otherwise as :meth:`publish`."""

    async def take(self, queue: Queue) -> Delivery:
        """Wait for one message and take it, without holding a consumer afterwards.

        Waits for ever, across lost connections; cancel it to stop. When it is cancelled, no
        message is lost: one in flight goes back to the queue.
        """

    def consume(self, queue: Queue, *, prefetch: int = 16) -> AsyncGenerator[Delivery, None]:
        """Take messages in order, for ever, across lost connections, until the iterator is closed.

        After a lost connection the unacked ones are delivered again.
        """

    def control(self, bindings: Sequence[str]) -> AbstractAsyncContextManager[Control]:
        """An exclusive queue of our own, bound to these routing keys."""

    async def depth(self, queue: Queue) -> int:
        """How many messages wait in the queue, those in hand not counted.

        Raises:
            Unavailable: the broker does not answer.
        """

    async def consumers(self, queue: Queue) -> int:
        """How many wait for a message of the queue, in all processes.

        Raises:
            Unavailable: the broker does not answer.
        """

    async def close(self) -> None:
        """Stop consuming, give back what is unacked, and hang up. Never raises."""


def unheard() -> None:
    """Nobody listens for signs of life."""


class Entry(Struct, frozen=True):
    """One object of a store."""

    key: str
    bytes: int
    modified: float
    """Seconds since the epoch."""


class ObjectStore(Protocol):
    """Bytes under keys such as ``jobs/<id>/training/1/last.safetensors``; every write is atomic.

    Keys are relative, use ``/``, and never contain ``..``. A reader sees an object whole or not at
    all. All calls raise ``Unavailable`` when the store does not answer.
    """

    async def put(self, key: str, data: bytes) -> None:
        """Write a small object, over an older one if there is one."""

    async def get(self, key: str) -> bytes:
        """Read a small object. Raises NotFound."""

    async def upload(self, path: Path, key: str, *, heard: Callable[[], None] = unheard) -> None:
        """Write a file of any size, streaming; calls ``heard`` as it gets on."""

    async def download(self, key: str, path: Path, *, heard: Callable[[], None] = unheard) -> None:
        """Fetch into a file, whole or not at all; makes the folders above.

        Calls ``heard`` as it gets on. Raises NotFound.
        """

    async def exists(self, key: str) -> bool: ...

    def list(self, prefix: str) -> AsyncIterator[Entry]:
        """Every object whose key starts with the prefix, in order of keys."""

    async def delete(self, prefix: str) -> int:
        """Remove every object whose key starts with the prefix; how many there were."""

    async def link(self, key: str, *, seconds: int, filename: str | None = None) -> str:
        """A signed URL that anyone may GET until it expires; never stored. At most 604 800 s."""

    async def close(self) -> None: ...


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
    needs_listener: bool = True
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

    async def count_live(self, owner: str) -> int: ...

    async def counts(self, owner: str) -> Mapping[str, int]:
        """How many jobs an owner has, by status; a status without any is left out."""

    async def count_retried(self, owner: str) -> int:
        """How often an owner's jobs were run again."""

    async def count_ahead(self, job: StoredJob) -> int:
        """How many jobs wait in front of this one, of whatever owner."""

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


class UploadPart(Struct, frozen=True, kw_only=True):
    """A piece of an upload: one object of the store."""

    upload: str
    offset: int
    """Of its first byte in the whole."""
    bytes: int
    key: str


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
