"""The in-memory bus of the all-in-one process; keeps the same promises as RabbitMQ.

Every service opens its own bus on one broker object. Closing a bus requeues its unacked messages,
as a lost connection does. Messages are encoded and decoded, so that what cannot be serialized
fails here too. Nothing outlives the process.
"""

from __future__ import annotations

import asyncio
import time
from bisect import insort
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from uuid import uuid4

import structlog
from msgspec.structs import replace

from shared.adapters.dead_letters import (
    LIMIT_REASON,
    Undecodable,
    about,
    dead_letter,
    decode_untrusted,
    readable,
    unpublished,
    why_unpublishable,
)
from shared.errors import Unavailable, Unpublishable, Unroutable
from shared.messaging.envelope import Envelope, envelope_for, subject_of
from shared.messaging.messages import AnyMessage, Message, encode
from shared.messaging.topology import (
    DELIVERY_LIMIT,
    JOB_ENDS,
    MAX_MESSAGE_BYTES,
    QUEUES,
    Queue,
    is_bound,
)
from shared.ports import DeadLetter

DEAD_LETTERS_KEPT = 1000
_Dead = tuple[str, float, DeadLetter]
"""Its id, when it became one, and itself."""

log = structlog.get_logger()


@dataclass
class _QueuedMessage:
    number: int
    body: bytes
    envelope: Envelope
    requeues: int = 0
    """How often it was requeued."""


class MemoryBroker:
    """The queues shared by the services of one process, all in one event loop."""

    def __init__(self) -> None:
        self.dead = _DeadLetters()
        self._numbers = count(1)
        self._queues: dict[str, _Queue] = {}
        for queue in QUEUES:
            self.declare(queue)

    @property
    def dead_letters(self) -> Sequence[DeadLetter]:
        """The newest, also those that were taken."""
        return self.dead.every

    def bus(self, source: str) -> MemoryBus:
        """Open a bus for one service; ``source`` is for example ``trainer/host-123``."""
        return MemoryBus(self, source=source)

    def declare(self, queue: Queue) -> _Queue:
        return self._queues.setdefault(queue.name, _Queue(queue, self.dead))

    def delete(self, name: str) -> None:
        del self._queues[name]

    def queue(self, name: str) -> _Queue:
        return self._queues[name]

    def encoded(self, message: Message, to: str) -> bytes:
        """The body of a message for a queue or routing key.

        Raises:
            Unpublishable: it is larger than a broker takes; a note of it is dead-lettered.
        """
        body = encode(message)
        if len(body) > MAX_MESSAGE_BYTES:
            reason = why_unpublishable(message, body, f"it takes {MAX_MESSAGE_BYTES}")
            self.dead.add(unpublished(body, message, to=to, reason=reason))
            raise Unpublishable(reason)
        return body

    def publish(self, key: str, body: bytes, envelope: Envelope) -> bool:
        """Put a body on every queue bound to the key; False: there is none."""
        bound = [q for q in self._queues.values() if q.is_bound_to(key, envelope.subject)]
        return self._put(bound, body, envelope)

    def send(self, name: str, body: bytes, envelope: Envelope) -> bool:
        """Put a body on one queue; False: there is none of that name."""
        return self._put([q for q in self._queues.values() if q.name == name], body, envelope)

    def _put(self, queues: list[_Queue], body: bytes, envelope: Envelope) -> bool:
        for queue in queues:
            queue.put(_QueuedMessage(next(self._numbers), body, envelope))
        return bool(queues)


class _DeadLetters:
    """Of both those to be taken and all, the newest are kept."""

    def __init__(self) -> None:
        self.every: deque[DeadLetter] = deque(maxlen=DEAD_LETTERS_KEPT)
        self._to_take: deque[_Dead] = deque(maxlen=DEAD_LETTERS_KEPT)
        self._added = asyncio.Event()

    def add(self, letter: DeadLetter) -> None:
        log.warning("message_dead_lettered", **about(letter))
        self.every.append(letter)
        self._to_take.append((str(uuid4()), time.time(), readable(letter)))
        self._added.set()

    async def next(self) -> _Dead:
        while not self._to_take:
            self._added.clear()
            await self._added.wait()
        return self._to_take.popleft()

    def put_back(self, dead: _Dead) -> None:
        self._to_take.appendleft(dead)
        self._added.set()


class _DeadDelivery:
    def __init__(self, dead: _Dead, room: asyncio.Semaphore) -> None:
        """``room`` is for as many as are taken at a time."""
        self.id, self.at, self.letter = self.dead = dead
        self.is_ours = True
        self._room = room

    async def ack(self) -> None:
        if self.is_ours:
            self.is_ours = False
            self._room.release()


