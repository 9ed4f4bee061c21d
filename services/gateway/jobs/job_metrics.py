"""Count what a change of a job's record means: attempts, failures, durations."""

from __future__ import annotations

from services.gateway import metrics
from services.gateway.jobs.record import WORKER_LOST, Job, StageRecord
from services.gateway.jobs.webhook_schedule import webhook_failed_at
from shared.messaging.messages import Stage

REASONS = {
    WORKER_LOST: "lost",
    "stalled in ": "stalled",
    "out of memory": "out_of_memory",
    "no room on the disk": "disk_full",
    "the disk has filled up": "disk_full",
}
"""How the reasons of failures begin, and what they count as."""


def count_change(before: Job | None, after: Job, now: float) -> None:
    """Count what has just been written; ``now`` in seconds since the epoch."""
    if before is None:
        metrics.JOBS_ADMITTED.labels(after.line).inc()
        return
    for stage, record in after.stages.items():
        if (known := before.stages.get(stage)) is not None:
            _count_stage(stage, known, record, now)
    if after.started_at is not None and before.started_at is None:
        waited = max(after.started_at - after.created_at, 0.0)
        metrics.JOB_WAIT.labels(after.line).observe(waited)
    if after.ended and not before.ended:
        _count_end(before, after, now)
    if (webhook_failed_at(after) or 0.0) > (webhook_failed_at(before) or 0.0):
        metrics.WEBHOOKS_GIVEN_UP.inc()


def _count_stage(stage: Stage, before: StageRecord, after: StageRecord, now: float) -> None:
    if after.claim is not None and after.attempts > before.attempts:
        metrics.STAGE_ATTEMPTS.labels(stage).inc()
        metrics.STAGE_WAIT.labels(stage).observe(max(now - before.due_at, 0.0))
    if before.claim is None or after.claim is not None:
        return
    _count_attempt(stage, _outcome(before, after), before.claim.at, now)
    if after.failures > before.failures:
        metrics.STAGE_FAILURES.labels(stage, _reason(after.last_failure or "")).inc()
    elif after.failed is not None:
        metrics.STAGE_FAILURES.labels(stage, "refused").inc()


def _outcome(before: StageRecord, after: StageRecord) -> str:
    if after.done:
        return "done"
    failed = after.failures > before.failures or after.failed is not None
    return "failed" if failed else "interrupted"


def _count_end(before: Job, after: Job, now: float) -> None:
    """A job that ends keeps the claims of the work that it cuts off."""
    lasted = max(now - after.created_at, 0.0)
    metrics.JOB_SECONDS.labels(after.line, after.status.lower()).observe(lasted)
    for stage, record in after.stages.items():
        if record.claim is not None and before.holds(stage, record.claim.id):
            _count_attempt(stage, "ended", record.claim.at, now)


def _count_attempt(stage: Stage, outcome: str, granted_at: float, now: float) -> None:
    if granted_at:  # else an earlier version granted it
        metrics.STAGE_SECONDS.labels(stage, outcome).observe(max(now - granted_at, 0.0))


def _reason(text: str) -> str:
    return next((reason for start, reason in REASONS.items() if text.startswith(start)), "failed")
