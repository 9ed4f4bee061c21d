"""What a gateway counts, and what it reads of all jobs.

No label names a job, a key or an owner: there are only as many series as there are stages, lines,
routes and reasons.
"""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from services.gateway.ports import LINES
from shared.messaging.messages import STAGES
from shared.messaging.topology import QUEUES
from shared.monitoring.registry import LONG, QUICK, REGISTRY

FAILURE_REASONS = ("refused", "lost", "stalled", "out_of_memory", "disk_full", "failed")
UPLOAD_EVENTS = ("begun", "finished", "refused", "removed")
OTHER_QUEUE = "other"
"""For the name of a queue that is none of ours."""

# --- Read from the database: every gateway says the same -----------------------------------------

STAGE_JOBS = Gauge(
    "everydream_stage_jobs",
    "Jobs whose stage is due and waits for a worker (waiting), or is worked on (claimed).",
    ["stage", "state"],
    registry=REGISTRY,
)
STAGE_OPEN_JOBS = Gauge(
    "everydream_stage_open_jobs",
    "Both together: what workers of this stage are needed for.",
    ["stage"],
    registry=REGISTRY,
)
STAGE_PRIORITY_JOBS = Gauge(
    "everydream_stage_priority_jobs",
    "The same as everydream_stage_jobs, by the jobs' priority: normal, or low (lowPriority).",
    ["stage", "state", "priority"],
    registry=REGISTRY,
)
STAGE_DELAYED_JOBS = Gauge(
    "everydream_stage_delayed_jobs",
    "Jobs whose stage has failed and is tried again later.",
    ["stage"],
    registry=REGISTRY,
)
STAGE_OLDEST = Gauge(
    "everydream_stage_oldest_waiting_seconds",
    "For how long the stage that waits longest has been due; 0: none waits.",
    ["stage"],
    registry=REGISTRY,
)
LINE_JOBS = Gauge(
    "everydream_line_jobs",
    "Jobs that wait for their turn, before any worker is asked, by line and priority.",
    ["line", "priority"],
    registry=REGISTRY,
)
LINE_OLDEST = Gauge(
    "everydream_line_oldest_waiting_seconds",
    "Age of the oldest of them; 0: none waits.",
    ["line", "priority"],
    registry=REGISTRY,
)
OUTBOX = Gauge(
    "everydream_outbox_messages",
    "Messages in the outbox, by kind: message, or webhook; those due later included.",
    ["kind"],
    registry=REGISTRY,
)
OUTBOX_OLDEST = Gauge(
    "everydream_outbox_oldest_due_seconds",
    "For how long the message that waits longest has been due; 0: none is due.",
    ["kind"],
    registry=REGISTRY,
)
DEAD_LETTERS_KEPT = Gauge(
    "everydream_dead_letters_kept",
    "Dead letters in the database, which operators have not seen to.",
    registry=REGISTRY,
)

# --- Of this gateway ------------------------------------------------------------------------------

DATABASE_UP = Gauge(
    "everydream_database_up",
    "Whether the database answered this gateway; if not, what is read from it is left out.",
    registry=REGISTRY,
)
BROKER_UP = Gauge(
    "everydream_broker_up",
    "Whether the broker took this gateway's last heartbeat.",
    registry=REGISTRY,
)
WORKERS_IDLE = Gauge(
    "everydream_workers_idle",
    "Slots of workers that wait for this stage's work, by the broker's count of consumers.",
    ["stage"],
    registry=REGISTRY,
)
RECORDING = Gauge(
    "everydream_recorder_active",
    "Whether this gateway records the facts of the workers; one of all does.",
    registry=REGISTRY,
)
RECORDER_LAG = Gauge(
    "everydream_recorder_lag_seconds",
    "How long a fact waits now until it is recorded, by the gateway's own heartbeat among them;"
    " only of the gateway that records.",
    registry=REGISTRY,
)
CLAIM_SILENCE = Gauge(
    "everydream_claim_silence_seconds",
    "The longest time since a sign of life of a worker that holds a claim; only of the gateway"
    " that records.",
    registry=REGISTRY,
)
FACTS = Histogram(
    "everydream_fact_record_seconds",
    "From taking a fact from its queue to its commit, by type.",
    ["type"],
    buckets=QUICK,
    registry=REGISTRY,
)
HTTP = Histogram(
    "everydream_http_request_seconds",
    "HTTP requests, by method, route and status; streams and long polls last as long as they do."
    " The status is closed where the client has gone.",
    ["method", "route", "code"],
    buckets=QUICK,
    registry=REGISTRY,
)

# --- What happened, counted by the gateway that wrote it ------------------------------------------

JOBS_ADMITTED = Counter(
    "everydream_jobs_admitted",
    "Jobs that were accepted.",
    ["line"],
    registry=REGISTRY,
)
JOB_SECONDS = Histogram(
    "everydream_job_seconds",
    "From a job's submission to its end, by line and status.",
    ["line", "status"],
    buckets=LONG,
    registry=REGISTRY,
)
JOB_WAIT = Histogram(
    "everydream_job_wait_seconds",
    "From a job's submission to its first claim of a card.",
    ["line"],
    buckets=LONG,
    registry=REGISTRY,
)
STAGE_SECONDS = Histogram(
    "everydream_stage_seconds",
    "From the grant of a stage to its end, by outcome: done, failed, interrupted or ended (with"
    " its job).",
    ["stage", "outcome"],
    buckets=LONG,
    registry=REGISTRY,
)
STAGE_WAIT = Histogram(
    "everydream_stage_wait_seconds",
    "From when a stage was due to its grant.",
    ["stage"],
    buckets=LONG,
    registry=REGISTRY,
)
STAGE_ATTEMPTS = Counter(
    "everydream_stage_attempts",
    "Claims that were granted.",
    ["stage"],
    registry=REGISTRY,
)
STAGE_FAILURES = Counter(
    "everydream_stage_failures",
    "Attempts that failed, by reason: refused (for the user to mend), lost (the worker), stalled,"
    " out_of_memory, disk_full, or failed.",
    ["stage", "reason"],
    registry=REGISTRY,
)
WEBHOOKS_GIVEN_UP = Counter(
    "everydream_webhooks_given_up",
    "Webhooks that failed and are not tried again.",
    registry=REGISTRY,
)
DEAD_LETTERS = Counter(
    "everydream_dead_letters",
    "Messages that became dead letters, by the queue they came from.",
    ["queue"],
    registry=REGISTRY,
)
UPLOADS = Counter(
    "everydream_uploads",
    "Uploads, by what happened: begun, finished, refused (another SHA-256) or removed.",
    ["event"],
    registry=REGISTRY,
)
UPLOAD_BYTES = Counter(
    "everydream_upload_bytes",
    "Bytes of uploads that were stored.",
    registry=REGISTRY,
)


def begin_at_zero() -> None:
    """Show counters before they count: Prometheus sees no growth in a first sample."""
    for stage in STAGES:
        STAGE_ATTEMPTS.labels(stage)
        for reason in FAILURE_REASONS:
            STAGE_FAILURES.labels(stage, reason)
    for line in LINES:
        JOBS_ADMITTED.labels(line)
    for name in (*(queue.name for queue in QUEUES), OTHER_QUEUE):
        DEAD_LETTERS.labels(name)
    for event in UPLOAD_EVENTS:
        UPLOADS.labels(event)


begin_at_zero()