class _Queue:
    def __init__(self, declared: Queue, dead_letters: _DeadLetters) -> None:
        self.name = declared.name
        self._declared = declared
        self._dead_letters = dead_letters
        self._ready: list[_QueuedMessage] = []
        self._consumers: list[_Consumer] = []
        self._changed = asyncio.Event()
        self.followed: list[str] = []  # subjects of the jobs whose end it receives

    def __len__(self) -> int:
        return len(self._ready)

    @property
    def consumers(self) -> int:
        return len(self._consumers)

    def is_bound_to(self, key: str, subject: str) -> bool:
        followed = key in JOB_ENDS and subject in self.followed
        return followed or is_bound(self._declared.bindings, key)

    def put(self, queued: _QueuedMessage) -> None:
        insort(self._ready, queued, key=lambda waiting: waiting.number)
        self.wake()

    def requeue(self, queued: _QueuedMessage) -> None:
        queued.requeues += 1
        if queued.requeues > DELIVERY_LIMIT:
            self.dead_letter(queued, decode_untrusted(queued.body), LIMIT_REASON)
        else:
            self.put(queued)

    def dead_letter(self, queued: _QueuedMessage, message: AnyMessage | None, reason: str) -> None:
        dead = dead_letter(queued.body, message, queue=self.name, reason=reason)
        self._dead_letters.add(dead)

    def add_consumer(self, consumer: _Consumer) -> None:
        self._consumers.append(consumer)

    def remove_consumer(self, consumer: _Consumer) -> None:
        if consumer in self._consumers:
            self._consumers.remove(consumer)
            self.wake()

    def wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def changed(self) -> None:
        await self._changed.wait()

    def has_next_for(self, consumer: _Consumer) -> bool:
        active = self._consumers[:1] if self._declared.single_active_consumer else self._consumers
        return bool(self._ready) and consumer in active

    def pop(self) -> _QueuedMessage:
        return self._ready.pop(0)


class _Consumer:
    """A consumer of one queue; closing it requeues what is unacked."""

    def __init__(self, bus: MemoryBus, queue: _Queue, prefetch: int) -> None:
        self._bus = bus
        self._queue = queue
        self._prefetch = prefetch
        self._unacked: dict[int, _QueuedMessage] = {}
        self._active = True
        queue.add_consumer(self)

    @property
    def closed(self) -> bool:
        return not self._active and not self._unacked

    @property
    def has_next(self) -> bool:
        return self._queue.has_next_for(self) and len(self._unacked) < self._prefetch

    async def next(self) -> _Delivery:
        (delivery,) = await self.next_batch(1)
        return delivery

    async def next_batch(self, most: int) -> list[_Delivery]:
        """What there is, at least one and at most so many."""
        batch: list[_Delivery] = []
        while not batch:
            await self._arrival()
            while self.has_next and len(batch) < most:
                batch += self._taken()
        return batch

    async def _arrival(self) -> None:
        while not self.has_next:
            if not self._active:
                raise Unavailable(f"the consumer of {self._queue.name} is closed")
            await self._queue.changed()

    def _taken(self) -> list[_Delivery]:
        """The next one; nothing if it is undecodable."""
        queued = self._queue.pop()
        self._unacked[queued.number] = queued
        try:
            return [_Delivery(self, queued, decode_untrusted(queued.body))]
        except Undecodable as error:
            self.settle(queued)
            self._queue.dead_letter(queued, None, str(error))
            return []

    def has(self, queued: _QueuedMessage) -> bool:
        return queued.number in self._unacked

    def settle(self, queued: _QueuedMessage) -> bool:
        """Remove a message from the unacked ones; False: it is not among them any more."""
        settled = self._unacked.pop(queued.number, None) is not None
        self._queue.wake()
        self._bus.drop_closed_consumers()
        return settled

    def requeue(self, queued: _QueuedMessage) -> None:
        if self.settle(queued):
            self._queue.requeue(queued)

    def dead_letter(self, queued: _QueuedMessage, message: AnyMessage, reason: str) -> None:
        if self.settle(queued):
            self._queue.dead_letter(queued, message, reason)

    def stop(self) -> None:
        """Take no more messages; the unacked ones stay."""
        self._active = False
        self._queue.remove_consumer(self)
        self._bus.drop_closed_consumers()

    def close(self) -> None:
        """Take no more messages and requeue the unacked ones."""
        self.stop()
        for queued in list(self._unacked.values()):
            self.requeue(queued)


class _Delivery:
    def __init__(self, consumer: _Consumer, queued: _QueuedMessage, message: AnyMessage) -> None:
        self._consumer = consumer
        self._queued = queued
        self.message = message
        self.envelope = queued.envelope

    @property
    def is_ours(self) -> bool:
        return self._consumer.has(self._queued)

    async def ack(self) -> None:
        self._consumer.settle(self._queued)

    async def release(self) -> None:
        self._consumer.requeue(self._queued)

    async def dead_letter(self, reason: str) -> None:
        self._consumer.dead_letter(self._queued, self.message, reason)


