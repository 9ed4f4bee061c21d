"""Declares the exchanges, queues and bindings that the services need, or checks that they exist."""

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
    TopologyMismatch,
    close_quietly,
    translate_errors,
)
from shared.messaging.envelope import subject_of
from shared.messaging.messages import JobRequested, type_of
from shared.messaging.topology import (
    DEAD_LETTERS,
    ENDED_JOBS,
    EXCHANGE,
    JOB_ENDS,
    QUEUES,
    Queue,
    Quorum,
)

CONSUMER_TIMEOUT_MS = 7 * 24 * 3600 * 1000
"""How long a delivery may stay unacked. RabbitMQ 3.10 knows only its node's own setting."""
DECLARE_SECONDS = 30.0

log = structlog.get_logger()


class _Part(NamedTuple):
    """A part of the topology: how to declare it, and how to check that it exists."""

    declare: Callable[[AbstractChannel], Awaitable[object]]
    find: Callable[[AbstractChannel], Awaitable[object]]


class Topology:
    """Declares what the login may declare, and checks the rest, which another service declares.

    A broker shows what a login may not do by refusing it, which closes the channel.
    """

    def __init__(self, connection: Connection, quorum: Quorum) -> None:
        self._connection = connection
        self._parts = parts_of(quorum)
        self._declared_by_others: set[str] = set()

    async def declare(self, names: Iterable[str]) -> None:
        """Declare these parts, in order.

        Raises:
            ConnectionLost: also if a part is missing that another service has to declare first.
        """
        missing = list(names)
        while missing:
            async with self._channel() as channel:
                await self._declare_until_refused(channel, missing)

    async def _declare_until_refused(self, channel: AbstractChannel, missing: list[str]) -> None:
        while missing:
            name = missing[0]
            part, is_declared_by_others = self._parts[name], name in self._declared_by_others
            try:
                async with translate_errors(DECLARE_SECONDS):
                    with _translated_mismatch():
                        await (part.find if is_declared_by_others else part.declare)(channel)
            except ConnectionLost as lost:
                refused = isinstance(lost.__cause__, ChannelAccessRefused)
                if not refused or is_declared_by_others:
                    raise
                log.info("part_declared_by_others", part=name)
                self._declared_by_others.add(name)
                return
            del missing[0]

    @asynccontextmanager
    async def _channel(self) -> AsyncIterator[AbstractChannel]:
        channel = await self._connection.channel()
        try:
            yield channel
        finally:
            await close_quietly(channel)


def _exchange(name: str, kind: aio_pika.ExchangeType) -> _Part:
    async def declare(channel: AbstractChannel) -> None:
        await channel.declare_exchange(name, kind, durable=True)

    async def find(channel: AbstractChannel) -> None:
        await channel.declare_exchange(name, kind, passive=True)

    return _Part(declare, find)


def _queue(queue: Queue, quorum: Quorum) -> _Part:
    declare = partial(declare_queue, queue=queue, quorum=quorum)
    return _Part(declare, partial(find_queue, name=queue.name))


async def find_queue(channel: AbstractChannel, name: str) -> AbstractQueue:
    """A queue that is there. Raises what the broker does when it is not."""
    return await channel.declare_queue(name, passive=True)


async def _declare_dead_letters(channel: AbstractChannel, quorum: Quorum) -> None:
    arguments = {"x-queue-type": "quorum", **_group_size(quorum)}
    dead = await channel.declare_queue(DEAD_LETTERS, durable=True, arguments=arguments)
    await dead.bind(DEAD_LETTERS)


@contextmanager
def _translated_mismatch() -> Iterator[None]:
    """A mismatch does not go away by waiting: an operator has to delete what is there."""
    try:
        yield
    except ChannelPreconditionFailed as error:
        raise TopologyMismatch(str(error)) from error


async def declare_queue(channel: AbstractChannel, queue: Queue, quorum: Quorum) -> AbstractQueue:
    arguments = _arguments(queue, quorum)
    with _translated_mismatch():
        declared = await channel.declare_queue(queue.name, durable=True, arguments=arguments)
    for key in queue.bindings:
        await declared.bind(EXCHANGE, key)
    for key in queue.former_bindings:
        await declared.unbind(EXCHANGE, key)
    return declared


def _arguments(queue: Queue, quorum: Quorum) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "x-queue-type": "quorum",
        "x-delivery-limit": quorum.delivery_limit,
        "x-consumer-timeout": CONSUMER_TIMEOUT_MS,
        **_group_size(quorum),
    }
    if queue.single_active_consumer:
        arguments["x-single-active-consumer"] = True
    if not _holds_secrets(queue):
        arguments |= {
            "x-dead-letter-exchange": DEAD_LETTERS,
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",  # the strategy asks for it
        }
    return arguments


async def bind_end(channel: AbstractChannel, queue: str, job: str) -> None:
    """Have a queue receive the end of a job; the exchange that passes it on is made if need be."""
    ended = await channel.declare_exchange(ENDED_JOBS, aio_pika.ExchangeType.HEADERS, durable=True)
    for key in JOB_ENDS:
        await ended.bind(EXCHANGE, key)
    receiver = await channel.get_queue(queue, ensure=False)
    await receiver.bind(ended, "", arguments=_only_of(job))


async def unbind_end(channel: AbstractChannel, queue: str, job: str) -> None:
    receiver = await channel.get_queue(queue, ensure=False)
    await receiver.unbind(ENDED_JOBS, "", arguments=_only_of(job))


def _only_of(job: str) -> dict[str, Any]:
    return {"x-match": "all", "cloudEvents_subject": subject_of(job)}


def _group_size(quorum: Quorum) -> dict[str, Any]:
    size = quorum.group_size
    return {} if size is None else {"x-quorum-initial-group-size": size}


def _holds_secrets(queue: Queue) -> bool:
    """The broker dead-letters whole bodies, so for these queues we count deliveries ourselves."""
    return type_of(JobRequested) in queue.bindings


BASE_PARTS = ("exchange", "dead letters", "dead letters' queue")
"""The parts that everything else needs."""
ALL_PARTS = (*BASE_PARTS, *(queue.name for queue in QUEUES))


def parts_of(quorum: Quorum) -> Mapping[str, _Part]:
    """By name, in the order in which they are declared."""
    declare_dead_letters = partial(_declare_dead_letters, quorum=quorum)
    return {
        "exchange": _exchange(EXCHANGE, aio_pika.ExchangeType.TOPIC),
        "dead letters": _exchange(DEAD_LETTERS, aio_pika.ExchangeType.FANOUT),
        "dead letters' queue": _Part(declare_dead_letters, partial(find_queue, name=DEAD_LETTERS)),
        **{queue.name: _queue(queue, quorum) for queue in QUEUES},
    }
