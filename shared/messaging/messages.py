"""Every message that the services exchange, on one page.

A message's type is its routing key on the topic exchange ``everydream``; facts are in the past
tense. The body is JSON with the type as its tag, so one decoder reads them all. The envelope is
CloudEvents 1.0 in binary mode. Files are in the object store; messages carry their keys.
"""

from __future__ import annotations

import uuid
from typing import Any, Literal

import msgspec
from msgspec import Struct, field

from shared.request import AddedLora, Command, Inference, ModelSource, Train, WebhookEvent

Stage = Literal[
    "staging", "bucket_check", "training", "generation", "model_publication", "image_publication"
]
"""What a worker claims: there is at most one live claim per (job, stage)."""

STAGES: tuple[Stage, ...] = (
    "staging",
    "bucket_check",
    "training",
    "generation",
    "model_publication",
    "image_publication",
)


NAMESPACE = uuid.UUID("6f1d8c1e-5a0b-5d4f-9d53-0c1f6b1f7c11")
"""All deterministic ids of the project are uuid5 in this namespace."""


def stable_id(*parts: object) -> str:
    """The same id for the same parts, in every process."""
    return str(uuid.uuid5(NAMESPACE, "/".join(str(part) for part in parts)))


class Message(Struct, frozen=True, kw_only=True, tag_field="type", omit_defaults=True):
    """Any message on the broker; ``job`` is the CloudEvents subject."""

    job: str = ""


class StageFact(Message, frozen=True, kw_only=True):
    """Published by a worker under a claim; dropped unless the claim is the live one."""

    stage: Stage
    claim: str
    attempt: int = 0
    worker: str = ""


class LargeMessage(Message, frozen=True, kw_only=True):
    """A message that may grow with what a user sends or a job makes."""

    stored: dict[str, str] = field(default_factory=dict)
    """Fields over 64 KiB: the key of the object that has a field's JSON, by its name or
    ``part.field``. The field is left empty, a text ``stored``."""


class LargeFact(StageFact, frozen=True, kw_only=True):
    """The same for a worker's fact."""

    stored: dict[str, str] = field(default_factory=dict)
    """See :class:`LargeMessage`."""


class WorkStarted(StageFact, frozen=True, kw_only=True):
    """A worker claims a stage; the answer is sent to its reply queue."""

    gpu: str = ""
    version: str = ""
    """Of the worker; empty: not given."""
    asked_by: str | None = None
    """The claim whose fact requests the work; empty if no worker's fact does; None: not given."""


# --- Jobs: requested, admitted, ended (gateway) -----------------------------------------------


class JobRequested(Message, frozen=True, kw_only=True, tag="job.requested"):
    """A job requested over the broker; ``request`` is the body that HTTP clients POST."""

    request: dict[str, Any]

    def __repr__(self) -> str:
        return f"JobRequested(job={self.job!r}, request hidden)"


class JobRefused(Message, frozen=True, kw_only=True, tag="job.refused"):
    """A request had mistakes and was not admitted; a job that already has this id is as it was."""

    mistakes: list[str]


class Submission(LargeMessage, frozen=True, kw_only=True):
    """What is to be done for a job."""

    run: int
    train: Train | None = None
    model: ModelSource | None = None
    """The model to generate with, if nothing is to be trained."""
    inference: tuple[Inference, ...] = ()


class JobSubmitted(Submission, frozen=True, kw_only=True, tag="job.submitted"):
    """A job was admitted, for whoever listens; it may have to wait for its turn."""


class StagingDue(Submission, frozen=True, kw_only=True, tag="staging.due"):
    """It is a job's turn; requests staging."""


class BucketDue(Message, frozen=True, kw_only=True, tag="bucket.due"):
    """It is the turn of a job with a user's bucket; requests a check of the bucket."""

    run: int


class JobStarted(Message, frozen=True, kw_only=True, tag="job.started"):
    """The first GPU claim was granted."""

    run: int
    gpu: str


class JobCompleted(LargeMessage, frozen=True, kw_only=True, tag="job.completed"):
    run: int
    output: dict[str, Any]


class JobFailed(Message, frozen=True, kw_only=True, tag="job.failed"):
    run: int
    error: str


class JobCancelled(Message, frozen=True, kw_only=True, tag="job.cancelled"):
    run: int


class JobTimedOut(Message, frozen=True, kw_only=True, tag="job.timed_out"):
    run: int
    error: str


# --- Claims (gateway to one worker's reply queue, by the default exchange) --------------------


