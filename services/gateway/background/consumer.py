"""What becomes of a delivery: acked when it is dealt with, buried when it cannot be."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing

import structlog

from shared.errors import Unavailable
from shared.messaging.topology import Queue
from shared.ports import Bus, Delivery
from shared.retry import Reconnects

Handler = Callable[[Delivery], Awaitable[None]]

LAST_SECONDS = 2.0

log = structlog.get_logger()


async def deal_with_all(bus: Bus, queue: Queue, handle: Handler) -> None:
    """Handle a queue's deliveries one after another, for ever; only one is in hand at a time.

    When it is cancelled, the one in hand is still dealt with, if that takes a short time only.
    """
    async with aclosing(bus.consume(queue, prefetch=1)) as deliveries:
        async for delivery in deliveries:
            await _to_its_end(asyncio.create_task(deal_with(delivery, handle)))


async def _to_its_end(work: asyncio.Task[None]) -> None:
    try:
        await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait((work,), timeout=LAST_SECONDS)
        work.cancel()
        await asyncio.wait((work,))
        raise


async def deal_with(delivery: Delivery, handle: Handler) -> None:
    """Keep it unacked while a server is away; never let one message hold up the queue for good."""
    async for _ in Reconnects():
        try:
            await handle(delivery)
        except Unavailable as error:
            log.warning("server_away", type=delivery.envelope.type, reason=str(error))
        except Exception as error:  # buried and logged: the queue must move on
            log.exception("cannot_handle", type=delivery.envelope.type, job=delivery.message.job)
            await delivery.dead_letter(f"{type(error).__name__}: {error}"[:300])
            return
        else:
            await delivery.ack()
            return
