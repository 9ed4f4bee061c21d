"""The envelope of a message: CloudEvents 1.0 in binary mode."""

from __future__ import annotations

from datetime import UTC, datetime

from msgspec import Struct

from shared.messaging.messages import Message, encode, stable_id, type_of
from shared.telemetry import tracing

SUBJECT_LENGTH = 255
"""Headers that do not fit into a frame would cost the connection; a job's id has 36 letters."""


class Envelope(Struct, frozen=True, kw_only=True):
    """CloudEvents attributes and AMQP properties beside the body."""

    id: str
    source: str
    type: str
    time: str
    subject: str = ""
    reply_to: str | None = None
    user_id: str | None = None
    """The login that the broker verified."""
    traceparent: str | None = None
    """W3C trace context of what the message was sent for; None: it belongs to no trace."""
    tracestate: str = ""


def envelope_for(message: Message, *, source: str, reply_to: str | None = None) -> Envelope:
    """An envelope; equal bodies from the same source get the same id."""
    return Envelope(
        id=stable_id(source, encode(message).decode()),
        source=source,
        type=type_of(message),
        time=datetime.now(UTC).isoformat(),
        subject=subject_of(message.job),
        reply_to=reply_to,
        **tracing.kept(tracing.context()),
    )


def subject_of(job: str) -> str:
    """What the envelopes of a job's messages name it."""
    return job[:SUBJECT_LENGTH]
