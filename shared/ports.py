"""What the project needs from the outside world, as promises that every adapter keeps.

Adapters raise the errors of :mod:`shared.errors` and none of their vendor's. The contract tests
hold every adapter of a port to the same promises.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol, runtime_checkable

from msgspec import Struct

from shared.disk import Room
from shared.messaging.envelope import Envelope
from shared.messaging.messages import AnyMessage, Message
from shared.messaging.topology import Queue


class Delivery(Protocol):
    """One message got from a queue, ours until it is settled or the channel is lost."""

    @property
    def message(self) -> AnyMessage: ...

    @property
    def envelope(self) -> Envelope: ...

    @property
    def is_ours(self) -> bool:
        """False once it is settled, or its channel lost: it is redelivered, perhaps to another."""

    async def ack(self) -> None:
        """Remove it from the queue. On a lost channel: does nothing, it is redelivered."""

    async def release(self) -> None:
        """Requeue it now. On a lost channel: does nothing."""

    async def dead_letter(self, reason: str) -> None:
        """Move it to the dead letters with the reason, the body's length and its sha256."""


class DeadLetter(Struct, frozen=True, kw_only=True):
    """One dead-lettered message."""

    queue: str
    """The queue it came from; of one that was never published, the queue or key it was for."""
    reason: str
    length: int
    """Bytes of the original body."""
    sha256: str
    """Of the original body, in hexadecimal."""
    body: bytes
    """Empty if the body could hold a user's secrets, or could not be published."""
    type: str = ""
    """Of a message that could not be published, like the next."""
    job: str = ""


class DeadDelivery(Protocol):
    """One dead letter, ours until it is acked or the channel is lost."""

    @property
    def id(self) -> str:
        """The same when it is delivered again."""

    @property
    def at(self) -> float:
        """When it was dead-lettered, or came here if that is not known; seconds since the epoch."""

    @property
    def letter(self) -> DeadLetter:
        """With the type and the job of its message, if that is known."""

    @property
    def is_ours(self) -> bool:
        """False once it is acked, or its channel lost: it is delivered again."""

    async def ack(self) -> None:
        """Remove it from the dead letters. On a lost channel: does nothing."""


class ReplyQueue(Protocol):
    """A worker's exclusive queue; it is deleted with its connection, and a new one follows."""

    @property
    def address(self) -> str:
        """The name to give as ``reply_to``; changes when the connection is lost."""

    def messages(self) -> AsyncIterator[AnyMessage]:
        """Messages, forever, across lost connections; those in flight at a loss are lost."""

    def ends_of(self, job: str) -> AbstractAsyncContextManager[None]:
        """In the block it receives how this job ends, too, unless the broker does not let it."""


