"""Types of the response bodies; the OpenAPI document is made from them.

Those of uploads are in :mod:`services.gateway.jobs.uploads`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from msgspec import Meta

from services.gateway.jobs.budgets import BudgetName
from services.gateway.ports import Line, Status
from shared.messaging.messages import Stage
from shared.request import WebhookEvent


def one_of(*names: str) -> Meta:
    """For a body that has one of several types."""
    shapes = [{"$ref": f"#/components/schemas/{name}"} for name in names]
    return Meta(extra_json_schema={"anyOf": shapes})


class ExceededBudget(TypedDict):
    """A budget of the key that has not enough left for the request."""

    name: BudgetName
    used: int
    allowed: int


class Error(TypedDict):
    """The body of every response with an error status."""

    error: str
    mistakes: NotRequired[list[str]]
    """All mistakes of the request, one sentence each (status 400 or 422)."""
    budget: NotRequired[ExceededBudget]
    """The budget that has not enough left (status 429)."""


class JobState(TypedDict):
    """A job's id and status."""

    id: str
    status: Status


class QueuePosition(TypedDict):
    """A waiting job's position among all users' jobs."""

    position: Annotated[int, Meta(ge=1)]
    estimated_start: str | None
    """UTC; null: unknown."""


class Retry(TypedDict):
    """A stage that failed and is tried again."""

    stage: Stage
    number: int
    """Of the next try, or of the one at work; 1 is the first, which failed."""
    tries: int
    """How many there are in a row; the last one's failure is final."""
    reason: str | None
    """Why the last try failed; null: unknown."""
    next_at: str | None
    """UTC: when the next try is due; null: it is at work."""


class Sample(TypedDict):
    """An image generated during training."""

    step: int
    epoch: int
    prompt: str
    seed: int
    image: str
    """Link."""
    thumbnail: NotRequired[str]
    """Link to a WebP of it of at most 256 pixels a side."""


REPORT = {
    "anyOf": [{"$ref": "#/components/schemas/Report"}, {"type": "object", "maxProperties": 0}]
}
DatasetReport = Annotated[dict[str, Any], Meta(extra_json_schema=REPORT)]
"""The report on the images; empty until it is there."""


class Advance(TypedDict):
    """How far a live job has come: the newest numbers of its stage, null where unknown."""

    stage: Stage | None
    step: int | None
    steps: int | None
    epoch: int | None
    loss: float | None
    images_per_second: float | None
    eta_seconds: float | None


class Progress(Advance):
    """``output`` until the end: the newest numbers of the current stage, and what there is."""

    dataset: DatasetReport
    samples: list[Sample]
    retries: NotRequired[list[Retry]]
    """Stages that failed and are tried again."""
    warnings: NotRequired[list[str]]


class Checkpoint(TypedDict):
    """An intermediate checkpoint."""

    step: int
    epoch: int
    url: str
    validation_loss: NotRequired[float]
    best: NotRequired[bool]


class TrainingResult(TypedDict):
    """The result of the training, with the trainer's summary (steps, loss, ...)."""

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
    skipped_updates: NotRequired[int]
    validation: NotRequired[dict[str, Any] | None]
    best: NotRequired[bool]
    seed: NotRequired[int]


class Image(TypedDict):
    """A resulting image, with its parameters."""

    image: str | None
    """Link; null: the image could not be generated."""
    thumbnail: NotRequired[str]
    """Link to a WebP of it of at most 256 pixels a side."""
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
    """A resulting file."""

    name: str
    kind: Literal["checkpoint", "image", "sample", "metrics", "tensorboard", "report"]
    bytes: int
    sha256: str
    url: str


class Results(TypedDict):
    """``output`` at the end: all results there are, however the job ended."""

    train: TrainingResult | None
    """Null: the job trained nothing."""
    inference: list[Image]
    artifacts: list[File]
    dataset: NotRequired[DatasetReport]
    """Only if the job trained."""
    warnings: NotRequired[list[str]]


class CheckResult(TypedDict):
    """``output`` at the end of a dataset check."""

    dataset: DatasetReport
    warnings: NotRequired[list[str]]
    """Those of the report and of the request."""


Output = Annotated[Mapping[str, Any], one_of("Progress", "Results", "CheckResult")]


class JobStatus(TypedDict):
    """A job in full; also the body of webhooks."""

    id: str
    status: Status
    delayTime: Annotated[int, Meta(ge=0)]
    """Milliseconds from submission to the first GPU worker."""
    executionTime: Annotated[int, Meta(ge=0)]
    """Milliseconds from the first GPU worker to the end."""
    gpu: str
    """The device that the job started on."""
    input: dict[str, Any]
    """The request's ``input``."""
    output: Output
    error: NotRequired[str]
    """Why a job failed or timed out."""
    queue: NotRequired[QueuePosition]
    """Only while the job is IN_QUEUE."""


class Piece(TypedDict):
    """The whole output at one moment."""

    output: Output


