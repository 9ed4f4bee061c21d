"""What an outsider does on the world's broker, past the proxy."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage, AbstractQueue

from shared.messaging.topology import EXCHANGE
from tests.contract.bus_worlds import plain_channel
from tests.faults.world import PATIENCE, World


@asynccontextmanager
async def outsider(world: World) -> AsyncIterator[AbstractChannel]:
    """A channel of somebody else's."""
    async with plain_channel(world.broker.url(world.vhost)) as channel:
        yield channel


class Ears:
    """A queue of one's own, which hears everything under some routing keys."""

    def __init__(self, channel: AbstractChannel, queue: AbstractQueue) -> None:
        self.channel = channel
        self.queue = queue

    async def next(self) -> AbstractIncomingMessage:
        async with asyncio.timeout(PATIENCE):
            while (heard := await self.queue.get(no_ack=True, fail=False)) is None:
                await asyncio.sleep(0.02)
        return heard

    async def hear(self, job: str, key: str) -> AbstractIncomingMessage:
        """The next message of this kind about this job; what comes before it is passed over."""
        while (heard := await self.next()).routing_key != key or job.encode() not in heard.body:
            pass
        return heard

    async def hear_all(self, jobs: Iterable[str]) -> None:
        """Something about each of these jobs."""
        left = set(jobs)
        while left:
            heard = await self.next()
            left = {job for job in left if job.encode() not in heard.body}


@asynccontextmanager
async def ears(
    world: World, keys: Iterable[str], arguments: dict[str, Any] | None = None
) -> AsyncIterator[Ears]:
    async with outsider(world) as channel:
        queue = await channel.declare_queue(exclusive=True, arguments=arguments)
        for key in keys:
            await queue.bind(EXCHANGE, key)
        yield Ears(channel, queue)


def copy_of(heard: AbstractIncomingMessage) -> aio_pika.Message:
    """The same message once more, under the same id."""
    return aio_pika.Message(
        heard.body,
        headers=heard.headers,
        content_type=heard.content_type,
        message_id=heard.message_id,
        reply_to=heard.reply_to,
        user_id=heard.user_id,
        delivery_mode=heard.delivery_mode,
    )
