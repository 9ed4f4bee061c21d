"""What the project needs of the outside world, and what each adapter promises.

Adapters speak our language: they raise the errors of :mod:`shared.errors` and nothing of their
vendor's. The contract tests hold every adapter of a port to the same promises.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

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

    async def dead_letter(self, reason: str) -> None:
        """Move it to the dead letters with the reason, the body's length and its sha256."""


class ReplyQueue(Protocol):
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
        self, message: Message, *, reply_to: str | None = None, mandatory: bool = True
    ) -> None:
        """Put on the exchange under the message's type; returns when the broker has it.

        Raises:
            Unroutable: ``mandatory`` and no queue is bound for the type.
            Unavailable: no confirm within the time-out; it may have arrived all the same.
        """

    async def send(self, queue: str, message: Message, *, mandatory: bool = False) -> None:
        """Put on one queue by name, past the exchange; otherwise as :meth:`publish`."""

    async def get(self, queue: Queue) -> Delivery:
        """Wait for one message and take it, without holding a consumer afterwards.

        Waits for ever, across lost connections; cancel it to stop. When it is cancelled, no
        message is lost: one in flight goes back to the queue.
        """

    def consume(self, queue: Queue, *, prefetch: int = 16) -> AsyncGenerator[Delivery, None]:
        """Take messages in order, for ever, across lost connections, until the iterator is closed.

        After a lost connection the unacked ones are delivered again.
        """

    def reply_queue(self, bindings: Sequence[str]) -> AbstractAsyncContextManager[ReplyQueue]:
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


def no_keepalive() -> None:
    """Nobody listens for signs of life."""


class StoredObject(Struct, frozen=True):
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

    async def upload(
        self, path: Path, key: str, *, keepalive: Callable[[], None] = no_keepalive
    ) -> None:
        """Write a file of any size, streaming; calls ``keepalive`` as it gets on."""

    async def download(
        self, key: str, path: Path, *, keepalive: Callable[[], None] = no_keepalive
    ) -> None:
        """Fetch into a file, whole or not at all; makes the folders above.

        Calls ``keepalive`` as it gets on. Raises NotFound.
        """

    async def exists(self, key: str) -> bool: ...

    def list(self, prefix: str) -> AsyncIterator[StoredObject]:
        """Every object whose key starts with the prefix, in order of keys."""

    async def delete(self, prefix: str) -> int:
        """Remove every object whose key starts with the prefix; how many there were."""

    async def link(self, key: str, *, seconds: int, filename: str | None = None) -> str:
        """A signed URL that anyone may GET until it expires; never stored. At most 604 800 s."""

    async def close(self) -> None: ...


class UploadPart(Struct, frozen=True, kw_only=True):
    """A piece of an upload: one object of the store."""

    upload: str
    offset: int
    """Of its first byte in the whole."""
    bytes: int
    key: str