class _ReplyQueue:
    def __init__(self, consumer: _Consumer, queue: _Queue) -> None:
        self._consumer = consumer
        self._queue = queue
        self.address = queue.name

    async def messages(self) -> AsyncIterator[AnyMessage]:
        while True:
            delivery = await self._consumer.next()
            await delivery.ack()
            yield delivery.message

    @asynccontextmanager
    async def ends_of(self, job: str) -> AsyncIterator[None]:
        self._queue.followed.append(subject_of(job))
        try:
            yield
        finally:
            self._queue.followed.remove(subject_of(job))


class MemoryBus:
    """The :class:`shared.ports.Bus` of one service on a :class:`MemoryBroker`."""

    def __init__(self, broker: MemoryBroker, *, source: str) -> None:
        self._broker = broker
        self._source = source
        self._consumers: list[_Consumer] = []
        self._open = True

    @property
    def source(self) -> str:
        return self._source

    def check_open(self) -> None:
        if not self._open:
            raise Unavailable(f"the bus of {self._source} is closed")

    async def publish(
        self, message: Message, *, reply_to: str | None = None, mandatory: bool = True
    ) -> None:
        self.check_open()
        envelope = self._envelope(message, reply_to)
        body = self._broker.encoded(message, envelope.type)
        routed = self._broker.publish(envelope.type, body, envelope)
        if mandatory and not routed:
            raise Unroutable(f"no queue is bound for {envelope.type}")
        await asyncio.sleep(0)  # let others run between publishes, as a socket does

    async def send(self, queue: str, message: Message, *, mandatory: bool = False) -> None:
        self.check_open()
        body = self._broker.encoded(message, queue)
        routed = self._broker.send(queue, body, self._envelope(message, None))
        if mandatory and not routed:
            raise Unroutable(f"there is no queue {queue}")
        await asyncio.sleep(0)

    async def get(self, queue: Queue) -> _Delivery:
        consumer = self._consumer(self._broker.queue(queue.name), prefetch=1)
        try:
            return await consumer.next()
        finally:
            consumer.stop()

    async def consume(self, queue: Queue, *, prefetch: int = 16) -> AsyncGenerator[_Delivery, None]:
        consumer = self._consumer(self._broker.queue(queue.name), prefetch)
        try:
            while True:
                yield await consumer.next()
        finally:
            consumer.close()

    async def consume_batches(
        self, queue: Queue, *, most: int
    ) -> AsyncGenerator[list[_Delivery], None]:
        consumer = self._consumer(self._broker.queue(queue.name), 2 * most)
        try:
            while True:
                yield await consumer.next_batch(most)
        finally:
            consumer.close()

    @asynccontextmanager
    async def reply_queue(self, bindings: Sequence[str]) -> AsyncIterator[_ReplyQueue]:
        address = f"control.{self._source}.{uuid4().hex}"
        queue = self._broker.declare(Queue(address, tuple(bindings)))
        consumer = self._consumer(queue, prefetch=1)
        try:
            yield _ReplyQueue(consumer, queue)
        finally:
            consumer.stop()
            self._broker.delete(address)

    async def dead_letters(self, *, prefetch: int = 16) -> AsyncGenerator[_DeadDelivery, None]:
        room, in_hand = asyncio.Semaphore(prefetch), list[_DeadDelivery]()
        try:
            while True:
                self.check_open()
                await room.acquire()
                dead = await self._broker.dead.next()
                in_hand = [each for each in in_hand if each.is_ours]
                in_hand.append(_DeadDelivery(dead, room))
                yield in_hand[-1]
        finally:
            for each in reversed(in_hand):
                if each.is_ours:
                    each.is_ours = False
                    self._broker.dead.put_back(each.dead)

    async def depth(self, queue: Queue) -> int:
        self.check_open()
        return len(self._broker.queue(queue.name))

    async def consumers(self, queue: Queue) -> int:
        self.check_open()
        return self._broker.queue(queue.name).consumers

    async def close(self) -> None:
        self._open = False
        for consumer in list(self._consumers):
            consumer.close()

    def drop_closed_consumers(self) -> None:
        self._consumers = [consumer for consumer in self._consumers if not consumer.closed]

    def _consumer(self, queue: _Queue, prefetch: int) -> _Consumer:
        self.check_open()
        consumer = _Consumer(self, queue, prefetch)
        self._consumers.append(consumer)
        return consumer

    def _envelope(self, message: Message, reply_to: str | None) -> Envelope:
        envelope = envelope_for(message, source=self._source, reply_to=reply_to)
        # Within one process there is nothing to verify.
        return replace(envelope, user_id=self._source)
