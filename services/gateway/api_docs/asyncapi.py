"""Make the AsyncAPI document of all messages, from the message types and the topology.

One document describes all services, each by operations of its own, and two kinds of programs
beside them: a producer submits jobs, a consumer receives all messages.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import get_args

from services.gateway.api_docs.schemas import (
    REQUEST_SCHEMA,
    SCHEMA_REF,
    Schema,
    components,
    plain,
    request_schemas,
)
from shared.messaging import messages as m
from shared.messaging.messages import Message, type_of
from shared.messaging.topology import EXCHANGE, JOB_ENDS, QUEUES, is_bound

VERSION = "3.0.0"
Kind = type[Message]
WORKERS = ("fetcher", "trainer", "inferencer", "notifier")
PUBLISHES: Mapping[str, tuple[Kind, ...]] = {
    "gateway": (
        m.JobSubmitted, m.StagingDue, m.BucketDue, m.JobStarted, m.JobCompleted, m.JobFailed,
        m.JobCancelled, m.JobTimedOut, m.JobRefused, m.WebhookDue, m.GatewayHeartbeat,
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
"""What the gateway sends directly to a worker's reply queue."""
PRODUCER_RECEIVES: tuple[Kind, ...] = (
    m.JobRefused, m.JobStarted, m.JobCompleted, m.JobFailed, m.JobCancelled, m.JobTimedOut,
)  # fmt: skip
"""What a producer's login allows it to receive."""

ABOUT = (
    "The messages between the services over RabbitMQ, and those that other programs may publish"
    f" and receive. Messages are published on the topic exchange `{EXCHANGE}` with their type as"
    " routing key; only replies to one receiver go directly to its queue. The envelope is"
    " CloudEvents 1.0 in binary mode. Messages may be delivered more than once: the same id is the"
    " same event."
)
ENVELOPE: Schema = {
    "type": "object",
    "properties": {
        "cloudEvents_specversion": {"const": "1.0"},
        "cloudEvents_id": {"type": "string", "description": "The same for the same event."},
        "cloudEvents_source": {"type": "string", "description": "The publisher."},
        "cloudEvents_type": {"type": "string", "description": "The message's type."},
        "cloudEvents_time": {"type": "string", "format": "date-time"},
        "cloudEvents_subject": {"type": "string", "description": "The job's id."},
        "traceparent": {"type": "string"},
        "tracestate": {"type": "string"},
        "reply_to": {
            "type": "string",
            "description": "An AMQP property, not a header: the queue for replies.",
        },
        "user_id": {
            "type": "string",
            "description": "An AMQP property, not a header: the login, which the broker verifies.",
        },
    },
}
OWN_ATTRIBUTES = ["specversion", "id", "source", "type", "time"]
"""Always present in our own messages; for producers, missing ones are filled in."""
JOB_REQUESTED: Schema = {
    "type": "job.requested",
    "request": {
        "input": {
            "train": {"data_url": "https://example.com/photos.zip"},
            "inference": {"prompt": "a unique 123xyz concept name as a superhero"},
        }
    },
}


def document(version: str) -> Schema:
    """The whole document; ``version`` is the service's."""
    kinds = every_message()
    _, schemas = components(kinds)
    schemas["JobRequested"]["properties"]["request"] = {"$ref": f"{SCHEMA_REF}{REQUEST_SCHEMA}"}
    own_envelope = {**ENVELOPE, "required": [f"cloudEvents_{each}" for each in OWN_ATTRIBUTES]}
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
                "OurEnvelope": own_envelope,
                **schemas,
                **request_schemas(),
            },
        },
    }


def every_message() -> tuple[Kind, ...]:
    """In the order of ``shared/messaging/messages.py``."""
    return get_args(m.AnyMessage)


def _message(kind: Kind) -> Schema:
    from_producer = kind is m.JobRequested
    summary = plain(kind.__doc__ or "")
    return {
        "name": type_of(kind),
        "title": kind.__name__,
        **({"summary": summary} if summary else {}),
        "contentType": "application/json",
        "headers": {"$ref": f"{SCHEMA_REF}{'Envelope' if from_producer else 'OurEnvelope'}"},
        "payload": {"$ref": f"{SCHEMA_REF}{kind.__name__}"},
        **({"examples": [{"name": "training", "payload": JOB_REQUESTED}]} if from_producer else {}),
    }


# --- Channels ---------------------------------------------------------------------------------


def _channels(kinds: Iterable[Kind]) -> Schema:
    published = [kind for kind in kinds if kind not in REPLIES]
    return {
        **{kind.__name__: _on_exchange(type_of(kind), [kind]) for kind in published},
        "Everything": _on_exchange("#", published),
        "Worker": _queue("A worker's reply queue, which its claims name in `reply_to`.", REPLIES),
        "Replies": _queue(
            "A producer's reply queue, which it names in `reply_to`.", [m.JobRefused]
        ),
    }


def _on_exchange(address: str, kinds: Iterable[Kind]) -> Schema:
    exchange = {"name": EXCHANGE, "type": "topic", "durable": True, "autoDelete": False}
    bound = {"is": "routingKey", "exchange": exchange, "bindingVersion": "0.3.0"}
    return {"address": address, "messages": _messages(kinds), "bindings": {"amqp": bound}}


def _queue(description: str, kinds: Iterable[Kind]) -> Schema:
    return {"address": None, "description": description, "messages": _messages(kinds)}


def _messages(kinds: Iterable[Kind]) -> Schema:
    names = [kind.__name__ for kind in kinds]
    return {name: {"$ref": f"#/components/messages/{name}"} for name in names}


# --- Operations -------------------------------------------------------------------------------

Named = tuple[str, Schema]


def _operations(kinds: Iterable[Kind]) -> Iterator[Named]:
    for service, published in PUBLISHES.items():
        for kind in published:
            name, operation = _operation("send", service, kind.__name__)
            yield name, {**operation, **_reply(kind)}
    for queue in QUEUES:
        service = queue.name.partition(".")[0]
        single = " One gateway at a time." if queue.single_active_consumer else ""
        text = f"From the queue `{queue.name}`.{single}"
        for kind in bound_to(queue.bindings, kinds):
            yield _operation("receive", service, kind.__name__, text)
    for kind in bound_to(JOB_ENDS, kinds):
        text = "From its reply queue, of jobs whose samples it draws."
        yield _operation("receive", "inferencer", kind.__name__, text)
    yield _operation("send", "gateway", "Worker")
    for service in WORKERS:
        yield _operation("receive", service, "Worker")
    for kind in PRODUCER_RECEIVES:
        yield _operation("receive", "producer", kind.__name__)
    text = "A consumer's login allows it to receive everything and to publish nothing."
    yield _operation("receive", "consumer", "Everything", text)


def bound_to(bindings: Iterable[str], kinds: Iterable[Kind]) -> list[Kind]:
    """The messages that a queue with these bindings receives."""
    return [kind for kind in kinds if is_bound(bindings, type_of(kind))]


def _operation(action: str, service: str, channel: str, text: str = "") -> Named:
    return f"{service}-{action}-{channel}", {
        "action": action,
        "channel": {"$ref": f"#/channels/{channel}"},
        "tags": [{"name": service}],
        **({"description": text} if text else {}),
    }


def _reply(kind: Kind) -> Schema:
    """The reply channel of messages that get a reply."""
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
