"""A job's record, as it is stored, and queries on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct, field

from services.gateway.ports import END_STATUSES, Line, OpenStage, Status
from shared.dataset.edits import PictureEdit
from shared.messaging.messages import (
    Artifact,
    DatasetStaged,
    DrawnImage,
    DrawnSample,
    Message,
    ModelStaged,
    SavedCheckpoint,
    Stage,
    StagingDue,
    Submission,
    decode,
    stable_id,
)
from shared.request import TTL, Command, Policy, Train, Validation, WebhookEvent

GPU_STAGES: tuple[Stage, ...] = ("training", "generation")
PUBLICATIONS: Mapping[Stage, str] = {
    "model_publication": "the model and its checkpoints",
    "image_publication": "the images and samples",
}
"""The stages that upload to the user's bucket, and what."""
RESULT_FIELDS = (
    "report",
    "found_report",
    "checkpoints",
    "summary",
    "records",
    "images",
    "samples",
    "urls",
    "warnings",
)
"""Fields of a record that may be large, and that results of workers change."""
LARGE_FIELDS = ("input", *RESULT_FIELDS)
WORKER_LOST = "the worker was lost during "
"""How the reason of a failure begins whose worker showed no sign of life."""
EDITS = "edits"
"""A field that may be large too, and that users change often: only its last value is kept."""


NOT_DRAWN = "were not drawn: a newer row came first, or the job ended before"
NOT_DONE: Mapping[Command, str] = {
    "sample": f"the samples that were asked for {NOT_DRAWN}",
    "save": "the checkpoint that was asked for was not saved: the training ended before",
}
"""What is said of a command that was taken and not carried out; a ``stop`` is, by any end."""


class Claim(Struct, frozen=True, kw_only=True):
    """A granted claim: the worker and its reply queue."""

    id: str
    worker: str
    reply_queue: str = field(name="control")
    attempt: int
    at: float = 0.0
    """When it was granted, seconds since the epoch; 0: an earlier version wrote it."""
    gpu: str = ""
    version: str = ""
    """Of the worker; empty, like the one before: it did not say."""


class StageRecord(Struct, frozen=True, kw_only=True):
    """A stage that was requested."""

    trigger: bytes = field(name="asking")
    """The encoded message that requested the stage, to be queued again."""
    due_at: float = 0.0
    """When it was last queued, or will be; seconds since the epoch."""
    attempts: int = 0
    failures: int = 0
    """In a row; a new resume point resets them to 0."""
    claim: Claim | None = None
    ended_claims: tuple[str, ...] = field(default=(), name="spent")
    """Never granted again."""
    done: bool = False
    failed: str | None = None
    """Why the stage failed for good."""
    last_failure: str | None = None
    """Why its last attempt failed, of ``failures``; None also where earlier versions wrote it."""

    @property
    def open(self) -> bool:
        return not self.done and self.failed is None


class WebhookTry(Struct, frozen=True, kw_only=True):
    """One try to deliver a webhook; without status and reason its outcome is not known yet."""

    id: str
    """Of the event: the same for all its tries."""
    event: WebhookEvent
    run: int = 1
    """The run of the job that the event belongs to."""
    attempt: int
    at: float
    """When it is due, later when its outcome was recorded; seconds since the epoch."""
    status: int | None = None
    """HTTP status of a successful delivery."""
    reason: str | None = None
    """Why the delivery failed."""


class KeptDataset(Struct, frozen=True, kw_only=True):
    """What a check has staged, for others to train on."""

    dataset: str
    """Store prefix."""
    bytes: int
    until: float
    """Seconds since the epoch."""


class Preview(Struct, frozen=True, kw_only=True):
    """A picture that stands for a job in a list: store keys of it and of its thumbnail."""

    picture: str
    thumbnail: str


class StagedModel(Struct, frozen=True, kw_only=True):
    """The model that a job starts from, in the store; others may start from it, too."""

    prefix: str
    bytes: int
    """0: it is not counted for the job's owner."""


