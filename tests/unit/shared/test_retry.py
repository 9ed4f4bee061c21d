"""Delays between retries."""

import asyncio

import pytest

from shared.retry import FAILURES_ALLOWED, Reconnects, delay, reconnect_delay, webhook_delay


def test_a_stage_is_retried_after_one_heartbeat_then_three_then_nine() -> None:
    assert [delay(failures, 10.0) for failures in (1, 2, 3)] == [10.0, 30.0, 90.0]


def test_no_stage_waits_longer_than_sixty_heartbeats() -> None:
    assert [delay(failures, 1.0) for failures in (4, 5, 50)] == [27.0, 60.0, 60.0]


def test_the_third_failure_in_a_row_is_one_too_many() -> None:
    assert FAILURES_ALLOWED == 3


def test_a_webhook_is_tried_five_times_and_given_up() -> None:
    waits = [webhook_delay(attempts, 10.0) for attempts in range(7)]

    assert waits == [0.0, 10.0, 60.0, 600.0, 3600.0, None, None]


@pytest.mark.parametrize("heartbeat", [0.2, 1.0, 30.0])
def test_a_faster_heartbeat_shortens_every_backoff(heartbeat: float) -> None:
    assert delay(2, heartbeat) == pytest.approx(3 * heartbeat)
    assert webhook_delay(2, heartbeat) == pytest.approx(6 * heartbeat)


def test_a_server_that_is_away_is_asked_at_once_and_then_ever_less_often() -> None:
    waits = [reconnect_delay(attempt) for attempt in range(8)]

    assert waits == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0])


def test_a_server_that_is_away_for_years_is_still_asked_every_five_seconds() -> None:
    assert reconnect_delay(10**9) == 5.0


async def test_reconnects_begin_at_once_and_then_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    async for attempt in Reconnects():
        assert waits == pytest.approx([0.1, 0.2, 0.4][:attempt])
        if attempt == 3:
            break
