"""Dead letters: what is kept of a message that could not be handled."""

from __future__ import annotations

from hashlib import sha256

import msgspec
from msgspec import Struct

from shared.messaging.messages import AnyMessage, JobRequested, decode

LIMIT_REASON = "delivery_limit"
"""Delivered too often; the reason that RabbitMQ gives."""


class Undecodable(Exception):
    """The body is not one of our messages; the text says why."""


class DeadLetter(Struct, frozen=True, kw_only=True):
    """One dead-lettered message."""

    queue: str
    """The queue it came from."""
    reason: str
    length: int
    """Bytes of the original body."""
    sha256: str
    """Of the original body, in hexadecimal."""
    body: bytes
    """Empty if the body could hold a user's secrets."""


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


def decode_untrusted(body: bytes) -> AnyMessage:
    """Decode a body that anyone may have published.

    Raises:
        Undecodable: for whatever the decoder raises on a hostile body.
    """
    try:
        return decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Undecodable(f"{type(error).__name__}: {error}") from None
