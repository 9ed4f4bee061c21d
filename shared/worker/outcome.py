"""Publish what came of a claim."""

from __future__ import annotations

import asyncio

import structlog

from shared.concurrency import cancelled
from shared.errors import Unpublishable, reason_of
from shared.messaging.messages import StageFact, StageFailed
from shared.worker.order import Order

log = structlog.get_logger()


async def publish_outcome(
    order: Order, outcome: StageFact, hurry: asyncio.Event, seconds: float
) -> None:
    """Publish the outcome; once ``hurry`` is set, wait no longer than that for the broker."""
    publishing = asyncio.create_task(_publish_or_fail(order, outcome))
    hurrying = asyncio.create_task(hurry.wait())
    try:
        await asyncio.wait((publishing, hurrying), return_when=asyncio.FIRST_COMPLETED)
        async with asyncio.timeout(seconds):
            await publishing
    except TimeoutError:
        log.warning("outcome_not_published", job=order.job, fact=type(outcome).__name__)
    finally:
        await cancelled(hurrying)
        await cancelled(publishing)


async def _publish_or_fail(order: Order, outcome: StageFact) -> None:
    """Publish the outcome; if the broker refuses it for good, publish that as the outcome."""
    try:
        await order.publish(outcome)
    except Unpublishable as error:
        reason = reason_of(error)
        await order.publish(StageFailed(**order.stamp(), kind="refused", reason=reason))
