"""Dead letters: what is kept of a message that could not be handled or published."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import msgspec
from msgspec import Struct

from shared.messaging.json_bounds import OutOfBounds, check_bounds
from shared.messaging.messages import AnyMessage, JobRequested, Message, decode, type_of

LIMIT_REASON = "delivery_limit"
"""Delivered too often; the reason that RabbitMQ gives."""
UNBOUNDED_BYTES = 1 << 16
"""Bodies up to this length make few objects, whatever is in them."""
JOB_LENGTH = 100
"""Letters kept of a job's id, which is a UUID unless a stranger made it up."""


class Undecodable(Exception):
    """The body is not one of our messages; the text says why."""


class DeadLetter(Struct, frozen=True, kw_only=True):
    """One dead-lettered message."""

    queue: str
    """The queue it came from; of one that was never published, the queue or key it was for."""
    reason: str
    length: int
    """Bytes of the original body."""
    sha256: str
    """Of the original body, in hexadecimal."""
    body: bytes
    """Empty if the body could hold a user's secrets, or could not be published."""
    type: str = ""
    """Of a message that could not be published, like the next."""
    job: str = ""


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