class Job(Struct, frozen=True, kw_only=True):
    """Everything known about a job."""

    id: str
    owner: str
    digest: str = ""
    """Keyed digest of the request, to compare a repeated submission with."""
    run: int = 1
    traceparent: str | None = None
    """The W3C trace context of the request that began the run; None: it had none."""
    tracestate: str = ""
    status: Status = "IN_QUEUE"
    input: dict[str, Any]
    """The request's ``input``, as the client sent it."""
    policy: Policy = field(default_factory=Policy)
    webhook: str | None = None
    webhook_events: tuple[WebhookEvent, ...] = ()
    """Empty: the default of :attr:`shared.request.Request.webhook_events`."""
    s3: str | None = None
    """The sealed ``s3Config``."""
    trains: bool = True
    """Whether a model is trained; if not, images are generated with a finished one."""
    draws: bool = False
    """Whether images are requested."""
    checks: bool = False
    """Whether only the report on the dataset is requested."""
    created_at: float
    released_at: float | None = 0.0
    """When it was this run's turn, seconds since the epoch; None: it waits for it. 0: earlier
    versions wrote the record, which released every job at once."""
    started_at: float | None = None
    ended_at: float | None = None
    gpu: str = ""
    error: str | None = None
    stages: dict[Stage, StageRecord] = field(default_factory=dict)
    progress: dict[Stage, dict[str, Any]] = field(default_factory=dict)
    """Of this run, by stage. It is kept beside the record, which only earlier versions wrote it to;
    :meth:`.repository.JobRepository.version` joins them."""
    report: dict[str, Any] = field(default_factory=dict)
    """On the dataset; of a check as it is trained on after all changes."""
    found_report: dict[str, Any] = field(default_factory=dict)
    """A check's before the first change; empty: there was none."""
    pictures: str = ""
    """Store prefix of the pages that tell of every picture of the dataset."""
    pictures_bytes: int = 0
    """Of the pages and previews there, which stay with the job."""
    kept: KeptDataset | None = None
    """Of a check that has completed; None: not yet, or no longer."""
    edits: dict[int, PictureEdit] = field(default_factory=dict)
    """Of its pictures, by their numbers."""
    staged_model: StagedModel | None = None
    """None: nothing is staged yet; or an earlier version wrote the record."""
    lora_base: str = ""
    """Store prefix of the model that the job's own is a LoRA for; empty: it is no LoRA."""
    refused_claims: tuple[str, ...] = field(default=(), name="refused")
    """Oldest first; a claim that was refused once stays refused."""
    commands: dict[Command, int] = field(default_factory=dict, name="wishes")
    """Number of the newest command of each kind, from 1."""
    commands_done: dict[Command, int] = field(default_factory=dict, name="granted")
    """Number of the newest command that is done; a ``stop`` is done when the training ends."""
    asked_rows: tuple[int, ...] = ()
    """Steps of the rows of samples that a command asked for and that are not drawn yet."""
    warnings: tuple[str, ...] = ()
    """In addition to those of the training's summary."""
    resume_point: str | None = None
    checkpoints: tuple[SavedCheckpoint, ...] = ()
    deleted_checkpoints: tuple[str, ...] = ()
    """Store keys of those that were deleted by request: a trainer may name them once more."""
    files_to_delete: tuple[str, ...] = ()
    """Prefixes in the store that nothing names any more, until they are known to be deleted."""
    checkpoint: Artifact | None = None
    model: str | None = None
    """Store prefix of the trained model, for jobs that start from it."""
    summary: dict[str, Any] = field(default_factory=dict)
    records: tuple[Artifact, ...] = ()
    """Metrics and TensorBoard events."""
    html_report: Artifact | None = None
    """``report.html``; None: no training has ended, it could not be made, or an earlier version
    wrote the record."""
    images: tuple[DrawnImage, ...] = ()
    samples: tuple[DrawnSample, ...] = ()
    """One for each step and prompt, sorted by them."""
    preview: Preview | None = None
    """The first image, or the first sample of the newest row: those may be in the store."""
    urls: dict[str, str] = field(default_factory=dict)
    """Store key to URL in the user's bucket."""
    webhook_attempts: int = 0
    """Scheduled attempts at this run's ``completed`` webhook whose outcome is known."""
    webhook_awaited: int = 0
    """The attempt at it whose outcome decides about the next."""
    webhook_settled: bool = False
    """Whether no further attempt is scheduled."""
    webhook_outputs: int = 0
    """Number of ``output`` webhooks."""
    webhook_output_at: float = 0.0
    """When the last of them was due; seconds since the epoch."""
    webhook_tries: tuple[WebhookTry, ...] = ()
    """Of all runs, oldest first."""
    stored: dict[str, str] = field(default_factory=dict)
    """Store keys of the fields that are too large for the record, which are left empty in it."""

    @property
    def ended(self) -> bool:
        return self.status in END_STATUSES

    @property
    def line(self) -> Line:
        """Jobs of a line wait for the same workers."""
        if self.checks:
            return "check"
        return "train" if self.trains else "draw"

    @property
    def published(self) -> bool:
        return self.s3 is not None

    def holds(self, stage: Stage, claim: str) -> bool:
        """Whether the claim is the live one of its stage, in a job that has not ended."""
        record = self.stages.get(stage)
        held = record.claim if record else None
        return not self.ended and held is not None and held.id == claim


class Effect(Struct, frozen=True, kw_only=True):
    """A message that a step causes.

    Durable ones go through the outbox, in the step's commit. The others, replies to workers, are
    sent once after it; a worker that misses one asks again.
    """

    message: Message
    queue: str | None = None
    delay: float = 0.0
    """Seconds from now."""
    durable: bool = True
    mandatory: bool = True


class Step(Struct, frozen=True):
    """A job's next record, and the messages that go with it."""

    job: Job
    effects: tuple[Effect, ...] = ()
    due: StagingDue | None = None
    """What requests staging of a new job: at hand, so that it need not be decoded once more."""


def webhook_id(job: Job, event: WebhookEvent, number: int) -> str:
    """The same for all tries of one event; ``number`` tells events of a kind apart."""
    return stable_id(job.id, job.run, event, number)