class ClaimGranted(LargeMessage, frozen=True, kw_only=True, tag="claim.granted"):
    """The worker may start; a repeated claim gets the same answer."""

    stage: Stage
    claim: str
    attempt: int
    resume_point: str | None = None
    """Store prefix of the newest resume point (training only)."""
    submitted_at: float = 0.0
    """When the job was submitted, seconds since the epoch (GPU stages only, as what follows)."""
    started_at: float = 0.0
    """When it was first worked on by a GPU."""
    warnings: tuple[str, ...] = ()
    """The job's so far, without those of its dataset and its training."""
    drawn: tuple[DrawnSample, ...] = ()
    """The samples so far (generation only)."""
    s3: str | None = None
    """The sealed ``s3Config`` (stages that use the bucket only); see shared/keys.py."""
    samples: tuple[Artifact, ...] = ()
    """All samples of the job, published with the images (image publication only)."""
    commands: dict[Command, int] = field(default_factory=dict, name="wishes")
    """Numbers of the user's commands that no earlier attempt carried out (training only)."""
    traceparent: str | None = None
    """Of the request that the job came with: what is done under the claim is a part of that."""
    tracestate: str = ""


class CommandIssued(Message, frozen=True, kw_only=True, tag="claim.asked"):
    """The user's commands for the work under this claim; repeated until they are carried out.

    A command is identified by its number: a repeated one is the same command.
    """

    stage: Stage
    claim: str
    commands: dict[Command, int] = field(name="wishes")


class ClaimRefused(Message, frozen=True, kw_only=True, tag="claim.refused"):
    """The worker may not start, or has to stop its work under this claim."""

    stage: Stage
    claim: str
    reason: str


# --- Fetcher ----------------------------------------------------------------------------------


class StagingStarted(WorkStarted, frozen=True, kw_only=True, tag="staging.started"):
    pass


class StagingProgressed(StageFact, frozen=True, kw_only=True, tag="staging.progressed"):
    progress: dict[str, Any] = field(default_factory=dict)


class StagingInterrupted(StageFact, frozen=True, kw_only=True, tag="staging.interrupted"):
    pass


class DatasetStaged(LargeFact, frozen=True, kw_only=True, tag="dataset.staged"):
    """Dataset and base model are checked and in the store; requests training."""

    train: Train
    inference: tuple[Inference, ...] = ()
    dataset: str
    """Store prefix of the dataset: images and ``manifest.json``."""
    base_model: str
    """Store prefix of the base model: a diffusers folder."""
    report: dict[str, Any]
    """The pre-flight report shown by ``/status``."""
    pictures: str = ""
    """Store prefix of the pages that tell of every picture, and of previews."""
    dataset_bytes: int = 0
    """Of the dataset in the store."""
    pictures_bytes: int = 0
    """Of pages and previews in the store."""
    model_bytes: int = 0
    """Of the base model in the store, if the request named it by a URL or a hub id."""
    lora_base: str = ""
    """Store prefix of the model that the base model is a LoRA for; empty: it is no LoRA."""


class ModelStaged(LargeFact, frozen=True, kw_only=True, tag="model.staged"):
    """A finished model is checked and in the store; requests generation without training."""

    inference: tuple[Inference, ...]
    model: str
    """Store prefix of a diffusers folder."""
    clip_skip: int = 0
    name: str = ""
    """Name of the model's checkpoint, for people."""
    sha256: str = ""
    """SHA-256 of the model's checkpoint file; empty: unknown."""
    warnings: tuple[str, ...] = ()
    """What of the model was left out or taken from elsewhere."""
    model_bytes: int = 0
    """Of the model in the store, if the request named it by a URL or a hub id."""
    loras: tuple[AddedLora, ...] = ()
    """Those in the folder, in the request's order."""
    lora_base: str = ""
    """Store prefix of the model that they are added to; empty: there are none."""


# --- Trainer ----------------------------------------------------------------------------------


class TrainingStarted(WorkStarted, frozen=True, kw_only=True, tag="training.started"):
    pass


class TrainingProgressed(StageFact, frozen=True, kw_only=True, tag="training.progressed"):
    progress: dict[str, Any] = field(default_factory=dict)


class TrainingInterrupted(StageFact, frozen=True, kw_only=True, tag="training.interrupted"):
    pass


class CheckpointSampled(LargeFact, frozen=True, kw_only=True, tag="checkpoint.sampled"):
    """A snapshot of the weights is in the store; requests a row of samples.

    That needs no claim: samples may be lost, and a repeated row is the same.
    """

    snapshot: str
    """Store prefix of the trained networks' weights, in fp16; at step 0 it may have none."""
    base_model: str
    """Store prefix of the base model, which has the networks that the snapshot has not."""
    clip_skip: int = 0
    row: SampleRow
    command: int = field(default=0, name="wish")
    """Number of the newest ``sample`` command carried out by this; 0: none."""


