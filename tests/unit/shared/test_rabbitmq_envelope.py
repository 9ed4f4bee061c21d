"""Envelopes as AMQP properties."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from shared.adapters.rabbitmq_envelope import to_amqp
from shared.messaging.envelope import envelope_for
from shared.messaging.messages import JobCancelled, encode


def test_a_message_has_the_time_of_its_publishing_as_a_property_too() -> None:
    cancelled = JobCancelled(job="a", run=1)

    sent = to_amqp(encode(cancelled), envelope_for(cancelled, source="gateway/1"))

    assert isinstance(sent.timestamp, datetime)
    assert timedelta(0) <= datetime.now(UTC) - sent.timestamp < timedelta(minutes=1)
