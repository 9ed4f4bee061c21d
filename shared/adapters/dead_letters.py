"""Dead letters: what is kept of a message that could not be handled or published."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import msgspec

from shared.messaging.json_bounds import OutOfBounds, check_bounds
from shared.messaging.messages import AnyMessage, JobRequested, Message, decode, type_of
from shared.ports import DeadLetter

LIMIT_REASON = "delivery_limit"
"""Delivered too often; the reason that RabbitMQ gives."""
UNBOUNDED_BYTES = 1 << 16
"""Bodies up to this length make few objects, whatever is in them."""
QUEUE_LENGTH = 255
REASON_LENGTH = 1000
JOB_LENGTH = 100
"""Letters kept of a job's id, which is a UUID unless a stranger made it up."""


class Undecodable(Exception):
    """The body is not one of our messages; the text says why."""


def dead_letter(body: bytes, message: AnyMessage | None, *, queue: str, reason: str) -> DeadLetter:
    """The dead letter for a body; ``message`` is None if it could not be decoded.

    Secrets are sealed only once a job is admitted, so of a job's request, and of a body that
    cannot be decoded, only length and digest are kept.
    """
    safe = message is not None and not isinstance(message, JobRequested)
    return DeadLetter(
        queue=queue,
        reason=reason,
        length=len(body),
        sha256=sha256(body).hexdigest(),
        body=body if safe else b"",
    )


def unpublished(body: bytes, message: Message, *, to: str, reason: str) -> DeadLetter:
    """The dead letter for a message that the broker refuses for good: a note of bounded size.

    ``to`` is the queue or the routing key that it was for.
    """
    return DeadLetter(
        queue=to,
        reason=reason,
        length=len(body),
        sha256=sha256(body).hexdigest(),
        body=b"",
        type=type_of(message),
        job=message.job[:JOB_LENGTH],
    )


def readable(letter: DeadLetter) -> DeadLetter:
    """With the type and the job of its message, and within bounds.

    A body that could not be decoded, or could hold a user's secrets, is left out: who dead-letters
    may be a broker, or a stranger.
    """
    try:
        message = decode_untrusted(letter.body) if letter.body else None
    except Undecodable:
        message = None
    known = message is not None and not isinstance(message, JobRequested)
    return DeadLetter(
        queue=_bounded(letter.queue, QUEUE_LENGTH),
        reason=_bounded(letter.reason, REASON_LENGTH),
        length=letter.length,
        sha256=_bounded(letter.sha256, 64),
        body=letter.body if known else b"",
        type=_bounded(type_of(message) if message else letter.type, 64),
        job=_bounded(message.job if message else letter.job, JOB_LENGTH),
    )


def _bounded(text: str, length: int) -> str:
    """Without NUL, which PostgreSQL refuses in any text, and without halves of letters."""
    return text.replace("\0", "").encode(errors="replace").decode()[:length]


def why_unpublishable(message: Message, body: bytes, reason: str) -> str:
    """What the job's owner reads; ``reason`` is the broker's."""
    size = len(body)
    return f"the broker refuses the message {type_of(message)} of {size} bytes for good: {reason}"


def about(dead: DeadLetter) -> dict[str, Any]:
    """What is known of a dead letter besides its body, for headers and logs."""
    known = msgspec.structs.asdict(dead)
    return {name: value for name, value in known.items() if name != "body" and value != ""}


def decode_untrusted(body: bytes) -> AnyMessage:
    """Decode a body that anyone may have published.

    Raises:
        Undecodable: for whatever the decoder raises on a hostile body.
    """
    try:
        if len(body) > UNBOUNDED_BYTES:
            check_bounds(body)
        return decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OutOfBounds) as error:
        raise Undecodable(f"{type(error).__name__}: {error}") from None
