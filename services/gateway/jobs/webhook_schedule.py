"""How webhooks follow from a job's changes: when one is due, tried again, and settled."""

from __future__ import annotations

from typing import Any

import msgspec

from services.gateway.jobs.record import Effect, Job, Step, WebhookTry, webhook_id
from shared import retry
from shared.messaging.messages import WebhookDelivered, WebhookDue, WebhookFailed
from shared.request import WebhookEvent

TRIES_KEPT = 50
"""Webhook tries kept in a record, the newest."""
OUTPUT_SECONDS = 10.0
"""Between two ``output`` webhooks; the next one covers the changes between them."""


def resend_webhook(job: Job, webhook: str, now: float) -> Step:
    """Try a webhook once more now, beside its schedule; an unknown id changes nothing."""
    known = [each for each in job.webhook_tries if each.id == webhook]
    return _with_try(Step(job), known[-1], now) if known else Step(job)


def given_up_webhooks(job: Job) -> list[WebhookTry]:
    """The last tries of those webhooks that failed and that are not tried again, oldest first."""
    last = {each.id: each for each in job.webhook_tries}
    awaited = "" if job.webhook_settled else webhook_id(job, "completed", 0)
    return [each for each in last.values() if each.reason is not None and each.id != awaited]


def webhook_failed_at(job: Job) -> float | None:
    """When the last of them failed; seconds since the epoch. None: there are none."""
    return max((each.at for each in given_up_webhooks(job)), default=None)


def wants(job: Job, event: WebhookEvent) -> bool:
    return job.webhook is not None and event in (job.webhook_events or ("completed",))


def webhook_due(
    step: Step, event: WebhookEvent, number: int, now: float, delay: float = 0.0
) -> Step:
    job = step.job
    first = WebhookTry(
        id=webhook_id(job, event, number), event=event, run=job.run, attempt=1, at=now
    )
    return _with_try(step, first, now, delay)


def _with_try(step: Step, webhook: WebhookTry, now: float, delay: float = 0.0) -> Step:
    """One more try, or the first. The repository adds the body, which has signed links."""
    job = step.job
    attempts = [each.attempt for each in job.webhook_tries if each.id == webhook.id]
    tried = WebhookTry(
        id=webhook.id, event=webhook.event, run=webhook.run,
        attempt=max(attempts, default=0) + 1, at=now + delay,
    )  # fmt: skip
    due = WebhookDue(
        job=job.id, run=tried.run, attempt=tried.attempt, url=job.webhook or "",
        webhook_id=tried.id, event=tried.event, body="",
    )  # fmt: skip
    job = msgspec.structs.replace(job, webhook_tries=(*job.webhook_tries, tried)[-TRIES_KEPT:])
    return Step(job, (*step.effects, Effect(message=due, delay=delay)))


def completed_webhook_due(step: Step, now: float, delay: float = 0.0) -> Step:
    """The only webhook that is retried by a schedule."""
    step = webhook_due(step, "completed", 0, now, delay)
    awaited = step.job.webhook_tries[-1].attempt
    return Step(msgspec.structs.replace(step.job, webhook_awaited=awaited), step.effects)


def with_output_webhook(before: Job, step: Step, now: float) -> Step:
    """Send new output, unless the job has ended: its ``completed`` webhook has it."""
    job = step.job
    too_soon = now - job.webhook_output_at < OUTPUT_SECONDS
    if job.ended or too_soon or _output(job) == _output(before) or not wants(job, "output"):
        return step
    job = msgspec.structs.replace(
        job, webhook_outputs=job.webhook_outputs + 1, webhook_output_at=now
    )
    return webhook_due(Step(job, step.effects), "output", job.webhook_outputs, now)


def _output(job: Job) -> tuple[object, ...]:
    return (job.samples, job.checkpoints, job.checkpoint)


def webhook_outcome(
    job: Job, fact: WebhookDelivered | WebhookFailed, now: float, heartbeat: float
) -> Step:
    """Record the outcome; settle or retry the ``completed`` webhook if this was its last try."""
    job = _with_outcome(job, fact, now)
    awaited = (webhook_id(job, "completed", 0), job.webhook_awaited)
    if (fact.webhook_id, fact.attempt) != awaited or not job.ended or job.webhook_settled:
        return Step(job)
    job = msgspec.structs.replace(job, webhook_attempts=job.webhook_attempts + 1)
    wait = retry.webhook_delay(job.webhook_attempts, heartbeat)
    if isinstance(fact, WebhookDelivered) or fact.permanent or wait is None:
        return Step(msgspec.structs.replace(job, webhook_settled=True))
    return completed_webhook_due(Step(job), now, max(wait, fact.retry_after or 0.0))


def _with_outcome(job: Job, fact: WebhookDelivered | WebhookFailed, now: float) -> Job:
    """Only the first outcome of a try counts; the try may have been made twice."""
    outcome: dict[str, Any] = (
        {"status": fact.status} if isinstance(fact, WebhookDelivered) else {"reason": fact.reason}
    )
    pending = (fact.webhook_id, fact.attempt, None, None)
    tries = (
        msgspec.structs.replace(each, at=now, **outcome)
        if (each.id, each.attempt, each.status, each.reason) == pending
        else each
        for each in job.webhook_tries
    )
    return msgspec.structs.replace(job, webhook_tries=tuple(tries))
