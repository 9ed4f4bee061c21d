"""What our services need of a broker: exchanges, queues and bindings, made or looked for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any, NamedTuple

import aio_pika
import structlog
from aio_pika.abc import AbstractChannel, AbstractQueue
from aio_pika.exceptions import ChannelPreconditionFailed
from aiormq.exceptions import ChannelAccessRefused

from shared.adapters.rabbitmq_connection import (
    Connection,
    ConnectionLost,
    Differs,
    hang_up,
    translate_errors,
)
from shared.messaging.messages import JobRequested, type_of
from shared.messaging.topology import DEAD_LETTERS, DELIVERY_LIMIT, EXCHANGE, QUEUES, Queue

CONSUMER_TIMEOUT_MS = 7 * 24 * 3600 * 1000
"""How long a delivery may stay unacked. RabbitMQ 3.10 goes by its node's setting alone."""
DECLARE_SECONDS = 30.0

log = structlog.get_logger()


class _Part(NamedTuple):
    """One thing of the topology: how it is made, and how it is only looked for."""

    declare: Callable[[AbstractChannel], Awaitable[object]]
    find: Callable[[AbstractChannel], Awaitable[object]]


class Topology:
    """Makes what the login may make, and looks for the rest, which another service makes.

    Brokers tell what a login may do by refusing it, and close the channel with that.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._not_ours: set[str] = set()

    async def declare(self, names: Iterable[str]) -> None:
        """These parts, in their order.

        Raises:
            Lost: the connection is; or a part is missing that others have to make first.
        """
        missing = list(names)
        while missing:
            async with self._channel() as channel:
                await self._declare_until_refused(channel, missing)

    async def _declare_until_refused(self, channel: AbstractChannel, missing: list[str]) -> None:
        while missing:
            name = missing[0]
            try:
                async with translate_errors(DECLARE_SECONDS):
                    with _the_same_as_ours():
                        await self._way_to(name)(channel)
            except ConnectionLost as lost:
                refused = isinstance(lost.__cause__, ChannelAccessRefused)
                if not refused or name in self._not_ours:
                    raise
                log.info("made_by_others", part=name)
                self._not_ours.add(name)
                return
            del missing[0]

    def _way_to(self, name: str) -> Callable[[AbstractChannel], Awaitable[object]]:
        return PARTS[name].find if name in self._not_ours else PARTS[name].declare

    @asynccontextmanager
    async def _channel(self) -> AsyncIterator[AbstractChannel]:
        channel = await self._connection.channel()
        try:
            yield channel
        finally:
            await hang_up(channel)


def _exchange(name: str, kind: aio_pika.ExchangeType) -> _Part:
    async def declare(channel: AbstractChannel) -> None:
        await channel.declare_exchange(name, kind, durable=True)

    async def find(channel: AbstractChannel) -> None:
        await channel.declare_exchange(name, kind, passive=True)

    return _Part(declare, find)


def _queue(queue: Queue) -> _Part:
    return _Part(partial(declare_queue, queue=queue), partial(_find_queue, name=queue.name))


async def _find_queue(channel: AbstractChannel, name: str) -> None:
    await channel.declare_queue(name, passive=True)


async def _declare_dead_letters(channel: AbstractChannel) -> None:
    dead = await channel.declare_queue(
        DEAD_LETTERS, durable=True, arguments={"x-queue-type": "quorum"}
    )
    await dead.bind(DEAD_LETTERS)


@contextmanager
def _the_same_as_ours() -> Iterator[None]:
    """Tell apart what waiting does not mend: somebody must delete what is there."""
    try:
        yield
    except ChannelPreconditionFailed as error:
        raise Differs(str(error)) from error


async def declare_queue(channel: AbstractChannel, queue: Queue) -> AbstractQueue:
    arguments = _arguments(queue)
    with _the_same_as_ours():
        declared = await channel.declare_queue(queue.name, durable=True, arguments=arguments)
    for key in queue.bindings:
        await declared.bind(EXCHANGE, key)
    return declared


def _arguments(queue: Queue) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "x-queue-type": "quorum",
        "x-delivery-limit": DELIVERY_LIMIT,
        "x-consumer-timeout": CONSUMER_TIMEOUT_MS,
    }
    if queue.single_active_consumer:
        arguments["x-single-active-consumer"] = True
    if not _may_hold_secrets(queue):
        arguments |= {
            "x-dead-letter-exchange": DEAD_LETTERS,
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",  # the strategy asks for it
        }
    return arguments


def _may_hold_secrets(queue: Queue) -> bool:
    """The broker dead-letters whole bodies, so there we count deliveries and bury ourselves."""
    return type_of(JobRequested) in queue.bindings


EXCHANGES = ("exchange", "dead letters", "dead letters' queue")
"""Those of the parts that everything else hangs on."""
PARTS: Mapping[str, _Part] = {
    "exchange": _exchange(EXCHANGE, aio_pika.ExchangeType.TOPIC),
    "dead letters": _exchange(DEAD_LETTERS, aio_pika.ExchangeType.FANOUT),
    "dead letters' queue": _Part(_declare_dead_letters, partial(_find_queue, name=DEAD_LETTERS)),
    **{queue.name: _queue(queue) for queue in QUEUES},
}
