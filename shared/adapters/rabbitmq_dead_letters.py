"""Dead letters as the broker has them: ours, and those that it has made itself."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any
from uuid import uuid4

import aio_pika
from aio_pika.abc import AbstractIncomingMessage

from shared.adapters.dead_letters import about, readable
from shared.adapters.rabbitmq_connection import is_in_hand
from shared.adapters.rabbitmq_envelope import UNREADABLE, header_text
from shared.messaging.messages import stable_id
from shared.ports import DeadLetter


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
