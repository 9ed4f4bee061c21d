"""Posts each due webhook once; the gateway schedules the retries."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from functools import partial
from time import monotonic

import aiohttp
import structlog
from structlog.contextvars import bound_contextvars

from services.notifier import signature
from services.notifier.metrics import WEBHOOKS
from shared.errors import EveryDreamError, NotFound, Refused, reason_of
from shared.messaging.messages import WebhookDelivered, WebhookDue, WebhookFailed
from shared.messaging.topology import NOTIFIER_WEBHOOKS
from shared.network.outbound import check_url, connection_failure, refusing
from shared.ports import Bus, Delivery, ObjectStore
from shared.storage.large_fields import load_fields
from shared.telemetry import tracing

Outcome = WebhookDelivered | WebhookFailed
CONCURRENCY = 16
"""Webhooks posted at a time."""
TIMEOUT = aiohttp.ClientTimeout(total=20.0, sock_connect=10.0)
GONE = 410

log = structlog.get_logger()


async def deliver_all(
    bus: Bus,
    store: ObjectStore,
    session: aiohttp.ClientSession,
    secret: str,
    allowed: frozenset[str],
) -> None:
    """Post due webhooks, forever."""
    post_due = partial(_load_and_post, store, session, secret, allowed)
    async with (
        aclosing(bus.consume(NOTIFIER_WEBHOOKS, prefetch=CONCURRENCY)) as deliveries,
        asyncio.TaskGroup() as group,
    ):
        async for delivery in deliveries:
            group.create_task(_handle(bus, post_due, delivery))


async def _handle(
    bus: Bus, post_due: Callable[[WebhookDue], Awaitable[Outcome]], delivery: Delivery
) -> None:
    """Publish the outcome, then ack; a webhook that is posted twice has the same id."""
    due = delivery.message
    if not isinstance(due, WebhookDue):
        await delivery.dead_letter("not a webhook that is due")
        return
    with (
        bound_contextvars(job=due.job),
        tracing.span(
            "webhook", parent=tracing.context_of(delivery.envelope), kind="client",
            everydream__job=due.job, everydream__attempt=due.attempt,
        ) as span,
    ):  # fmt: skip
        try:
            outcome = await post_due(due)
            if isinstance(outcome, WebhookFailed):
                span.fail("not delivered")
            await bus.publish(outcome)
            await delivery.ack()
        except EveryDreamError as error:
            log.warning("webhook_outcome_not_published", job=due.job, reason=str(error))
            await delivery.release()


async def _load_and_post(
    store: ObjectStore,
    session: aiohttp.ClientSession,
    secret: str,
    allowed: frozenset[str],
    due: WebhookDue,
) -> Outcome:
    """Post a webhook, whose body may be in the store. Raises Unavailable."""
    try:
        whole = await load_fields(store, due)
    except NotFound:
        return _failed(due, "the job was deleted", permanent=True)
    begun = monotonic()
    outcome = await post(session, secret, allowed, whole)
    seconds = monotonic() - begun
    told = "delivered" if isinstance(outcome, WebhookDelivered) else "failed"
    WEBHOOKS.labels(told).observe(seconds)
    log.info(
        "webhook_posted", job=due.job, attempt=due.attempt, outcome=type(outcome).__name__,
        seconds=round(seconds, 3),
    )  # fmt: skip
    return outcome


async def post(
    session: aiohttp.ClientSession, secret: str, allowed: frozenset[str], due: WebhookDue
) -> WebhookDelivered | WebhookFailed:
    """One attempt: 2xx within the time-out is success, anything else a failure with its reason."""
    body = due.body.encode()
    headers = signature.headers(secret, due.webhook_id, int(time.time()), body)
    headers["content-type"] = "application/json"
    if context := tracing.context():
        headers.update(context.headers)
    try:
        check_url(due.url, allowed)
        with refusing(due.url):
            async with session.post(
                due.url, data=body, headers=headers, timeout=TIMEOUT, allow_redirects=False
            ) as response:
                return _outcome(due, response)
    except (
        Refused,
        ValueError,
    ) as error:  # ValueError: not a URL, or a name that cannot be resolved
        return _failed(due, reason_of(error), permanent=True)
    except TimeoutError as error:
        return _failed(due, str(error) or f"no answer within {TIMEOUT.total:g} s")
    except (aiohttp.ClientError, OSError) as error:
        return _failed(due, connection_failure(error))


def _outcome(due: WebhookDue, response: aiohttp.ClientResponse) -> WebhookDelivered | WebhookFailed:
    if 200 <= response.status < 300:  # noqa: PLR2004 - 2xx
        return WebhookDelivered(
            job=due.job, run=due.run, attempt=due.attempt, webhook_id=due.webhook_id,
            status=response.status,
        )  # fmt: skip
    return _failed(
        due,
        f"answered with status {response.status}",
        permanent=response.status == GONE,
        retry_after=seconds_of(response.headers.get("Retry-After")),
    )


def _failed(
    due: WebhookDue, reason: str, *, permanent: bool = False, retry_after: float | None = None
) -> WebhookFailed:
    return WebhookFailed(
        job=due.job, run=due.run, attempt=due.attempt, webhook_id=due.webhook_id,
        reason=reason, permanent=permanent, retry_after=retry_after,
    )  # fmt: skip


def seconds_of(retry_after: str | None) -> float | None:
    """A Retry-After header in seconds, at most an hour; dates are not supported."""
    if retry_after is None or not retry_after.strip().isdecimal():
        return None
    return min(float(retry_after), 3600.0)
