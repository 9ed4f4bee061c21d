"""Exchange, queues and bindings, the same for every bus."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from msgspec import Struct

from shared.messaging.messages import Stage

EXCHANGE = "everydream"
DEAD_LETTERS = "everydream.dead"
DELIVERY_LIMIT = 20
MAX_MESSAGE_BYTES = 16 * 1024 * 1024
"""The largest body that admission counts on: RabbitMQ 4's default, and what deploy/rabbitmq.conf
sets. A broker that takes less refuses the message, which fails the job."""


class Quorum(NamedTuple):
    """How the broker keeps the queues; the same for all services."""

    delivery_limit: int = DELIVERY_LIMIT
    """Deliveries of a message before it is a dead letter."""
    group_size: int | None = None
    """Nodes that hold a copy of a queue when it is made; None: as the broker is set."""


class Queue(Struct, frozen=True):
    """A durable queue and the routing keys bound to it."""

    name: str
    bindings: tuple[str, ...]
    former_bindings: tuple[str, ...] = ()
    """Of earlier versions; removed when the queue is declared."""
    single_active_consumer: bool = False


FETCHER = Queue("fetcher", ("staging.due",), former_bindings=("job.submitted",))
TRAINER = Queue("trainer", ("dataset.staged",))
INFERENCER_SAMPLES = Queue("inferencer.samples", ("checkpoint.sampled",))
INFERENCER_RESULTS = Queue("inferencer.results", ("checkpoint.final", "model.staged"))
NOTIFIER_PUBLISH = Queue("notifier.publish", ("bucket.due", "checkpoint.final", "images.generated"))
NOTIFIER_WEBHOOKS = Queue("notifier.webhooks", ("webhook.due",))
GATEWAY_INTAKE = Queue("gateway.intake", ("job.requested",))
GATEWAY_RECORDER = Queue(
    "gateway.recorder",
    (
        "staging.started",
        "staging.progressed",
        "staging.interrupted",
        "dataset.staged",
        "model.staged",
        "bucket.checked",
        "training.*",
        "checkpoint.sampled",
        "checkpoint.saved",
        "checkpoint.final",
        "resume_point.saved",
        "generation.*",
        "images.generated",
        "samples.generated",
        "publication.*",
        "artifacts.published",
        "webhook.delivered",
        "webhook.failed",
        "stage.failed",
        "gateway.beat",
    ),
    former_bindings=("staging.*",),
    single_active_consumer=True,
)

QUEUES: tuple[Queue, ...] = (
    FETCHER,
    TRAINER,
    INFERENCER_SAMPLES,
    INFERENCER_RESULTS,
    NOTIFIER_PUBLISH,
    NOTIFIER_WEBHOOKS,
    GATEWAY_INTAKE,
    GATEWAY_RECORDER,
)

RESERVED_NAMES = frozenset(
    {"amq", "control", EXCHANGE, *(queue.name.partition(".")[0] for queue in QUEUES)}
)
"""First words of names at the broker that are its own or ours: of no other program's queues."""

JOB_ENDS = ("job.completed", "job.failed", "job.cancelled", "job.timed_out")
"""How a job ends. Workers up to version 0.2.0 bind their reply queues to these."""
ENDED_JOBS = "inferencer.ended_jobs"
"""A headers exchange, bound to these: it passes a job's end on to who is bound by that job's id.

It is made by the workers who need it. Its name is one that the login of the inferencer has always
had the rights to.
"""

STAGE_QUEUES: dict[Stage, Queue] = {
    "staging": FETCHER,
    "bucket_check": NOTIFIER_PUBLISH,
    "training": TRAINER,
    "generation": INFERENCER_RESULTS,
    "model_publication": NOTIFIER_PUBLISH,
    "image_publication": NOTIFIER_PUBLISH,
}


def is_bound(bindings: Iterable[str], key: str) -> bool:
    """Whether the exchange routes a key to a queue with these bindings.

    In a binding ``*`` stands for one word, ``#`` for any number.
    """
    words = key.split(".")
    return any(_matches(binding.split("."), words) for binding in bindings)


def _matches(pattern: Sequence[str], words: Sequence[str]) -> bool:
    if not pattern:
        return not words
    head, rest = pattern[0], pattern[1:]
    if head == "#":
        return any(_matches(rest, words[skipped:]) for skipped in range(len(words) + 1))
    return bool(words) and head in ("*", words[0]) and _matches(rest, words[1:])
