"""Publishes with confirms, on one channel per service.

A broker that refuses a message closes its channel, and the confirms of all others that are under
way on it are lost. So a large message has a channel of its own, and so has each that was under way
on a channel when the broker closed it: what is refused there is refused for its own sake.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from uuid import uuid4

import aio_pika
from aio_pika.abc import AbstractChannel
from aio_pika.exceptions import ChannelNotFoundEntity, ChannelPreconditionFailed, PublishError
from aiormq.exceptions import AMQPChannelError

from shared.adapters.rabbitmq_connection import (
    Connection,
    ConnectionLost,
    TopologyMismatch,
    close_quietly,
    pause,
    translate_errors,
)
from shared.adapters.rabbitmq_topology import ALL_PARTS, Topology
from shared.errors import Unavailable, Unpublishable, Unroutable

LARGE_BYTES = 1 << 20
"""A message from this size on has a channel of its own."""


class Publisher:
    """One channel with confirms for a whole service; publishes do not wait for each other."""

    def __init__(
        self, connection: Connection, topology: Topology, *, login: str | None, patience: float
    ) -> None:
        self._connection = connection
        self._topology = topology
        self._login = login
        self._patience = patience
        self._channel: AbstractChannel | None = None
        self._opening = asyncio.Lock()
        self._ids_in_flight: set[str] = set()
        self._closing: set[asyncio.Task[None]] = set()

    async def open(self) -> AbstractChannel:
        """The channel; before a new one is used, the whole topology is declared."""
        async with self._opening:
            if self._channel is None or self._channel.is_closed:
                self._channel = None
                self._channel = await self._open()
            return self._channel

    async def publish(
        self, message: aio_pika.Message, *, exchange: str, key: str, mandatory: bool
    ) -> None:
        """Publish until it is confirmed; again under the same id if the connection is lost.

        Raises:
            Unpublishable: the broker refuses it for good.
            Unroutable: ``mandatory`` and it reached no queue.
            Unavailable: no confirm in time.
        """
        message.delivery_mode = aio_pika.DeliveryMode.PERSISTENT
        message.user_id = self._login
        try:
            async with asyncio.timeout(self._patience):
                await self._publish_until_confirmed(message, exchange, key, mandatory=mandatory)
        except TimeoutError:
            text = f"{key or exchange} was not confirmed within {self._patience:g} s"
            raise Unavailable(text) from None

    async def _open(self) -> AbstractChannel:
        await self._topology.declare(ALL_PARTS)
        return await self._connection.channel(confirms=True)

    async def _publish_until_confirmed(
        self, message: aio_pika.Message, exchange: str, key: str, *, mandatory: bool
    ) -> None:
        about = key or exchange
        alone, declare = len(message.body) >= LARGE_BYTES, False
        while True:
            try:
                if declare:
                    await self._topology.declare(ALL_PARTS)
                async with self._channel_for(alone=alone) as channel:
                    return await self._publish_once(
                        channel, message, exchange, key, mandatory=mandatory
                    )
            except TopologyMismatch as mismatch:  # not this message's fault
                await pause(about, mismatch)
            except ConnectionLost as lost:
                if alone and isinstance(lost.__cause__, ChannelPreconditionFailed):
                    raise Unpublishable(str(lost)) from None
                if alone or not isinstance(lost.__cause__, AMQPChannelError):
                    await pause(about, lost)
                declare = isinstance(lost.__cause__, ChannelNotFoundEntity)
                alone = True

    async def _publish_once(
        self,
        channel: AbstractChannel,
        message: aio_pika.Message,
        exchange: str,
        key: str,
        *,
        mandatory: bool,
    ) -> None:
        if await self._is_routed(channel, message, exchange, key, mandatory=mandatory):
            return
        await self._topology.declare(ALL_PARTS)  # in case the queue was deleted
        if not await self._is_routed(channel, message, exchange, key, mandatory=mandatory):
            raise Unroutable(f"no queue is bound for {key or exchange}")

    @asynccontextmanager
    async def _channel_for(self, *, alone: bool) -> AsyncIterator[AbstractChannel]:
        """The channel that all share, or one for a single message."""
        channel = await self.open()
        if alone:
            channel = await self._connection.channel(confirms=True)
        try:
            yield channel
        finally:
            if alone:  # in the background: a broker that hangs must not hold up the answer
                closing = asyncio.create_task(close_quietly(channel))
                self._closing.add(closing)
                closing.add_done_callback(self._closing.discard)

    async def _is_routed(
        self,
        channel: AbstractChannel,
        message: aio_pika.Message,
        exchange: str,
        key: str,
        *,
        mandatory: bool,
    ) -> bool:
        await _wait_until_unblocked(channel)
        target = await channel.get_exchange(exchange, ensure=False)
        with self._unique_id(message):
            try:
                async with translate_errors(None):
                    await target.publish(message, key, mandatory=mandatory)
            except ConnectionLost as lost:
                if isinstance(lost.__cause__, PublishError):
                    return False
                raise
        return True

    @contextmanager
    def _unique_id(self, message: aio_pika.Message) -> Iterator[None]:
        """The library matches returned messages by id, so each id is in flight only once."""
        original = message.message_id or uuid4().hex
        message.message_id = (
            f"{original}/{uuid4().hex}" if original in self._ids_in_flight else original
        )
        unique = message.message_id
        self._ids_in_flight.add(unique)
        try:
            yield
        finally:
            self._ids_in_flight.discard(unique)
            message.message_id = original


async def _wait_until_unblocked(channel: AbstractChannel) -> None:
    """Wait while the broker is blocked, short of disk or memory.

    A blocked broker leaves each retry in the socket and accepts them all later.
    """
    async with translate_errors(None):
        wire = await channel.get_underlay_channel()
        await wire.connection.ready()
