"""Publishes with confirms, on one channel per service."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from uuid import uuid4

import aio_pika
from aio_pika.abc import AbstractChannel
from aio_pika.exceptions import PublishError

from shared.adapters.rabbitmq_connection import (
    Connection,
    ConnectionLost,
    retry_until_connected,
    translate_errors,
)
from shared.adapters.rabbitmq_topology import PARTS, Topology
from shared.errors import Unavailable, Unroutable


class Publisher:
    """One channel with confirms for a whole service; publishes do not wait for each other."""

    def __init__(self, connection: Connection, *, login: str | None, patience: float) -> None:
        self._connection = connection
        self._topology = Topology(connection)
        self._login = login
        self._patience = patience
        self._channel: AbstractChannel | None = None
        self._opening = asyncio.Lock()
        self._ids_in_flight: set[str] = set()

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
            Unroutable: ``mandatory`` and it reached no queue.
            Unavailable: no confirm in time.
        """
        message.delivery_mode = aio_pika.DeliveryMode.PERSISTENT
        message.user_id = self._login
        once = partial(self._publish_once, message, exchange, key, mandatory=mandatory)
        try:
            async with asyncio.timeout(self._patience):
                await retry_until_connected(once, key or exchange)
        except TimeoutError:
            text = f"{key or exchange} was not confirmed within {self._patience:g} s"
            raise Unavailable(text) from None

    async def _open(self) -> AbstractChannel:
        await self._topology.declare(PARTS)
        return await self._connection.channel(confirms=True)

    async def _publish_once(
        self, message: aio_pika.Message, exchange: str, key: str, *, mandatory: bool
    ) -> None:
        if await self._is_routed(message, exchange, key, mandatory=mandatory):
            return
        await self._topology.declare(PARTS)  # in case the queue was deleted
        if not await self._is_routed(message, exchange, key, mandatory=mandatory):
            raise Unroutable(f"no queue is bound for {key or exchange}")

    async def _is_routed(
        self, message: aio_pika.Message, exchange: str, key: str, *, mandatory: bool
    ) -> bool:
        channel = await self.open()
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
