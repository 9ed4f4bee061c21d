"""RabbitMQ and the memory broker, as the contract tests see them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Protocol

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

from shared.adapters.memory import MemoryBroker
from shared.adapters.rabbitmq import RabbitMQBus
from shared.messaging.envelope import Envelope
from shared.messaging.topology import DEAD_LETTERS
from shared.ports import Bus, DeadLetter
from tests.support.servers.rabbitmq import connected

HEARTBEAT = 0.2
DEADLINE = 30


class World(Protocol):
    async def bus(self, source: str = "tester/1") -> Bus:
        """Open a bus; the world closes it at the end."""

    async def put(self, queue: str, body: bytes) -> None:
        """Put a foreign producer's bytes on a queue."""

    async def dead_letters(self) -> list[DeadLetter]:
        """All dead letters so far."""

    async def close(self) -> None: ...


class MemoryWorld:
    def __init__(self) -> None:
        self._broker = MemoryBroker()
        self._buses: list[Bus] = []

    async def bus(self, source: str = "tester/1") -> Bus:
        bus = self._broker.bus(source)
        self._buses.append(bus)
        return bus

    async def put(self, queue: str, body: bytes) -> None:
        stranger = Envelope(id="1", source="stranger", type="noise", time="")
        assert self._broker.send(queue, body, stranger)

    async def dead_letters(self) -> list[DeadLetter]:
        return list(self._broker.dead_letters)

    async def close(self) -> None:
        for bus in self._buses:
            await bus.close()


class RabbitMQWorld:
    def __init__(self, url: str) -> None:
        self._url = url
        self._buses: list[Bus] = []

    async def bus(self, source: str = "tester/1") -> Bus:
        bus = await RabbitMQBus.open(self._url, source=source, heartbeat=HEARTBEAT)
        self._buses.append(bus)
        return bus

    async def put(self, queue: str, body: bytes) -> None:
        async with plain_channel(self._url) as channel:
            await channel.default_exchange.publish(aio_pika.Message(body), queue)

    async def dead_letters(self) -> list[DeadLetter]:
        async with plain_channel(self._url) as channel:
            queue = await channel.declare_queue(DEAD_LETTERS, passive=True)
            letters = []
            while incoming := await queue.get(fail=False):  # not acked, so they stay
                letters.append(dead_letter(incoming))
            return letters

    async def close(self) -> None:
        for bus in self._buses:
            await bus.close()


@asynccontextmanager
async def plain_channel(url: str) -> AsyncIterator[AbstractChannel]:
    """A channel that returns unroutable messages and does not reconnect."""
    async with connected(url) as connection:
        yield await connection.channel(on_return_raises=True)


def dead_letter(incoming: AbstractIncomingMessage) -> DeadLetter:
    headers = incoming.headers
    return DeadLetter(
        queue=str(headers.get("queue") or headers["x-first-death-queue"]),
        reason=str(headers.get("reason") or headers["x-first-death-reason"]),
        length=int(str(headers.get("length", len(incoming.body)))),
        sha256=str(headers.get("sha256", sha256(incoming.body).hexdigest())),
        body=incoming.body,
        type=str(headers.get("type", "")),
        job=str(headers.get("job", "")),
    )


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Poll until the condition holds."""
    async with asyncio.timeout(DEADLINE):
        while not await holds():
            await asyncio.sleep(0.02)
