"""What is kept of a message that nobody could use."""

from __future__ import annotations

from hashlib import sha256

import msgspec
from msgspec import Struct

from shared.messaging.messages import AnyMessage, JobRequested, decode

LIMIT_REASON = "delivery_limit"
"""It was delivered too often; RabbitMQ's own word."""


class Undecodable(Exception):
    """The body is no message of ours; the text says why."""


class DeadLetter(Struct, frozen=True, kw_only=True):
    """One buried message."""

    queue: str
    """Where it waited."""
    reason: str
    length: int
    """Bytes of the body as it came."""
    sha256: str
    """Of the body as it came, in hexadecimal."""
    body: bytes
    """Empty where the body could hold a user's secrets."""


def dead_letter(body: bytes, message: AnyMessage | None, *, queue: str, reason: str) -> DeadLetter:
    """The dead letter for a body and what it was decoded to (None: it could not be).

    Only an admitted job has its secrets sealed: a request for one, and what cannot be read,
    leave nothing but their length and digest.
    """
    safe = message is not None and not isinstance(message, JobRequested)
    return DeadLetter(
        queue=queue,
        reason=reason,
        length=len(body),
        sha256=sha256(body).hexdigest(),
        body=body if safe else b"",
    )


def read(body: bytes) -> AnyMessage:
    """Decode what came from outside.

    Raises:
        Undecodable: in place of everything that a hostile body makes the decoder raise.
    """
    try:
        return decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Undecodable(f"{type(error).__name__}: {error}") from None