class Stream(TypedDict):
    """New output of a job."""

    id: str
    status: Status
    stream: Annotated[list[Piece], Meta(max_length=1)]


class Purged(TypedDict):
    """How many jobs were cancelled."""

    removed: Annotated[int, Meta(ge=0)]
    status: Literal["completed"]


class JobCounts(TypedDict):
    """A key's jobs by state."""

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
    """Jobs and workers of the endpoint."""

    jobs: JobCounts
    workers: WorkerCounts


class Budget(TypedDict):
    """How much of a budget is used, and how much is allowed."""

    used: int
    allowed: int


class Budgets(TypedDict):
    """The budgets of a key."""

    live_jobs: Budget
    """Jobs that have not ended."""
    kept_jobs: Budget
    """Jobs that are kept with their results, ended ones included."""
    request_bytes: Budget
    """Bytes of the requests of all kept jobs."""
    body_bytes: Budget
    """Bytes of request bodies that arrive, or wait to, at this gateway."""
    upload_bytes: Budget
    """Bytes of all kept uploads, unfinished ones with their whole size, and of what checks keep."""
    unfinished_uploads: Budget
    upload_parts: Budget
    """Files of all kept uploads in the store."""
    model_bytes: Budget
    """Bytes of models from URLs and the hub that live and failed jobs start from, each once."""
    waiting_requests: Budget
    """Long polls and streams at this gateway."""


class DatasetPicture(TypedDict):
    """A picture of a dataset, as it is trained on."""

    number: Annotated[int, Meta(ge=1)]
    """By which it is changed."""
    file: str
    """Its path in the archive; a long one keeps its end."""
    caption: str
    source: str
    """Where the main prompt is from: `name`, `text`, `yaml`, `folder`, `missing`, or `edit`."""
    files: list[str]
    """The caption and option files that apply to it, the nearest first."""
    bucket: str
    """The size at which it is trained on, such as `512x512`."""
    max_caption_length: int
    """In characters; tags of a caption beyond it are left out."""
    multiply: float
    """How often it is trained on per epoch, on average."""
    remarks: list[str]
    """What of it is not used as it was given."""
    use: bool
    """Whether it is trained on."""
    preview: str | None
    """Link to a WebP of at most 256 pixels a side; only the first 1000 pictures have one."""


class DatasetPage(TypedDict):
    """A page of the pictures of a job's dataset, in the order of the archive."""

    page: Annotated[int, Meta(ge=1)]
    pages: Annotated[int, Meta(ge=1)]
    pictures: list[DatasetPicture]


class MetricsPoint(TypedDict):
    """What a training has reported of one step; numbers that it has not are left out."""

    step: int
    epoch: int
    time: float
    """Seconds since 1970, in UTC."""
    loss: NotRequired[float]
    """The mean over the last steps."""
    lr: NotRequired[float]
    text_encoder_lr: NotRequired[float]
    """Only if the text encoder has a learning rate of its own."""
    images_per_second: NotRequired[float]
    validation_loss: NotRequired[float]
    """Of the images that are held out."""


class Metrics(TypedDict):
    """The curves of a training so far, each step once, in order."""

    points: list[MetricsPoint]
    last_step: int | None
    """The last step that is known, for the next ``after``; null: there is none yet."""


class JobSummary(TypedDict):
    """A job in a list; times in UTC."""

    id: str
    kind: Line
    draws: bool
    """Whether images were asked for: a training may have none."""
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
    queue: NotRequired[QueuePosition]
    progress: NotRequired[Advance]
    """Until the job has ended; ``queue`` while it is IN_QUEUE."""
    preview: NotRequired[str]
    """Link to a thumbnail of the first image or the newest sample; what is in a bucket has none."""
    warnings: NotRequired[int]
    """Their number, if it is not 0; left out also where the job's report is large."""


class JobPage(TypedDict):
    """Jobs, newest first."""

    jobs: list[JobSummary]
    next: str | None
    """The value for ``cursor``; null: this is the last page."""


class Removed(TypedDict):
    """A job that was deleted for good."""

    id: str
    deleted: Literal[True]


class RemovedCheckpoint(TypedDict):
    """A checkpoint that was deleted for good."""

    id: str
    """The job's."""
    step: int
    deleted: Literal[True]


class WebhookDelivery(TypedDict):
    """One try to deliver a webhook."""

    id: str
    """Of the event: the same for all its tries."""
    event: WebhookEvent
    attempt: int
    at: str
    """UTC: when it is due, later when its outcome was recorded."""
    status: int | None
    """HTTP status of a successful delivery."""
    reason: str | None
    """Why the delivery failed."""


class WebhookDeliveries(TypedDict):
    """Deliveries of a job's webhooks, newest first."""

    deliveries: list[WebhookDelivery]


class Session(TypedDict):
    """What a key may do."""

    scopes: list[Literal["read", "submit", "admin", "operate"]]
    """`read`: look at its jobs; `submit`: submit and change them; `admin`: delete them; `operate`:
    look after the whole service."""
