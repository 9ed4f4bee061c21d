"""A stranger's message is bounded before objects are made of it, as a body over HTTP is."""

from __future__ import annotations

import pytest

from shared.adapters.dead_letters import UNBOUNDED_BYTES, Undecodable, decode_untrusted
from shared.messaging.json_bounds import MAX_DEPTH, MAX_TOKENS
from shared.messaging.messages import JobRequested

PADDING = " " * UNBOUNDED_BYTES


def requested(value: str) -> bytes:
    text = '{"type": "job.requested", "job": "", "request": {"input": %s}}%s'
    return (text % (value, PADDING)).encode()


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("[" + "[]," * MAX_TOKENS + "0]", f"at most {MAX_TOKENS}"),
        ("[" * MAX_DEPTH + "]" * MAX_DEPTH, f"at most {MAX_DEPTH}"),
        ('{"a": 1, "\\u0061": 2}', "twice in one object"),
    ],
    ids=["broad", "deep", "twice"],
)
def test_a_large_message_of_too_much_is_not_decoded(value: str, reason: str) -> None:
    with pytest.raises(Undecodable, match=reason):
        decode_untrusted(requested(value))


def test_a_long_text_is_not_too_much() -> None:
    message = decode_untrusted(requested('"%s"' % ("a, [{" * MAX_TOKENS)))

    assert isinstance(message, JobRequested)
    assert message.request == {"input": "a, [{" * MAX_TOKENS}
