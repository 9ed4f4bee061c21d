"""Envelopes as AMQP properties and headers: CloudEvents 1.0 in binary mode."""

from __future__ import annotations

from datetime import datetime
from functools import partial
from hashlib import sha256
from typing import Any

import aio_pika
from aio_pika.abc import AbstractIncomingMessage
from pamqp import commands

from shared.messaging.envelope import Envelope
from shared.messaging.messages import AnyMessage, stable_id, type_of
from shared.telemetry import tracing

UNREADABLE = "x-unreadable"
"""The only header of a message whose properties cannot be decoded; it says why."""

_decode = commands.Basic.Properties.unmarshal


def tolerate_unreadable_properties() -> None:
    """Have the library hand out messages whose properties it cannot decode, marked as such.

    Otherwise it closes the connection, with all that is consumed on it, at every redelivery of one
    message that has a byte in its properties which is no UTF-8, a far date, or a deep table.
    """
    commands.Basic.Properties.unmarshal = _decode_or_mark  # type: ignore[method-assign, assignment]


def _decode_or_mark(properties: commands.Basic.Properties, flags: int, data: bytes) -> None:
    try:
        _decode(properties, flags, data)
    except Exception as error:  # noqa: BLE001 - whatever a stranger's bytes make the decoder raise
        for name in properties.attributes():
            setattr(properties, name, None)
        properties.headers = {UNREADABLE: f"the properties: {type(error).__name__}: {error}"}


def to_amqp(body: bytes, envelope: Envelope) -> aio_pika.Message:
    return aio_pika.Message(
        body,
        headers=_headers(envelope),
        content_type="application/json",
        message_id=envelope.id,
        timestamp=datetime.fromisoformat(envelope.time),
        reply_to=envelope.reply_to,
    )


def _headers(envelope: Envelope) -> dict[str, Any]:
    headers = {
        "cloudEvents_specversion": "1.0",
        "cloudEvents_id": envelope.id,
        "cloudEvents_source": envelope.source,
        "cloudEvents_type": envelope.type,
        "cloudEvents_time": envelope.time,
        "cloudEvents_subject": envelope.subject,
        "traceparent": envelope.traceparent,
        "tracestate": envelope.tracestate,
    }
    return {name: value for name, value in headers.items() if value}


def envelope_of(incoming: AbstractIncomingMessage, message: AnyMessage) -> Envelope:
    """The envelope of a message from any producer; attributes it left out are filled in.

    Without an id, equal bodies from the same source count as the same event.
    """
    attribute = partial(_attribute, incoming)
    source = attribute("source") or incoming.app_id or incoming.user_id or "unknown"
    digest = sha256(incoming.body).hexdigest()
    trace = (header_text(incoming.headers.get(name)) for name in ("traceparent", "tracestate"))
    return Envelope(
        id=attribute("id") or incoming.message_id or stable_id(source, digest),
        source=source,
        type=type_of(message),
        time=attribute("time") or (incoming.timestamp.isoformat() if incoming.timestamp else ""),
        subject=attribute("subject") or message.job,
        reply_to=incoming.reply_to,
        user_id=incoming.user_id,
        **tracing.kept(tracing.parse(*trace)),
    )


def _attribute(incoming: AbstractIncomingMessage, name: str) -> str:
    """A CloudEvents attribute, under either of the prefixes that its AMQP binding allows."""
    headers = incoming.headers
    return header_text(headers.get(f"cloudEvents_{name}") or headers.get(f"cloudEvents:{name}"))


def header_text(value: object) -> str:
    """A header's value as a text; empty: it is not there."""
    if value is None:
        return ""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
