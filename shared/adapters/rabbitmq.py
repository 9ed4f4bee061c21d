"""The bus between processes: RabbitMQ 3.10 and 4.x, through aio-pika.

There are two connections: a broker that is short of disk or memory stops reading from those that
publish, and consuming must go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Sequence,
)
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import Any, Never, Self
from uuid import uuid4

import msgspec
import structlog
from aio_pika.abc import (
    AbstractChannel,
    AbstractIncomingMessage,
    AbstractQueue,
)
from pamqp import commands
from yarl import URL

from shared.adapters.dead_letters import (
    LIMIT_REASON,
    REASON_LENGTH,
    Undecodable,
    about,
    dead_letter,
    decode_untrusted,
    unpublished,
    why_unpublishable,
)
from shared.adapters.rabbitmq_connection import (
    ANSWER_SECONDS,
    CLOSE_SECONDS,
    Connection,
    ConnectionLost,
    Consumer,
    close_quietly,
    parse_urls,
    pause,
    redirect_library_logs,
    retry_until_connected,
    translate_errors,
)
from shared.adapters.rabbitmq_deliveries import (
    DeadDelivery,
    Delivery,
    dead_letter_to_amqp,
    requeue,
    settle,
)
from shared.adapters.rabbitmq_envelope import (
    UNREADABLE,
    to_amqp,
    tolerate_unreadable_properties,
)
from shared.adapters.rabbitmq_publisher import Publisher
from shared.adapters.rabbitmq_topology import (
    BASE_PARTS,
    DECLARE_SECONDS,
    Topology,
    bind_end,
    declare_queue,
    find_queue,
    unbind_end,
)
from shared.errors import Unavailable, Unpublishable, Unroutable
from shared.messaging.envelope import envelope_for
from shared.messaging.messages import AnyMessage, JobRequested, Message, encode, type_of
from shared.messaging.topology import DEAD_LETTERS, EXCHANGE, Queue, Quorum
from shared.ports import DeadLetter
from shared.settings import Settings

QUORUM = Quorum()

log = structlog.get_logger()


def quorum_of(settings: Settings) -> Quorum:
    return Quorum(settings.delivery_limit, settings.quorum_group_size)


Batches = AsyncGenerator[list[Delivery], None]


class _ReplyQueue:
    def __init__(self, bus: RabbitMQBus, bindings: Sequence[str]) -> None:
        self.address = ""
        self._bus = bus
        self._bindings = bindings
        self._arrived: asyncio.Queue[AbstractIncomingMessage | None] = asyncio.Queue()
        self._consuming = asyncio.Event()
        self._followed: list[str] = []
        """Jobs whose end it is to receive."""

    async def messages(self) -> AsyncIterator[AnyMessage]:
        while incoming := await self._arrived.get():
            message = await self._bus.unpack(incoming, self.address)
            if message is not None:
                yield message
        raise Unavailable("the reply queue is closed")

    @asynccontextmanager
    async def ends_of(self, job: str) -> AsyncIterator[None]:
        self._followed.append(job)
        try:
            await self._arrange(bind_end, job)
            yield
        finally:
            self._followed.remove(job)
            if job not in self._followed:
                await self._arrange(unbind_end, job)

    async def _arrange(
        self, arrange: Callable[[AbstractChannel, str, str], Awaitable[None]], job: str
    ) -> None:
        """On a channel of its own, which the broker closes where a login may not do it."""
        try:
            async with translate_errors(ANSWER_SECONDS), self._bus.channel() as channel:
                await arrange(channel, self.address, job)
        except (ConnectionLost, Unavailable) as error:
            log.info("end_not_followed", job=job, reason=str(error))

    async def wait_until_consuming(self) -> None:
        await self._consuming.wait()

    async def run(self) -> None:
        """Consume forever, from a new queue after every lost connection."""
        try:
            await retry_until_connected(self._listen, "reply queue")
        except Unavailable:
            log.info("reply_queue_closed", queue=self.address)
        finally:
            self._consuming.set()
            self._arrived.put_nowait(None)

    async def _listen(self) -> Never:
        await self._bus.declare_exchanges()
        async with self._bus.channel() as channel:
            async with translate_errors(DECLARE_SECONDS):
                queue = await self._declare(channel)
                consumer = Consumer(channel, queue)
                await consumer.start(prefetch=None)
            self.address = queue.name
            self._consuming.set()
            for job in self._followed:
                await self._arrange(bind_end, job)
            while True:
                self._arrived.put_nowait(await consumer.next())

    async def _declare(self, channel: AbstractChannel) -> AbstractQueue:
        name = f"control.{self._bus.source[:100]}.{uuid4().hex}"
        queue = await channel.declare_queue(name, exclusive=True, auto_delete=True)
        for key in self._bindings:
            await queue.bind(EXCHANGE, key)
        return queue


class RabbitMQBus:
    """The :class:`shared.ports.Bus` of one service on a RabbitMQ broker; see :meth:`open`."""

    def __init__(
        self, urls: Sequence[URL], *, source: str, heartbeat: float, quorum: Quorum
    ) -> None:
        amqp_heartbeat = max(2, round(heartbeat))
        login = None if urls[0].query.get("auth") == "external" else urls[0].user or "guest"
        self._source = source
        self._patience = max(2.0, heartbeat / 2)
        self._consuming = Connection(urls, name=f"{source} consuming", heartbeat=amqp_heartbeat)
        self._publishing = Connection(urls, name=f"{source} publishing", heartbeat=amqp_heartbeat)
        self._quorum = quorum
        self._topology = Topology(self._consuming, quorum)
        self._publisher = Publisher(
            self._publishing,
            Topology(self._publishing, quorum),
            login=login,
            patience=self._patience,
        )
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    async def open(
        cls, url: str, *, source: str, heartbeat: float, quorum: Quorum = QUORUM
    ) -> Self:
        """Connect and declare the topology; waits for the broker until cancelled.

        Otherwise as :meth:`connecting`.
        """
        bus = cls.connecting(url, source=source, heartbeat=heartbeat, quorum=quorum)
        try:
            await bus.connected()
        except BaseException:
            await bus.close()
            raise
        return bus

    @classmethod
    def connecting(
        cls, url: str, *, source: str, heartbeat: float, quorum: Quorum = QUORUM
    ) -> Self:
        """A bus that connects as soon as the broker answers and declares at the first publish.

        The URL may name several hosts of a cluster, ``amqp://user:password@one,two:5673/vhost``.
        ``heartbeat`` (seconds, at least 2) is also the AMQP heartbeat; a publish waits half of it,
        at least 2 s, for its confirm.

        Raises:
            SettingsError: the URL is not an AMQP URL.
        """
        redirect_library_logs()
        tolerate_unreadable_properties()
        return cls(parse_urls(url), source=source, heartbeat=heartbeat, quorum=quorum)

    async def connected(self) -> None:
        """Wait until the broker answers and the topology is declared."""
        await retry_until_connected(self._publisher.open, "topology")

    @property
    def source(self) -> str:
        return self._source

    async def publish(
        self, message: Message, *, reply_to: str | None = None, mandatory: bool = True
    ) -> None:
        key = type_of(message)
        await self._publish(message, reply_to, exchange=EXCHANGE, key=key, mandatory=mandatory)

    async def send(self, queue: str, message: Message, *, mandatory: bool = False) -> None:
        await self._publish(message, None, exchange="", key=queue, mandatory=mandatory)

    async def get(self, queue: Queue) -> Delivery:
        return await retry_until_connected(partial(self._get_once, queue), queue.name)

    async def consume(self, queue: Queue, *, prefetch: int = 16) -> AsyncGenerator[Delivery, None]:
        async with aclosing(self._batches(queue, prefetch, most=1)) as batches:
            async for (delivery,) in batches:
                yield delivery

    async def consume_batches(self, queue: Queue, *, most: int) -> Batches:
        async with aclosing(self._batches(queue, 2 * most, most=most)) as batches:
            async for batch in batches:
                yield batch

    async def _batches(self, queue: Queue, prefetch: int, *, most: int) -> Batches:
        while True:
            consumer = await self._listen(queue, prefetch)
            try:
                while True:
                    yield await self._next_batch(consumer, queue.name, most)
            except ConnectionLost as lost:
                await pause(queue.name, lost)
            finally:
                await self.drop(consumer.channel)

    async def dead_letters(self, *, prefetch: int = 16) -> AsyncGenerator[DeadDelivery, None]:
        find = partial(find_queue, name=DEAD_LETTERS)
        while True:
            consumer = await retry_until_connected(
                partial(self._consume_once, find, prefetch=prefetch), DEAD_LETTERS
            )
            try:
                while True:
                    incoming = await consumer.next()
                    yield DeadDelivery(incoming, partial(settle, incoming, incoming.ack))
            except ConnectionLost as lost:
                await pause(DEAD_LETTERS, lost)
            finally:
                await self.drop(consumer.channel)

    @asynccontextmanager
    async def reply_queue(self, bindings: Sequence[str]) -> AsyncIterator[_ReplyQueue]:
        reply_queue = _ReplyQueue(self, bindings)
        running = self._spawn(reply_queue.run())
        try:
            await reply_queue.wait_until_consuming()
            if running.done():
                raise Unavailable("the bus is closed")
            yield reply_queue
        finally:
            running.cancel()
            await asyncio.wait([running])

    async def depth(self, queue: Queue) -> int:
        return (await self._inspect(queue)).message_count or 0

    async def consumers(self, queue: Queue) -> int:
        return (await self._inspect(queue)).consumer_count or 0

    async def _inspect(self, queue: Queue) -> commands.Queue.DeclareOk:
        try:
            async with translate_errors(self._patience), self.channel() as channel:
                declared = await channel.declare_queue(queue.name, passive=True)
                return declared.declaration_result
        except ConnectionLost as lost:
            raise Unavailable(f"the state of {queue.name} is not known: {lost}") from None

    async def close(self) -> None:
        await asyncio.gather(self._consuming.close(), self._publishing.close())
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSE_SECONDS)

    # -- For deliveries and reply queues

    async def declare_exchanges(self) -> None:
        """Declare what all else needs, on the connection that a broker's alarm does not block."""
        await self._topology.declare(BASE_PARTS)

    @asynccontextmanager
    async def channel(self) -> AsyncIterator[AbstractChannel]:
        channel = await self._consuming.channel()
        try:
            yield channel
        finally:
            await self.drop(channel)

    async def drop(self, channel: AbstractChannel) -> None:
        """Close a channel; the broker requeues what is unacked on it."""
        # Shielded: a second cancel must not leave it open.
        await asyncio.shield(self._spawn(close_quietly(channel)))

    async def unpack(self, incoming: AbstractIncomingMessage, queue: str) -> AnyMessage | None:
        """Decode; None: undecodable or delivered too often, and dead-lettered."""
        if unreadable := incoming.headers.get(UNREADABLE):
            await self.dead_letter(incoming, None, queue=queue, reason=str(unreadable))
            return None
        try:
            message = decode_untrusted(incoming.body)
        except Undecodable as error:
            await self.dead_letter(incoming, None, queue=queue, reason=str(error))
            return None
        if isinstance(message, JobRequested) and self._is_last_delivery(incoming):
            await self.dead_letter(incoming, message, queue=queue, reason=LIMIT_REASON)
            return None
        return message

    async def dead_letter(
        self,
        incoming: AbstractIncomingMessage,
        message: AnyMessage | None,
        *,
        queue: str,
        reason: str,
    ) -> None:
        """Publish to the dead letters, then ack; if that fails, requeue."""
        dead = dead_letter(incoming.body, message, queue=queue, reason=reason[:REASON_LENGTH])
        if await self._keep(dead):
            await settle(incoming, incoming.ack)
        else:
            await requeue(incoming)

    async def _keep(self, dead: DeadLetter) -> bool:
        """Publish a dead letter, without its body if the broker takes only a smaller one."""
        try:
            try:
                await self._publish_dead_letter(dead)
            except Unpublishable:
                await self._publish_dead_letter(msgspec.structs.replace(dead, body=b""))
        except (Unavailable, Unroutable, Unpublishable) as error:
            log.warning("message_not_dead_lettered", **about(dead), error=str(error))
            return False
        log.warning("message_dead_lettered", **about(dead))
        return True

    async def _publish_dead_letter(self, dead: DeadLetter) -> None:
        sent = dead_letter_to_amqp(dead)
        await self._publisher.publish(sent, exchange=DEAD_LETTERS, key="", mandatory=True)

    def _is_last_delivery(self, incoming: AbstractIncomingMessage) -> bool:
        deliveries = incoming.headers.get("x-delivery-count")
        return isinstance(deliveries, int) and deliveries >= self._quorum.delivery_limit

    async def _listen(self, queue: Queue, prefetch: int) -> Consumer:
        declare = partial(declare_queue, queue=queue, quorum=self._quorum)
        return await retry_until_connected(
            partial(self._consume_once, declare, prefetch), queue.name
        )

    async def _consume_once(
        self, declare: Callable[[AbstractChannel], Awaitable[AbstractQueue]], prefetch: int
    ) -> Consumer:
        await self.declare_exchanges()
        channel = await self._consuming.channel()
        try:
            async with translate_errors(DECLARE_SECONDS):
                consumer = Consumer(channel, await declare(channel))
                await consumer.start(prefetch=prefetch)
        except BaseException:
            await self.drop(channel)
            raise
        return consumer

    async def _get_once(self, queue: Queue) -> Delivery:
        consumer = await self._listen(queue, prefetch=1)
        try:
            (delivery,) = await self._next_batch(consumer, queue.name, most=1)
            await consumer.stop()
        except BaseException:
            await self.drop(consumer.channel)
            raise
        delivery.on_settled = partial(self.drop, consumer.channel)
        return delivery

    async def _next_batch(self, consumer: Consumer, queue: str, most: int) -> list[Delivery]:
        batch: list[Delivery] = []
        while not batch or (consumer.has_arrived and len(batch) < most):
            incoming = await consumer.next()
            if (message := await self.unpack(incoming, queue)) is not None:
                bury = partial(self.dead_letter, incoming, message, queue=queue)
                batch.append(Delivery(incoming, message, bury))
        return batch

    async def _publish(
        self, message: Message, reply_to: str | None, *, exchange: str, key: str, mandatory: bool
    ) -> None:
        body = encode(message)
        envelope = envelope_for(message, source=self._source, reply_to=reply_to)
        sent = to_amqp(body, envelope)
        try:
            await self._publisher.publish(sent, exchange=exchange, key=key, mandatory=mandatory)
        except Unpublishable as error:
            reason = why_unpublishable(message, body, str(error)[:REASON_LENGTH])
            await self._keep(unpublished(body, message, to=key, reason=reason))
            raise Unpublishable(reason) from None

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
