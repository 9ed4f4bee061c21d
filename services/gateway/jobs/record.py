"""A job's record: everything known about it, as it is stored."""

from __future__ import annotations

from typing import Any

from msgspec import Struct, field

from services.gateway.ports import END_STATUSES, Status
from shared.messaging.messages import (
    Artifact,
    DrawnImage,
    DrawnSample,
    JobSubmitted,
    Message,
    SavedCheckpoint,
    Stage,
    decode,
    stable_id,
)
from shared.request import Command, Policy, WebhookEvent

GPU_STAGES: tuple[Stage, ...] = ("training", "generation")
BUCKET_STAGES: tuple[Stage, ...] = ("bucket_check", "model_publication", "image_publication")


class Claim(Struct, frozen=True, kw_only=True):
    """A granted claim: who works, and where to reach it."""

    id: str
    worker: str
    reply_queue: str = field(name="control")
    attempt: int


class StageRecord(Struct, frozen=True, kw_only=True):
    """One stage that was asked for."""

    trigger: bytes = field(name="asking")
    """The encoded fact that asks for it, to be put on the stage's queue again."""
    due_at: float = 0.0
    """When it was, or will be, last put on the queue; seconds since the epoch."""
    attempts: int = 0
    failures: int = 0
    """In a row; a new resume point sets them to 0."""
    claim: Claim | None = None
    ended_claims: tuple[str, ...] = field(default=(), name="spent")
    """Claims that ended; none of them is granted again."""
    done: bool = False
    failed: str | None = None
    """Why it was given up for good."""

    @property
    def open(self) -> bool:
        return not self.done and self.failed is None


class WebhookTry(Struct, frozen=True, kw_only=True):
    """One delivery of a webhook; without status and reason its outcome is not known yet."""

    id: str
    """Of the event: the same over all its tries."""
    event: WebhookEvent
    run: int = 1
    """The run of the job that it tells of."""
    attempt: int
    at: float
    """When it is due, then when its outcome was heard of; seconds since the epoch."""
    status: int | None = None
    """Of the answer that took it."""
    reason: str | None = None
    """Why it was not taken."""


class Job(Struct, frozen=True, kw_only=True):
    """Everything known about a job."""

    id: str
    owner: str
    digest: str = ""
    """Of the request, keyed; tells whether a repeated submission is the same one."""
    run: int = 1
    status: Status = "IN_QUEUE"
    input: dict[str, Any]
    """As the client sent it, for ``/status``."""
    policy: Policy = field(default_factory=Policy)
    webhook: str | None = None
    webhook_events: tuple[WebhookEvent, ...] = ()
    """Empty: as :attr:`shared.request.Request.webhook_events`."""
    s3: str | None = None
    """The sealed ``s3Config``."""
    trains: bool = True
    """Whether a model is to be trained; if not, images are drawn with a finished one."""
    draws: bool = False
    """Whether images are asked for."""
    checks: bool = False
    """Whether all that is asked for is the report on the dataset."""
    created_at: float
    started_at: float | None = None
    ended_at: float | None = None
    gpu: str = ""
    error: str | None = None
    stages: dict[Stage, StageRecord] = field(default_factory=dict)
    progress: dict[Stage, dict[str, Any]] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    refused_claims: tuple[str, ...] = field(default=(), name="refused")
    """Claims that were refused, oldest first: whoever asks again gets the same answer again."""
    commands: dict[Command, int] = field(default_factory=dict, name="wishes")
    """What the user has wanted of the training, numbered from 1; the newest of each kind."""
    commands_done: dict[Command, int] = field(default_factory=dict, name="granted")
    """Those that are done, likewise; a ``stop`` is done when the training is."""
    warnings: tuple[str, ...] = ()
    """Besides those of the training's summary."""
    resume_point: str | None = None
    checkpoints: tuple[SavedCheckpoint, ...] = ()
    checkpoint: Artifact | None = None
    model: str | None = None
    """Store prefix of the trained model, for jobs that go on from it."""
    summary: dict[str, Any] = field(default_factory=dict)
    records: tuple[Artifact, ...] = ()
    """Metrics and TensorBoard's events."""
    images: tuple[DrawnImage, ...] = ()
    samples: tuple[DrawnSample, ...] = ()
    """By step and prompt, one of each."""
    urls: dict[str, str] = field(default_factory=dict)
    """Store key to URL in the user's bucket."""
    webhook_attempts: int = 0
    """Of this run's end, by the schedule, so far as their outcome is known."""
    webhook_awaited: int = 0
    """The attempt at it whose outcome decides on the next."""
    webhook_settled: bool = False
    webhook_outputs: int = 0
    """``output`` webhooks, and when the last was due."""
    webhook_output_at: float = 0.0
    webhook_tries: tuple[WebhookTry, ...] = ()
    """Of all runs, oldest first."""

    @property
    def ended(self) -> bool:
        return self.status in END_STATUSES

    @property
    def published(self) -> bool:
        return self.s3 is not None

    def holds(self, stage: Stage, claim: str) -> bool:
        """Whether the claim is the live one of its stage, in a job that has not ended."""
        record = self.stages.get(stage)
        held = record.claim if record else None
        return not self.ended and held is not None and held.id == claim


class Effect(Struct, frozen=True, kw_only=True):
    """Something to say because of a step.

    ``durable`` ones go through the outbox, in the step's commit. The others are sent once, after
    it: answers to claims, which the worker asks for again if they are lost.
    """

    message: Message
    queue: str | None = None
    delay: float = 0.0
    """Seconds from now."""
    durable: bool = True
    mandatory: bool = True


class Step(Struct, frozen=True):
    """What a fact made of a job."""

    job: Job
    effects: tuple[Effect, ...] = ()


def webhook_id(job: Job, event: WebhookEvent, number: int) -> str:
    """The same over all tries of one event of a run; ``number`` tells those of a kind apart."""
    return stable_id(job.id, job.run, event, number)


def clip_skip_of(job: Job) -> int:
    """What the job trained its model with; 0 if it trained none."""
    submitted = decode(job.stages["staging"].trigger)
    train = submitted.train if isinstance(submitted, JobSubmitted) else None
    return train.clip_skip if train else 0


def milliseconds(seconds: float) -> int:
    return max(0, round(seconds * 1000))


def delay_time(job: Job, now: float) -> int:
    """Milliseconds from submission to the first GPU claim (so far, while it waits)."""
    return milliseconds((job.started_at or job.ended_at or now) - job.created_at)


def execution_time(job: Job, now: float) -> int:
    """Milliseconds from the first GPU claim to the end (so far, while it runs)."""
    return 0 if job.started_at is None else milliseconds((job.ended_at or now) - job.started_at)


def why_no_command(job: Job) -> str | None:
    """Why nothing can be wanted of a job's training, if it is so: it must be at work.

    It is from the first grant to its end, also while it waits to go on with another worker.
    """
    training = job.stages.get("training")
    if not job.trains or job.checks:
        return "the job trains nothing"
    if job.ended:
        return f"the job has ended: it is {job.status}"
    if training is not None and training.done:
        return "the training has ended"
    if training is None or job.started_at is None:
        return f"the training has not begun: the job is {job.status}"
    return None


def overdue(job: Job, now: float) -> str | None:
    """Why a live job is out of time, if it is."""
    if (
        job.started_at is not None
        and milliseconds(now - job.started_at) > job.policy.executionTimeout
    ):
        return f"executionTimeout of {job.policy.executionTimeout} ms has passed"
    if milliseconds(now - job.created_at) > job.policy.ttl:
        return f"ttl of {job.policy.ttl} ms has passed"
    return None
