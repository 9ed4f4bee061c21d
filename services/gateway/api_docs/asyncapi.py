"""The AsyncAPI document of everything that goes over the broker, made from messages and topology.

The services are described as one, each by operations of its own; so are the programs beside them
that speak AMQP: a producer submits jobs, a consumer follows what is said.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import get_args

from services.gateway.api_docs.schemas import (
    EXAMPLE,
    REQUEST_SCHEMA,
    SCHEMA_REF,
    Schema,
    components,
    plain,
    request_schemas,
)
from shared.messaging import messages as m
from shared.messaging.messages import Message, type_of
from shared.messaging.topology import EXCHANGE, QUEUES, REPLY_QUEUE_BINDINGS, Queue

VERSION = "3.0.0"
Kind = type[Message]
WORKERS = ("fetcher", "trainer", "inferencer", "notifier")
PUBLISHES: Mapping[str, tuple[Kind, ...]] = {
    "gateway": (
        m.JobSubmitted, m.BucketDue, m.JobStarted, m.JobCompleted, m.JobFailed, m.JobCancelled,
        m.JobTimedOut, m.JobRefused, m.WebhookDue, m.GatewayHeartbeat,
    ),
    "fetcher": (
        m.StagingStarted, m.StagingProgressed, m.StagingInterrupted, m.DatasetStaged,
        m.ModelStaged, m.StageFailed,
    ),
    "trainer": (
        m.TrainingStarted, m.TrainingProgressed, m.TrainingInterrupted, m.CheckpointSampled,
        m.CheckpointSaved, m.ResumePointSaved, m.CheckpointFinal, m.StageFailed,
    ),
    "inferencer": (
        m.GenerationStarted, m.GenerationProgressed, m.GenerationInterrupted, m.ImagesGenerated,
        m.SamplesGenerated, m.StageFailed,
    ),
    "notifier": (
        m.PublicationStarted, m.PublicationProgressed, m.PublicationInterrupted, m.BucketChecked,
        m.ArtifactsPublished, m.WebhookDelivered, m.WebhookFailed, m.StageFailed,
    ),
    "producer": (m.JobRequested,),
}  # fmt: skip
"""By service, what it publishes on the exchange."""
REPLIES: tuple[Kind, ...] = (m.ClaimGranted, m.CommandIssued, m.ClaimRefused)
"""What the gateway sends to one worker's queue, past the exchange."""
PRODUCER_RECEIVES: tuple[Kind, ...] = (
    m.JobRefused, m.JobStarted, m.JobCompleted, m.JobFailed, m.JobCancelled, m.JobTimedOut,
)  # fmt: skip
"""What a producer's login lets it hear."""

ABOUT = (
    "What the services say to one another over RabbitMQ, and what other programs may say and hear."
    f" All goes over the topic exchange `{EXCHANGE}`, where a message's type is its routing key,"
    " but the answers to one receiver, which go to its queue. The envelope is CloudEvents 1.0 in"
    " binary mode. Messages may come more than once: the same id is the same event."
)
ENVELOPE: Schema = {
    "type": "object",
    "properties": {
        "cloudEvents_specversion": {"const": "1.0"},
        "cloudEvents_id": {"type": "string", "description": "The same for the same event."},
        "cloudEvents_source": {"type": "string", "description": "Who says it."},
        "cloudEvents_type": {"type": "string", "description": "The message's type."},
        "cloudEvents_time": {"type": "string", "format": "date-time"},
        "cloudEvents_subject": {"type": "string", "description": "The job's id."},
        "traceparent": {"type": "string"},
        "reply_to": {
            "type": "string",
            "description": "An AMQP property, no header: the queue that answers go to.",
        },
        "user_id": {
            "type": "string",
            "description": "An AMQP property, no header: the login, which the broker verifies.",
        },
    },
}
SAID = ["specversion", "id", "source", "type", "time"]
"""Attributes that our own messages always have; what producers leave out is filled in."""
JOB_REQUESTED: Schema = {"type": "job.requested", "request": EXAMPLE}


def document(version: str) -> Schema:
    """The whole document; ``version`` is the service's."""
    kinds = every_message()
    _, shapes = components(kinds)
    shapes["JobRequested"]["properties"]["request"] = {"$ref": f"{SCHEMA_REF}{REQUEST_SCHEMA}"}
    ours = {**ENVELOPE, "required": [f"cloudEvents_{each}" for each in SAID]}
    return {
        "asyncapi": VERSION,
        "info": {
            "title": "EveryDream",
            "version": version,
            "description": ABOUT,
            "license": {"name": "MIT"},
        },
        "defaultContentType": "application/json",
        "channels": _channels(kinds),
        "operations": dict(_operations(kinds)),
        "components": {
            "messages": {kind.__name__: _message(kind) for kind in kinds},
            "schemas": {
                "Envelope": ENVELOPE,
                "OurEnvelope": ours,
                **shapes,
                **request_schemas(),
            },
        },
    }


