"""Types of the response bodies for operators.

They name the jobs of all keys by their ids, and tell nothing of what is in them: no prompt, address
or link.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypedDict

from msgspec import Meta

from services.gateway.ports import Line
from shared.messaging.messages import Stage
from shared.request import WebhookEvent

Service = Literal["fetcher", "trainer", "inferencer", "notifier"]
Count = Annotated[int, Meta(ge=0)]


class BusyWorker(TypedDict):
    """A worker, and the work that it has claimed; one with several claims is named for each."""

    worker: str
    """`service/host-process`; the host is the container's where there is one."""
    service: Service
    job: str
    stage: Stage
    attempt: int
    claimed_at: str | None
    """UTC; null: an earlier version has recorded the claim."""
    silent_seconds: float | None
    """Since its last heartbeat; null: this gateway has heard none, or another one records them."""
    gpu: str | None
    """null: the service needs none, or the worker did not say."""
    version: str | None
    """null: the worker did not say."""


class FreePlaces(TypedDict):
    """How many more stages of its kind the workers of a service would take."""

    service: Service
    places: Count | None
    """By the consumers of its queue; null: the broker does not answer."""


class WorkerPage(TypedDict):
    """Who works, the work that was due first at the beginning."""

    busy: list[BusyWorker]
    free: list[FreePlaces]
    next: str | None
    """The cursor of the next page of busy ones; null: this is the last."""


class StageQueue(TypedDict):
    """What there is to do of a stage, of all released jobs."""

    stage: Stage
    queue: str
    claimed: Count
    waiting: Count
    """Due by now, and claimed by nobody."""
    delayed: Count
    """To be tried again later."""
    oldest_seconds: float | None
    """How long the first of those waits; null: none does."""


class LineQueue(TypedDict):
    """Jobs that wait for their turn, before any of their stages."""

    line: Line
    waiting: Count
    oldest_seconds: float | None
    """Since the first of them was created; null: none waits."""


class BrokerQueue(TypedDict):
    """A queue of the broker; null: the broker does not answer."""

    queue: str
    messages: Count | None
    consumers: Count | None


class Queues(TypedDict):
    """What waits, and for whom."""

    stages: list[StageQueue]
    lines: list[LineQueue]
    broker: list[BrokerQueue]


class DeadLetterItem(TypedDict):
    """A message that could not be handled or published."""

    id: str
    at: str
    """UTC: when it was given up; where that is not known, when it was recorded."""
    queue: str
    """The one it came from, or was for."""
    reason: str
    type: str | None
    """null: it could not be read."""
    job: str | None
    length: Count
    """Bytes of the message."""
    sha256: str
    excerpt: dict[str, str | int | float]
    """Fields of the message that hold nothing of its user."""
    requeue: str | None
    """Why it cannot be requeued; null: it can be."""


class DeadLetterPage(TypedDict):
    """Dead letters, newest first."""

    dead_letters: list[DeadLetterItem]
    next: str | None
    """The cursor of the next page; null: this is the last."""


class SettledDeadLetter(TypedDict):
    """A dead letter that is one no more."""

    id: str
    done: Literal["requeued", "deleted"]


class GivenUpWebhook(TypedDict):
    """A webhook that failed and that is not tried again."""

    job: str
    webhook: str
    """Its id."""
    event: WebhookEvent
    host: str | None
    """Of its address; null: it has none."""
    reason: str
    attempts: Count
    at: str
    """UTC: when the last attempt failed."""


class GivenUpWebhooks(TypedDict):
    """Webhooks that were given up, of a page of jobs; those that failed last come first."""

    webhooks: list[GivenUpWebhook]
    next: str | None
    """The cursor of the next page; null: this is the last."""


class LocalDisk(TypedDict):
    """The disk that has the store's folder; others may use it, too."""

    total_bytes: Count
    free_bytes: Count
    total_files: Count | None
    """Inodes; null: there is no limit."""
    free_files: Count | None


class KeptBytes(TypedDict):
    """Bytes in the store by kind, as far as the record counts them: not the results of jobs."""

    uploads: Count
    datasets: Count
    """Of checks, with the pages that tell of their pictures."""
    models: Count
    """That requests named, and that are still needed."""


class Disk(TypedDict):
    """What is stored, and how much more fits."""

    version: str | None
    """Of this gateway; null: it is not installed as a package."""
    store: LocalDisk | None
    """null: the store is not in a folder."""
    kept: KeptBytes
    database_bytes: Count