class CheckpointSaved(StageFact, frozen=True, kw_only=True, tag="checkpoint.saved"):
    """An intermediate checkpoint is in the store."""

    artifact: Artifact
    step: int
    epoch: int
    validation_loss: float | None = None
    """Present if images are held out of training."""
    replaced: tuple[str, ...] = ()
    """Keys of earlier checkpoints about to be deleted, because of ``keep_checkpoints``."""
    command: int = field(default=0, name="wish")
    """Number of the newest ``save`` command carried out by this; 0: none."""


class ResumePointSaved(StageFact, frozen=True, kw_only=True, tag="resume_point.saved"):
    """Training can resume from here on any worker."""

    prefix: str
    step: int
    epoch: int


class CheckpointFinal(LargeFact, frozen=True, kw_only=True, tag="checkpoint.final"):
    """Training is done; requests generation and publication of the model."""

    inference: tuple[Inference, ...] = ()
    row: SampleRow | None = None
    """The last row of samples, drawn with the images; None: there are no prompts."""
    clip_skip: int = 0
    model: str
    """Store prefix of the trained model: a diffusers folder, with the checkpoint as its weights."""
    lora_base: str = ""
    """Store prefix of the model that the checkpoint is a LoRA for; empty: it is no LoRA."""
    checkpoint: Artifact
    """A single file in the original Stable Diffusion key layout, or a LoRA in kohya's."""
    checkpoints: tuple[SavedCheckpoint, ...] = ()
    """Intermediate checkpoints, oldest first."""
    records: tuple[Artifact, ...] = ()
    """Metrics and TensorBoard's event file; before them a LoRA merged into its base model."""
    html_report: Artifact | None = None
    """``report.html``; the one that comes with the images replaces it."""
    report_facts: str = ""
    """Store key of what a report says of the training; empty: there is none."""
    summary: dict[str, Any]
    """steps, updates, epochs, images, loss, precision, optimizer, attention, warnings.

    If images are held out, also ``validation``, and whether the last checkpoint is the ``best``.
    """


# --- Inferencer -------------------------------------------------------------------------------


class GenerationStarted(WorkStarted, frozen=True, kw_only=True, tag="generation.started"):
    pass


class GenerationProgressed(StageFact, frozen=True, kw_only=True, tag="generation.progressed"):
    progress: dict[str, Any] = field(default_factory=dict)


class GenerationInterrupted(StageFact, frozen=True, kw_only=True, tag="generation.interrupted"):
    pass


class ImagesGenerated(LargeFact, frozen=True, kw_only=True, tag="images.generated"):
    """All images are in the store, in the order of the request; requests their publication."""

    images: tuple[DrawnImage, ...]
    samples: tuple[DrawnSample, ...] = ()
    """The last row of samples."""
    warnings: tuple[str, ...] = ()
    """What went wrong with the last row, on which no image depends, and what was drawn slowly."""
    html_report: Artifact | None = None
    """``report.html``, if a model was trained."""


class SamplesGenerated(LargeMessage, frozen=True, kw_only=True, tag="samples.generated"):
    """A row of samples is in the store; published without a claim, perhaps more than once."""

    samples: tuple[DrawnSample, ...]
    warnings: tuple[str, ...] = ()
    """Said of the whole job once, however many rows have them."""


# --- Notifier ---------------------------------------------------------------------------------


class PublicationStarted(WorkStarted, frozen=True, kw_only=True, tag="publication.started"):
    pass


class PublicationProgressed(StageFact, frozen=True, kw_only=True, tag="publication.progressed"):
    progress: dict[str, Any] = field(default_factory=dict)


class PublicationInterrupted(StageFact, frozen=True, kw_only=True, tag="publication.interrupted"):
    pass


class BucketChecked(StageFact, frozen=True, kw_only=True, tag="bucket.checked"):
    """The user's bucket accepts our writes, as far as could be checked."""

    warning: str | None = None
    """Why it could not be checked; None: it was."""


class ArtifactsPublished(LargeFact, frozen=True, kw_only=True, tag="artifacts.published"):
    """The stage's files are in the user's bucket; ``urls`` maps store keys to presigned URLs."""

    urls: dict[str, str]


class WebhookDue(LargeMessage, frozen=True, kw_only=True, tag="webhook.due"):
    """Post this webhook now, once; the gateway schedules the retries.

    ``webhook_id`` is the same for all attempts at one event; ``attempt`` counts them.
    """

    run: int
    attempt: int
    url: str
    webhook_id: str
    event: WebhookEvent = "completed"
    body: str
    """The exact text to sign and send."""


