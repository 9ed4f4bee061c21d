"""Get one message from the first of several queues that has one."""

from __future__ import annotations

import asyncio
import math

from shared.concurrency import cancelled
from shared.messaging.topology import Queue
from shared.ports import Bus, Delivery


async def first_delivery(
    bus: Bus, queues: tuple[Queue, ...], stop: asyncio.Event, *, wait: float
) -> tuple[Queue, Delivery | None]:
    """The first message of any queue and that queue; of several at once that of the first queue.

    None: there was none in ``wait`` seconds, or ``stop`` was set. What comes too late is requeued.
    """
    getting = [asyncio.create_task(bus.get(queue)) for queue in queues]
    stopping = asyncio.create_task(stop.wait())
    chosen = None
    try:
        await asyncio.wait(
            (*getting, stopping),
            timeout=wait if math.isfinite(wait) else None,
            return_when=asyncio.FIRST_COMPLETED,
        )
        if not stop.is_set():
            chosen = next((task for task in getting if task.done()), None)
        if chosen is not None:
            return queues[getting.index(chosen)], chosen.result()
        return queues[0], None
    finally:
        await cancelled(stopping)
        for task in getting:
            if task is not chosen:
                await _requeue(task)


async def _requeue(getting: asyncio.Task[Delivery]) -> None:
    """Stop getting; requeue what arrived meanwhile."""
    await cancelled(getting)
    if not getting.cancelled() and getting.exception() is None:
        await getting.result().release()
