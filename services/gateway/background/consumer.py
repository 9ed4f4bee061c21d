"""Consume a queue: ack a delivery that was handled, dead-letter one that cannot be."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import aclosing, contextmanager
from contextvars import Context, copy_context
from typing import Any

import structlog
from structlog.contextvars import bound_contextvars

from shared.errors import Unavailable
from shared.messaging.messages import GatewayHeartbeat, Progressed
from shared.messaging.topology import Queue
from shared.ports import Bus, Delivery
from shared.retry import Reconnects
from shared.telemetry import tracing

Handler = Callable[[Delivery], Awaitable[None]]
BatchHandler = Callable[[Sequence[Delivery]], Coroutine[Any, Any, None]]

UNTRACED = (GatewayHeartbeat, Progressed)
"""They come every few seconds, and cause nothing."""
SHUTDOWN_SECONDS = 2.0
"""How long the current delivery may take when the gateway stops."""

log = structlog.get_logger()


async def consume(bus: Bus, queue: Queue, handle: Handler) -> None:
    """Handle a queue's deliveries one by one, until cancelled.

    On cancellation the current delivery is finished, if that takes a short time only.
    """
    async with aclosing(bus.consume(queue, prefetch=1)) as deliveries:
        async for delivery in deliveries:
            await _finish(asyncio.create_task(process(delivery, handle)))


async def consume_batches(bus: Bus, queue: Queue, handle: BatchHandler, *, most: int) -> None:
    """As :func:`consume`, many deliveries at a time, which the handler settles."""
    async with aclosing(bus.consume_batches(queue, most=most)) as batches:
        async for batch in batches:
            await _finish(asyncio.create_task(handle(batch)))


async def _finish(work: asyncio.Task[None]) -> None:
    try:
        await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait((work,), timeout=SHUTDOWN_SECONDS)
        work.cancel()
        await asyncio.wait((work,))
        raise


async def until_available(work: Callable[[], Awaitable[None]], **about: object) -> None:
    """Work, again and again while a server is away."""
    async for _ in Reconnects():
        try:
            await work()
        except Unavailable as error:
            log.warning("server_away", **about, reason=str(error))
        else:
            return


async def process(delivery: Delivery, handle: Handler) -> None:
    """Handle one delivery; it stays unacked while a server is away."""
    with handling(delivery):
        await _process(delivery, handle)


@contextmanager
def handling(delivery: Delivery) -> Iterator[None]:
    """Logs name the job of what is done in the block, and it is a span of its trace."""
    job, parent = delivery.message.job, tracing.context_of(delivery.envelope)
    with bound_contextvars(**({"job": job} if job else {})):
        if isinstance(delivery.message, UNTRACED):
            yield
            return
        kind = delivery.envelope.type
        with tracing.span(f"process {kind}", parent=parent, kind="consumer", everydream__job=job):
            yield


@contextmanager
def handling_apart(delivery: Delivery) -> Iterator[Context]:
    """As :func:`handling`, for what is run in the context that is given: several at once."""
    context, handled = copy_context(), handling(delivery)
    context.run(handled.__enter__)
    try:
        yield context
    finally:
        context.run(handled.__exit__, None, None, None)


async def _process(delivery: Delivery, handle: Handler) -> None:
    async for _ in Reconnects():
        try:
            await handle(delivery)
        except Unavailable as error:
            log.warning("server_away", type=delivery.envelope.type, reason=str(error))
        except Exception as error:  # one bad message must not block the queue
            log.exception("cannot_handle", type=delivery.envelope.type, job=delivery.message.job)
            await delivery.dead_letter(f"{type(error).__name__}: {error}"[:300])
            return
        else:
            await delivery.ack()
            return
