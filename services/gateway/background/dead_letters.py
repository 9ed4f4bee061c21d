"""Take dead letters off the broker and keep them in the database, where operators see to them."""

from __future__ import annotations

from contextlib import aclosing

import structlog

from services.gateway import metrics
from services.gateway.system_ports import DeadLetterStore, StoredDeadLetter
from shared.errors import Unavailable
from shared.messaging.topology import QUEUES
from shared.ports import Bus, DeadDelivery
from shared.retry import Reconnects

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
        async with aclosing(self._bus.dead_letters()) as dead:
            async for delivery in dead:
                await self._keep(delivery)

    async def _keep(self, delivery: DeadDelivery) -> None:
        """It stays on the broker while the database is away."""
        letter = delivery.letter
        told = {"queue": letter.queue, "reason": letter.reason, "job": letter.job}
        async for _ in Reconnects():
            try:
                await self._dead_letters.add(StoredDeadLetter(delivery.id, delivery.at, letter))
            except Unavailable as error:
                log.warning("server_away", type=letter.type, reason=str(error))
            except Exception:  # one that cannot be kept must not end the gateway
                log.exception("dead_letter_lost", **told)
                break
            else:
                known = letter.queue in {queue.name for queue in QUEUES}
                metrics.DEAD_LETTERS.labels(letter.queue if known else metrics.OTHER_QUEUE).inc()
                log.warning("dead_letter_kept", id=delivery.id, **told)
                break
        await delivery.ack()
