"""Take dead letters off the broker and keep them in the database, where operators see to them."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import structlog

from services.gateway import metrics
from services.gateway.system_ports import DeadLetterStore, StoredDeadLetter
from shared.errors import Unavailable
from shared.messaging.topology import QUEUES
from shared.ports import Bus, DeadDelivery
from shared.retry import Reconnects

REFUSED = 16
"""Dead letters that the database refuses, while the next ones are kept; beyond them none is."""
AGAIN_SECONDS = 600.0
"""Between two tries of one that the database refuses."""

log = structlog.get_logger()


class DeadLetterKeeper:
    """Several gateways share the work.

    On the broker a dead letter can only be looked at by taking it and giving it back, which
    RabbitMQ 4 allows twenty times.
    """

    def __init__(self, bus: Bus, dead_letters: DeadLetterStore) -> None:
        self._bus = bus
        self._dead_letters = dead_letters

    async def run(self) -> None:
        async with (
            aclosing(self._bus.dead_letters(prefetch=REFUSED)) as dead,
            asyncio.TaskGroup() as refused,
        ):
            async for delivery in dead:
                if not await self._is_kept(delivery):
                    refused.create_task(self._try_again(delivery))

    async def _try_again(self, delivery: DeadDelivery) -> None:
        """Until it is kept; meanwhile it stays on the broker, and no other waits for it."""
        while True:
            await asyncio.sleep(AGAIN_SECONDS)
            if not delivery.is_ours or await self._is_kept(delivery):
                return

    async def _is_kept(self, delivery: DeadDelivery) -> bool:
        """Keep it, and take it off the broker; waits while the database is away."""
        letter = delivery.letter
        told = {"queue": letter.queue, "reason": letter.reason, "job": letter.job}
        async for _ in Reconnects():
            try:
                await self._dead_letters.add(StoredDeadLetter(delivery.id, delivery.at, letter))
            except Unavailable as error:
                log.warning("server_away", type=letter.type, reason=str(error))
            except Exception:  # one that cannot be kept must not end the gateway
                log.exception("dead_letter_refused", **told)
                return False
            else:
                break
        known = letter.queue in {queue.name for queue in QUEUES}
        metrics.DEAD_LETTERS.labels(letter.queue if known else metrics.OTHER_QUEUE).inc()
        log.warning("dead_letter_kept", id=delivery.id, **told)
        await delivery.ack()
        return True
