"""What was taken from a queue: a message, or a dead letter.

Dead letters are as the broker has them: ours, and those that it has made itself.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from typing import Any
from uuid import uuid4

import aio_pika
from aio_pika.abc import AbstractIncomingMessage

from shared.adapters.dead_letters import about, readable
from shared.adapters.rabbitmq_connection import (
    ANSWER_SECONDS,
    ConnectionLost,
    is_in_hand,
    translate_errors,
)
from shared.adapters.rabbitmq_envelope import UNREADABLE, envelope_of, header_text
from shared.messaging.messages import AnyMessage, stable_id
from shared.ports import DeadLetter


async def do_nothing() -> None:
    pass


class Delivery:
    """A message that was taken from its queue."""

    def __init__(
        self,
        incoming: AbstractIncomingMessage,
        message: AnyMessage,
        dead_letter: Callable[..., Awaitable[None]],
    ) -> None:
        """Read it; ``dead_letter`` moves it there, for a ``reason``."""
        self.message = message
        self.envelope = envelope_of(incoming, message)
        self.on_settled: Callable[[], Awaitable[None]] = do_nothing
        """Called once it is settled; closes a channel opened for this delivery alone."""
        self._incoming = incoming
        self._dead_letter = dead_letter

    @property
    def is_ours(self) -> bool:
        return is_in_hand(self._incoming)

    async def ack(self) -> None:
        await settle(self._incoming, self._incoming.ack)
        await self.on_settled()

    async def release(self) -> None:
        await requeue(self._incoming)
        await self.on_settled()

    async def dead_letter(self, reason: str) -> None:
        await self._dead_letter(reason=reason)
        await self.on_settled()


async def requeue(incoming: AbstractIncomingMessage) -> None:
    # Not nack, which RabbitMQ 4.3 does not count as a delivery.
    await settle(incoming, partial(incoming.reject, requeue=True))


async def settle(incoming: AbstractIncomingMessage, how: Callable[[], Awaitable[None]]) -> None:
    """Ack or reject once; on a lost channel there is nothing to do: the message is redelivered."""
    if incoming.processed:
        return
    with suppress(ConnectionLost):
        async with translate_errors(ANSWER_SECONDS):
            await how()


def dead_letter_to_amqp(letter: DeadLetter) -> aio_pika.Message:
    return aio_pika.Message(
        letter.body, headers=about(letter), message_id=str(uuid4()), timestamp=datetime.now(UTC)
    )


class DeadDelivery:
    """A dead letter that was taken from its queue."""

    def __init__(
        self, incoming: AbstractIncomingMessage, ack: Callable[[], Awaitable[None]]
    ) -> None:
        """Read it; ``ack`` removes it."""
        at = _dead_at(incoming)
        self.letter = letter = _letter_of(incoming)
        self.at = at or time.time()
        name = incoming.message_id or letter.sha256
        self.id = stable_id("dead letter", name, letter.queue, letter.reason, at)
        self._incoming = incoming
        self._ack = ack

    @property
    def is_ours(self) -> bool:
        return is_in_hand(self._incoming)

    async def ack(self) -> None:
        await self._ack()


def _letter_of(incoming: AbstractIncomingMessage) -> DeadLetter:
    headers: Mapping[str, Any] = incoming.headers
    text = {name: header_text(headers.get(name)) for name in ("queue", "reason", "sha256")}
    reason = text["reason"] or header_text(headers.get("x-first-death-reason"))
    length = headers.get("length")
    return readable(
        DeadLetter(
            queue=text["queue"] or header_text(headers.get("x-first-death-queue")),
            reason=reason or header_text(headers.get(UNREADABLE)),
            length=length if isinstance(length, int) else len(incoming.body),
            sha256=text["sha256"] or sha256(incoming.body).hexdigest(),
            body=incoming.body,
            type=header_text(headers.get("type")),
            job=header_text(headers.get("job")),
        )
    )


def _dead_at(incoming: AbstractIncomingMessage) -> float | None:
    """When the broker or a service dead-lettered it; None: unknown."""
    deaths: object = incoming.headers.get("x-death")
    last = deaths[0] if isinstance(deaths, list) and deaths else None
    at = last.get("time") if isinstance(last, dict) else incoming.timestamp
    return at.timestamp() if isinstance(at, datetime) else None