def clip_skip_of(job: Job) -> int:
    """The ``clip_skip`` that the job trained with; 0 if it trained nothing."""
    train = _train_of(job)
    return train.clip_skip if train else 0


def validation_of(job: Job) -> Validation | None:
    """What the job holds out of training; None: nothing."""
    train = _train_of(job)
    return train.validation if train else None


def _train_of(job: Job) -> Train | None:
    submitted = decode(job.stages["staging"].trigger)
    return submitted.train if isinstance(submitted, Submission) else None


def milliseconds(seconds: float) -> int:
    return max(0, round(seconds * 1000))


def delay_time(job: Job, now: float) -> int:
    """Milliseconds from submission to the first GPU claim, or to now while it waits."""
    return milliseconds((job.started_at or job.ended_at or now) - job.created_at)


def execution_time(job: Job, now: float) -> int:
    """Milliseconds from the first GPU claim to the end, or to now while it runs."""
    return 0 if job.started_at is None else milliseconds((job.ended_at or now) - job.started_at)


def why_no_command(job: Job, kind: Command) -> str | None:
    """Why a job does not take this command; None: its training runs.

    It runs from the first grant to its end, also while it waits for another worker.
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
    if kind != "stop" and "stop" in job.commands:
        return "the training ends after its current step: it was stopped"
    return None


def unfulfilled(job: Job) -> list[str]:
    """A warning for each command that was taken, and that the training ended before."""
    if not job.ended:
        return []
    steps = ", ".join(str(step) for step in job.asked_rows)
    undrawn = [f"the samples that were asked for at step {steps} {NOT_DRAWN}"] if steps else []
    return [*undrawn, *(text for kind, text in NOT_DONE.items() if is_open(job, kind))]


def is_open(job: Job, kind: Command) -> bool:
    """Whether a command was taken and is not done yet."""
    return job.commands.get(kind, 0) > job.commands_done.get(kind, 0)


def open_stages(job: Job) -> list[OpenStage]:
    """What a live job wants of workers; nothing when it has ended or waits for its turn."""
    if job.ended or job.released_at is None:
        return []
    return [
        OpenStage(job.id, stage, record.claim.id if record.claim else None, record.due_at)
        for stage, record in job.stages.items()
        if record.open
    ]


def unpublished(job: Job) -> list[str]:
    """A warning for each upload to the user's bucket that failed for good."""
    return [
        f"your bucket does not have {files}: {record.failed}; the links here are ours, and work as"
        " long as the job is kept"
        for stage, files in PUBLICATIONS.items()
        if (record := job.stages.get(stage)) is not None and record.failed is not None
    ]


def kept_bytes(job: Job) -> int:
    """Bytes that a check keeps in the store: its dataset, for a while, and what tells of it."""
    if not job.checks:
        return 0
    return job.pictures_bytes + (job.kept.bytes if job.kept else 0)


def files_due_at(job: Job) -> float | None:
    """When files of the job are to be deleted, though it stays; seconds since the epoch."""
    if job.files_to_delete:
        return 0.0
    return job.kept.until if job.kept else None


def needed_model(job: Job) -> StagedModel | None:
    """The model that a worker has yet to read, or would if the job was retried.

    A LoRA is drawn with its base model as long as its job is there.
    """
    if job.lora_base:
        staged = job.staged_model
        size = staged.bytes if staged and staged.prefix == job.lora_base else 0
        return StagedModel(prefix=job.lora_base, bytes=size)
    if job.status in ("COMPLETED", "CANCELLED"):
        return None
    return job.staged_model or _model_of_triggers(job)


def _model_of_triggers(job: Job) -> StagedModel | None:
    """The same in a record of an earlier version."""
    for stage in GPU_STAGES:
        trigger = decode(job.stages[stage].trigger) if stage in job.stages else None
        if isinstance(trigger, DatasetStaged):
            return StagedModel(prefix=trigger.base_model, bytes=0)
        if isinstance(trigger, ModelStaged):
            return StagedModel(prefix=trigger.model, bytes=0)
    return None


def is_staging(job: Job) -> bool:
    record = job.stages.get("staging")
    return record is not None and record.open


def overdue_at(job: Job) -> float | None:
    """When the first time limit of a live job passes; seconds since the epoch."""
    if job.ended:
        return None
    limits = [job.created_at + job.policy.ttl / 1000]
    if job.started_at is not None:
        limits.append(job.started_at + job.policy.executionTimeout / 1000)
    return min(limits)


def overdue(job: Job, now: float) -> str | None:
    """Which time limit a live job has exceeded; None: none."""
    if (
        job.started_at is not None
        and milliseconds(now - job.started_at) > job.policy.executionTimeout
    ):
        return _has_passed("executionTimeout", job.policy.executionTimeout)
    if milliseconds(now - job.created_at) > job.policy.ttl:
        return _has_passed("ttl", job.policy.ttl)
    return None


def _has_passed(limit: str, most: int) -> str:
    more = (
        f"a request with a larger policy.{limit} gets more time, at most {TTL} ms"
        if most < TTL
        else "no job gets more time: request fewer epochs"
    )
    return f"{limit} of {most} ms has passed: {more}"