class Bus(Protocol):
    """A topic exchange with durable queues; delivers at least once.

    The queues are :data:`shared.messaging.topology.QUEUES`.

    Every process declares the whole topology when it opens the bus. The adapter dead-letters
    messages that cannot be decoded and never hands them out.
    """

    @property
    def source(self) -> str:
        """The service's name on the bus, such as ``trainer/host-123``; the CloudEvents source."""

    async def publish(
        self, message: Message, *, reply_to: str | None = None, mandatory: bool = True
    ) -> None:
        """Publish to the exchange under the message's type; returns once the broker has it.

        Raises:
            Unpublishable: the broker refuses it for good, such as a body of more than
                :data:`shared.messaging.topology.MAX_MESSAGE_BYTES`; a note of it, without the body,
                is among the dead letters.
            Unroutable: ``mandatory`` and no queue is bound for the type.
            Unavailable: no confirm within the time-out; it may have arrived nevertheless.
        """

    async def send(self, queue: str, message: Message, *, mandatory: bool = False) -> None:
        """Publish to one queue by name, past the exchange; otherwise as :meth:`publish`."""

    async def get(self, queue: Queue) -> Delivery:
        """Wait for one message and get it, without holding a consumer afterwards.

        Waits forever, across lost connections; cancel it to stop. A cancel loses no message: one
        in flight is requeued.
        """

    def consume(self, queue: Queue, *, prefetch: int = 16) -> AsyncGenerator[Delivery, None]:
        """Messages in order, forever, across lost connections, until the iterator is closed.

        After a lost connection the unacked ones are redelivered.
        """

    def consume_batches(
        self, queue: Queue, *, most: int
    ) -> AsyncGenerator[Sequence[Delivery], None]:
        """As :meth:`consume`, each time all that have arrived: from one to ``most``, in order.

        As many more are fetched meanwhile.
        """

    def dead_letters(self, *, prefetch: int = 16) -> AsyncGenerator[DeadDelivery, None]:
        """The dead letters, forever, across lost connections; only the gateway may have them.

        One that is not acked comes again, after a lost connection or from another bus. As many
        as ``prefetch`` may wait for it while the next ones come.
        """

    def reply_queue(self, bindings: Sequence[str]) -> AbstractAsyncContextManager[ReplyQueue]:
        """An exclusive queue, bound to these routing keys."""

    async def depth(self, queue: Queue) -> int:
        """How many messages wait in the queue, unacked ones not counted.

        Raises:
            Unavailable: the broker does not answer.
        """

    async def consumers(self, queue: Queue) -> int:
        """How many consumers the queue has, in all processes.

        Raises:
            Unavailable: the broker does not answer.
        """

    async def close(self) -> None:
        """Stop consuming, requeue what is unacked, and disconnect. Never raises."""


def no_keepalive() -> None:
    """Ignore signs of life."""


class StoredObject(Struct, frozen=True):
    """One object of a store."""

    key: str
    bytes: int
    modified: float
    """Seconds since the epoch."""


class ObjectStore(Protocol):
    """Bytes under keys such as ``jobs/<id>/training/1/last.safetensors``; every write is atomic.

    Keys are relative, use ``/``, and never contain ``..``. Readers see an object whole or not at
    all. All calls raise ``Unavailable`` if the store does not answer.
    """

    async def put(self, key: str, data: bytes) -> None:
        """Write a small object, replacing an older one."""

    async def get(self, key: str) -> bytes:
        """Read a small object. Raises NotFound."""

    async def upload(
        self,
        path: Path,
        key: str,
        *,
        keepalive: Callable[[], None] = no_keepalive,
        immutable: bool = False,
    ) -> None:
        """Write a file of any size, streaming; calls ``keepalive`` as it progresses.

        One that is ``immutable``, though perhaps removed, may be shared by a store on its disk.
        """

    async def download(
        self,
        key: str,
        path: Path,
        *,
        keepalive: Callable[[], None] = no_keepalive,
        immutable: bool = False,
    ) -> None:
        """Download into a file, whole or not at all; creates the parent folders.

        Calls ``keepalive`` as it progresses. The file may be the store's own if it is
        ``immutable``, though perhaps removed. Raises NotFound.
        """

    async def exists(self, key: str) -> bool: ...

    def list(self, prefix: str) -> AsyncIterator[StoredObject]:
        """All objects whose key starts with the prefix, in order of keys."""

    async def delete(self, prefix: str) -> int:
        """Delete all objects whose key starts with the prefix; returns how many."""

    async def link(self, key: str, *, seconds: int, filename: str | None = None) -> str:
        """A signed URL that anyone may GET until it expires, in at most 604 800 s; never stored."""

    async def close(self) -> None: ...


class UploadPart(Struct, frozen=True, kw_only=True):
    """A piece of an upload: one object of the store."""

    upload: str
    offset: int
    """Of its first byte in the upload."""
    bytes: int
    key: str


@runtime_checkable
class LocalStore(Protocol):
    """An object store that keeps files on this machine; the gateway serves its links."""

    def path_of(self, key: str) -> Path:
        """The object's file. Raises NotFound or Refused."""

    def total(self) -> Room:
        """What the disk holds at most, with what is on it. Raises Unavailable."""

    def free_bytes(self) -> int:
        """Free space on the disk. Raises Unavailable."""

    def free_files(self) -> int | None:
        """How many more files fit on the disk; None: no limit. Raises Unavailable."""