def every_message() -> tuple[Kind, ...]:
    """In the order of ``shared/messaging/messages.py``."""
    return get_args(m.AnyMessage)


def _message(kind: Kind) -> Schema:
    asked = kind is m.JobRequested
    said = plain(kind.__doc__ or "")
    return {
        "name": type_of(kind),
        "title": kind.__name__,
        **({"summary": said} if said else {}),
        "contentType": "application/json",
        "headers": {"$ref": f"{SCHEMA_REF}{'Envelope' if asked else 'OurEnvelope'}"},
        "payload": {"$ref": f"{SCHEMA_REF}{kind.__name__}"},
        **({"examples": [{"name": "training", "payload": JOB_REQUESTED}]} if asked else {}),
    }


# --- Channels ---------------------------------------------------------------------------------


def _channels(kinds: Iterable[Kind]) -> Schema:
    said = [kind for kind in kinds if kind not in REPLIES]
    return {
        **{kind.__name__: _on_exchange(type_of(kind), [kind]) for kind in said},
        "Everything": _on_exchange("#", said),
        "Worker": _queue("A worker's control queue, which its claims name in `reply_to`.", REPLIES),
        "Replies": _queue("A producer's own, which it names in `reply_to`.", [m.JobRefused]),
    }


def _on_exchange(address: str, kinds: Iterable[Kind]) -> Schema:
    exchange = {"name": EXCHANGE, "type": "topic", "durable": True, "autoDelete": False}
    bound = {"is": "routingKey", "exchange": exchange, "bindingVersion": "0.3.0"}
    return {"address": address, "messages": _messages(kinds), "bindings": {"amqp": bound}}


def _queue(said: str, kinds: Iterable[Kind]) -> Schema:
    return {"address": None, "description": said, "messages": _messages(kinds)}


def _messages(kinds: Iterable[Kind]) -> Schema:
    names = [kind.__name__ for kind in kinds]
    return {name: {"$ref": f"#/components/messages/{name}"} for name in names}


# --- Operations -------------------------------------------------------------------------------

Named = tuple[str, Schema]


def _operations(kinds: Iterable[Kind]) -> Iterator[Named]:
    yield from _sent()
    for queue in QUEUES:
        who = queue.name.partition(".")[0]
        for kind in bound_to(queue.bindings, kinds):
            yield _operation("receive", who, kind.__name__, _from(queue))
    for kind in bound_to(REPLY_QUEUE_BINDINGS, kinds):
        for who in WORKERS:
            yield _operation("receive", who, kind.__name__, "By its control queue.")
    yield from _claims()
    for kind in PRODUCER_RECEIVES:
        yield _operation("receive", "producer", kind.__name__)
    said = "A consumer's login lets it hear everything, and say nothing."
    yield _operation("receive", "consumer", "Everything", said)


def _sent() -> Iterator[Named]:
    for who, kinds in PUBLISHES.items():
        for kind in kinds:
            name, operation = _operation("send", who, kind.__name__)
            yield name, {**operation, **_reply(kind)}


def _claims() -> Iterator[Named]:
    """Past the exchange, from the gateway to one worker."""
    yield _operation("send", "gateway", "Worker")
    for who in WORKERS:
        yield _operation("receive", who, "Worker")


def bound_to(bindings: Iterable[str], kinds: Iterable[Kind]) -> list[Kind]:
    """What a queue with these bindings gets."""
    return [
        kind for kind in kinds if any(fnmatchcase(type_of(kind), binding) for binding in bindings)
    ]


def _from(queue: Queue) -> str:
    alone = " One gateway at a time." if queue.single_active_consumer else ""
    return f"From the queue `{queue.name}`.{alone}"


def _operation(action: str, who: str, channel: str, said: str = "") -> Named:
    return f"{who}-{action}-{channel}", {
        "action": action,
        "channel": {"$ref": f"#/channels/{channel}"},
        "tags": [{"name": who}],
        **({"description": said} if said else {}),
    }


def _reply(kind: Kind) -> Schema:
    """Where answers go, of those who ask."""
    replies: dict[Kind, str] = {
        m.JobRequested: "Replies",
        **dict.fromkeys(get_args(m.Started), "Worker"),
    }
    if kind not in replies:
        return {}
    return {
        "reply": {
            "address": {"location": "$message.header#/reply_to"},
            "channel": {"$ref": f"#/channels/{replies[kind]}"},
        }
    }