class WebhookDelivered(Message, frozen=True, kw_only=True, tag="webhook.delivered"):
    run: int
    attempt: int
    webhook_id: str
    status: int


class WebhookFailed(Message, frozen=True, kw_only=True, tag="webhook.failed"):
    run: int
    attempt: int
    webhook_id: str
    reason: str
    permanent: bool = False
    """410, a forbidden address or not a URL: never retry."""
    retry_after: float | None = None
    """Seconds, from the receiver's Retry-After header."""


# --- Any worker, and the gateway to itself ----------------------------------------------------


class StageFailed(StageFact, frozen=True, kw_only=True, tag="stage.failed"):
    """A stage failed."""

    kind: Literal["refused", "passing"]
    reason: str


class GatewayHeartbeat(Message, frozen=True, kw_only=True, tag="gateway.beat"):
    """The clock of the supervising gateway, which counts only its own heartbeats."""

    gateway: str
    number: int


# --- Parts of messages ------------------------------------------------------------------------


class Artifact(Struct, frozen=True, kw_only=True):
    """One file in the store."""

    name: str
    kind: Literal["checkpoint", "image", "sample", "metrics", "tensorboard", "report"]
    key: str
    bytes: int
    sha256: str


class SavedCheckpoint(Struct, frozen=True, kw_only=True):
    artifact: Artifact
    step: int
    epoch: int
    validation_loss: float | None = None
    best: bool = False
    """No other checkpoint of the training, the last one included, has a lower validation loss."""


class DrawnImage(Struct, frozen=True, kw_only=True):
    """One image of the result, with the parameters it was generated from."""

    artifact: Artifact | None
    """None: it could not be generated; see ``error``."""
    thumbnail: str | None = None
    """Store key of a small WebP of it; None: there is none."""
    prompt: str
    negative_prompt: str | None = None
    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    scheduler: str
    seed: int
    passback: str | None = None
    error: str | None = None


class SampleRow(Struct, frozen=True, kw_only=True):
    """All sample prompts at one step; the samples depend only on this and the weights."""

    step: int
    """Steps done so far."""
    epoch: int
    """Epochs done so far."""
    prompts: tuple[str, ...]
    seed: int
    """Of the first prompt; prompt i has seed + i in every row, so that rows are comparable."""
    resolution: int
    """Pixels of each side."""


class DrawnSample(Struct, frozen=True, kw_only=True):
    """One sample; a job has one for each step and index."""

    artifact: Artifact
    thumbnail: str | None = None
    """Store key of a small WebP of it; None: an earlier version has drawn it."""
    step: int
    epoch: int
    index: int
    """Index of its prompt, from 0."""
    prompt: str
    seed: int


Started = StagingStarted | TrainingStarted | GenerationStarted | PublicationStarted
Progressed = StagingProgressed | TrainingProgressed | GenerationProgressed | PublicationProgressed
Interruption = (
    StagingInterrupted | TrainingInterrupted | GenerationInterrupted | PublicationInterrupted
)
Result = (
    DatasetStaged
    | ModelStaged
    | BucketChecked
    | CheckpointFinal
    | ImagesGenerated
    | ArtifactsPublished
)

AnyMessage = (
    JobRequested
    | JobRefused
    | JobSubmitted
    | StagingDue
    | BucketDue
    | JobStarted
    | JobCompleted
    | JobFailed
    | JobCancelled
    | JobTimedOut
    | ClaimGranted
    | CommandIssued
    | ClaimRefused
    | Started
    | Progressed
    | Interruption
    | Result
    | CheckpointSampled
    | CheckpointSaved
    | SamplesGenerated
    | ResumePointSaved
    | WebhookDue
    | WebhookDelivered
    | WebhookFailed
    | StageFailed
    | GatewayHeartbeat
)

_decoder: msgspec.json.Decoder[AnyMessage] = msgspec.json.Decoder(AnyMessage)
_encoder = msgspec.json.Encoder()


def encode(message: Message) -> bytes:
    """The body of a message: JSON with its type."""
    return _encoder.encode(message)


def decode(body: bytes) -> AnyMessage:
    """The message that a body holds.

    Raises:
        msgspec.DecodeError: not JSON, an unknown type, or a field that is missing or wrong.
    """
    return _decoder.decode(body)


def claim_of(message: Message) -> str:
    """The claim under which a worker published this; empty: not a worker's fact."""
    return message.claim if isinstance(message, StageFact) else ""


def type_of(message: Message | type[Message]) -> str:
    """The message's type: its routing key and CloudEvents type."""
    return str(message.__struct_config__.tag)
