"""Publish with confirms, on one channel for all that one service publishes."""

from __future__ import annotations

import asyncio
from collections.abc import (
    Iterator,
)
from contextlib import contextmanager
from functools import partial
from uuid import uuid4

import aio_pika
from aio_pika.abc import (
    AbstractChannel,
)
from aio_pika.exceptions import (
    PublishError,
)

from shared.adapters.rabbitmq_connection import (
    Connection,
    ConnectionLost,
    retry_until_connected,
    translate_errors,
)
from shared.adapters.rabbitmq_topology import (
    PARTS,
    Topology,
)
from shared.errors import Unavailable, Unroutable


class Publisher:
    """All that one service says, on one channel with confirms; nobody waits for another's."""

    def __init__(self, connection: Connection, *, login: str | None, patience: float) -> None:
        self._connection = connection
        self._topology = Topology(connection)
        self._login = login
        self._patience = patience
        self._channel: AbstractChannel | None = None
        self._opening = asyncio.Lock()
        self._ids_in_flight: set[str] = set()

    async def open(self) -> AbstractChannel:
        """The channel; a new one is given the whole topology to declare first."""
        async with self._opening:
            if self._channel is None or self._channel.is_closed:
                self._channel = None
                self._channel = await self._open()
            return self._channel

    async def publish(
        self, message: aio_pika.Message, *, exchange: str, key: str, mandatory: bool
    ) -> None:
        """Publish until it is confirmed; after a loss once more, under the same id.

        Raises:
            Unroutable: it needs a listener and reached no queue.
            Unavailable: no confirm in time.
        """
        message.delivery_mode = aio_pika.DeliveryMode.PERSISTENT
        message.user_id = self._login
        once = partial(self._publish_once, message, exchange, key, mandatory=mandatory)
        try:
            async with asyncio.timeout(self._patience):
                await retry_until_connected(once, key or exchange)
        except TimeoutError:
            what = f"{key or exchange} was not confirmed within {self._patience:g} s"
            raise Unavailable(what) from None

    async def _open(self) -> AbstractChannel:
        await self._topology.declare(PARTS)
        return await self._connection.channel(says=True)

    async def _publish_once(
        self, message: aio_pika.Message, exchange: str, key: str, *, mandatory: bool
    ) -> None:
        if await self._is_routed(message, exchange, key, mandatory=mandatory):
            return
        await self._topology.declare(PARTS)  # somebody may have deleted the queue
        if not await self._is_routed(message, exchange, key, mandatory=mandatory):
            raise Unroutable(f"nobody listens for {key or exchange}")

    async def _is_routed(
        self, message: aio_pika.Message, exchange: str, key: str, *, mandatory: bool
    ) -> bool:
        channel = await self.open()
        await _unblocked(channel)
        known = await channel.get_exchange(exchange, ensure=False)
        with self._id_of_its_own(message):
            try:
                async with translate_errors(None):
                    await known.publish(message, key, mandatory=mandatory)
            except ConnectionLost as lost:
                if isinstance(lost.__cause__, PublishError):
                    return False
                raise
        return True

    @contextmanager
    def _id_of_its_own(self, message: aio_pika.Message) -> Iterator[None]:
        """The library finds the message that was returned by its id: one in flight under each."""
        plain = message.message_id or uuid4().hex
        message.message_id = f"{plain}/{uuid4().hex}" if plain in self._ids_in_flight else plain
        taken = message.message_id
        self._ids_in_flight.add(taken)
        try:
            yield
        finally:
            self._ids_in_flight.discard(taken)
            message.message_id = plain


async def _unblocked(channel: AbstractChannel) -> None:
    """Wait while the broker has said that it is short of disk or memory.

    It would not refuse a message but leave it in the socket, and take every try of it later.
    """
    async with translate_errors(None):
        wire = await channel.get_underlay_channel()
        await wire.connection.ready()
