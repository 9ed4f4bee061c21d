"""The bodies that clients get: what the code below must return, and what the document says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from msgspec import Meta

from services.gateway.ports import Status
from shared.messaging.messages import Stage
from shared.request import WebhookEvent


def one_of(*names: str) -> Meta:
    """For a body that has one of several shapes."""
    shapes = [{"$ref": f"#/components/schemas/{name}"} for name in names]
    return Meta(extra_json_schema={"anyOf": shapes})


class Error(TypedDict):
    """What is said when a request is refused or fails."""

    error: str
    mistakes: NotRequired[list[str]]
    """All mistakes of the request, one sentence each (status 400 or 422)."""


class JobState(TypedDict):
    """A job and how it stands."""

    id: str
    status: Status


class QueuePosition(TypedDict):
    """A waiting job's place among everybody's."""

    position: Annotated[int, Meta(ge=1)]
    estimated_start: str | None
    """UTC; null: nobody can tell."""


class Sample(TypedDict):
    """An image drawn while training goes on."""

    step: int
    epoch: int
    prompt: str
    seed: int
    image: str
    """Link."""


REPORT = {
    "anyOf": [{"$ref": "#/components/schemas/Report"}, {"type": "object", "maxProperties": 0}]
}
DatasetReport = Annotated[dict[str, Any], Meta(extra_json_schema=REPORT)]
"""The report on the images; empty until it is known."""


class Progress(TypedDict):
    """``output`` until the end: the newest numbers of the stage at work, null where unknown."""

    stage: Stage | None
    step: int | None
    steps: int | None
    epoch: int | None
    loss: float | None
    images_per_second: float | None
    eta_seconds: float | None
    dataset: DatasetReport
    samples: list[Sample]
    warnings: NotRequired[list[str]]


class Checkpoint(TypedDict):
    """An intermediate checkpoint."""

    step: int
    epoch: int
    url: str
    validation_loss: NotRequired[float]
    best: NotRequired[bool]


class TrainingResult(TypedDict):
    """What became of the training; besides these what the trainer sums up (steps, loss, ...)."""

    checkpoint_url: str | None
    checkpoints: list[Checkpoint]
    samples: list[Sample]
    warnings: NotRequired[list[str]]
    steps: NotRequired[int]
    updates: NotRequired[int]
    epochs: NotRequired[int]
    images: NotRequired[int]
    loss: NotRequired[float]
    precision: NotRequired[str]
    optimizer: NotRequired[str]
    attention: NotRequired[str]
    validation: NotRequired[dict[str, Any] | None]
    best: NotRequired[bool]
    seed: NotRequired[int]


class Image(TypedDict):
    """One image of the result, with what it was drawn from."""

    image: str | None
    """Link; null: it could not be drawn."""
    prompt: str
    negative_prompt: str | None
    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    scheduler: str
    seed: int
    passback: str | None
    error: NotRequired[str]


class File(TypedDict):
    """A file of the result."""

    name: str
    kind: Literal["checkpoint", "image", "sample", "metrics", "tensorboard"]
    bytes: int
    sha256: str
    url: str


class Results(TypedDict):
    """``output`` at the end: everything there is, however the job ended."""

    train: TrainingResult | None
    """Null: nothing was trained."""
    inference: list[Image]
    artifacts: list[File]
    warnings: NotRequired[list[str]]


class CheckResult(TypedDict):
    """``output`` of a dataset's check at the end."""

    dataset: DatasetReport


Output = Annotated[Mapping[str, Any], one_of("Progress", "Results", "CheckResult")]


class JobStatus(TypedDict):
    """A job in full; the webhook's body, too."""

    id: str
    status: Status
    delayTime: Annotated[int, Meta(ge=0)]
    """Milliseconds from submission to the first GPU worker."""
    executionTime: Annotated[int, Meta(ge=0)]
    """Milliseconds from then to the end."""
    gpu: str
    """The device that the job started on."""
    input: dict[str, Any]
    """The request's ``input``."""
    output: Output
    error: NotRequired[str]
    """Of a job that failed or timed out: why."""
    queue: NotRequired[QueuePosition]
    """Of a job that is IN_QUEUE."""


class Piece(TypedDict):
    """The whole output as it stood."""

    output: Output


class Stream(TypedDict):
    """What is new of a job."""

    id: str
    status: Status
    stream: Annotated[list[Piece], Meta(max_length=1)]


class Purged(TypedDict):
    """How many jobs were cancelled."""

    removed: Annotated[int, Meta(ge=0)]
    status: Literal["completed"]


class JobCounts(TypedDict):
    """A client's jobs by state."""

    completed: int
    failed: int
    inProgress: int
    inQueue: int
    retried: int


class WorkerCounts(TypedDict):
    """Workers that have a GPU."""

    idle: int
    initializing: int
    ready: int
    running: int
    throttled: int
    unhealthy: int


class Health(TypedDict):
    """The endpoint's state."""

    jobs: JobCounts
    workers: WorkerCounts


class JobSummary(TypedDict):
    """A job in a list; times in UTC."""

    id: str
    status: Status
    created_at: str
    started_at: str | None
    ended_at: str | None
    delayTime: int
    """Milliseconds."""
    executionTime: int
    """Milliseconds."""
    gpu: str
    error: NotRequired[str]


class JobPage(TypedDict):
    """Jobs, newest first."""

    jobs: list[JobSummary]
    next: str | None
    """For ``cursor``; null: this is the last page."""


class Removed(TypedDict):
    """A job that is gone for good."""

    id: str
    deleted: Literal[True]


class WebhookDelivery(TypedDict):
    """One try of a webhook."""

    id: str
    """Of the event: the same over all its tries."""
    event: WebhookEvent
    attempt: int
    at: str
    """UTC: when it is due, then when its outcome was heard of."""
    status: int | None
    """Of the answer that took it."""
    reason: str | None
    """Why it was not taken."""


class WebhookDeliveries(TypedDict):
    """What became of a job's webhooks, newest first."""

    deliveries: list[WebhookDelivery]


class Upload(TypedDict):
    """A file that is taken, or on its way."""

    id: str
    bytes: Annotated[int, Meta(ge=1)]
    received: Annotated[int, Meta(ge=0)]
    sha256: str | None
    """Null until all bytes are here."""
    data_url: str
    """What a request gives as its ``data_url``."""


class Liveness(TypedDict):
    """The database answers."""

    status: Literal["ok"]


class UnreadyPart(TypedDict):
    """A part that is not as it should be."""

    part: Literal["database", "broker", "store"]
    reason: str
    since: str
    """UTC: when this gateway noticed."""


class Readiness(TypedDict):
    """Whether everything is there that jobs need."""

    status: Literal["ready", "not ready"]
    lacking: list[UnreadyPart]
