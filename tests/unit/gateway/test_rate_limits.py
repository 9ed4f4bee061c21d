"""Rate limits of a key."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.gateway.web.rate_limits import RATES, Rate, RateLimiter, TooManyRequests


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_so_many_at_once_and_then_as_fast_as_tokens_come() -> None:
    clock = Clock()
    limit = RateLimiter(Rate(4, 2.0, 9), clock)
    assert [limit.take("a") for _ in range(4)] == [0, 0, 0, 0]
    assert limit.take("a") == pytest.approx(0.5)
    clock.now += 0.5
    assert limit.take("a") == 0
    assert limit.take("a") == pytest.approx(0.5)


def test_being_refused_costs_nothing() -> None:
    clock = Clock()
    limit = RateLimiter(Rate(1, 1.0, 9), clock)
    limit.take("a")
    clock.now += 0.75
    assert [limit.take("a") for _ in range(5)] == pytest.approx([0.25] * 5)
    clock.now += 0.25
    assert limit.take("a") == 0


def test_one_key_does_not_wait_for_another() -> None:
    limit = RateLimiter(Rate(1, 10.0, 9), Clock())
    assert limit.take("a") == 0
    assert limit.take("a") > 0
    assert limit.take("b") == 0


def test_a_long_rest_fills_the_bucket_no_further_than_full() -> None:
    clock = Clock()
    limit = RateLimiter(Rate(3, 3.0, 9), clock)
    clock.now += 1e6
    assert [limit.take("a") > 0 for _ in range(4)] == [False, False, False, True]


def test_only_so_many_answers_are_awaited_at_once_and_by_each_key() -> None:
    limit = RateLimiter(Rate(10, 1.0, 2), Clock())
    with limit.slot("a"), limit.slot("a"):
        with pytest.raises(TooManyRequests) as refused, limit.slot("a"):
            pass
        assert refused.value.seconds == 1.0
        with limit.slot("b"):
            pass
    with limit.slot("a"):
        pass


def test_a_client_refused_for_its_rate_holds_no_slot() -> None:
    clock = Clock()
    limit = RateLimiter(Rate(1, 1.0, 1), clock)
    with limit.slot("a"):
        pass
    with pytest.raises(TooManyRequests), limit.slot("a"):
        pass
    clock.now += 1.0
    with limit.slot("a"):
        pass


def test_the_published_limits() -> None:
    numbers = {name: (rate.requests, rate.seconds, rate.at_once) for name, rate in RATES.items()}
    assert numbers == {
        "run": (1000, 10.0, 200),
        "runsync": (2000, 10.0, 400),
        "status": (2000, 10.0, 400),
        "stream": (2000, 10.0, 400),
        "cancel": (100, 10.0, 20),
        "command": (100, 10.0, 20),
        "resend": (100, 10.0, 20),
        "delete": (100, 10.0, 20),
        "purge": (2, 10.0, 2),
        "upload": (1000, 10.0, 8),
        "operate": (100, 10.0, 20),
    }


@settings(deadline=None)
@given(st.lists(st.floats(0, 3), max_size=60), st.integers(1, 5))
def test_no_window_ever_lets_more_than_twice_the_rate_through(gaps: list[float], most: int) -> None:
    clock = Clock()
    limit = RateLimiter(Rate(most, 2.0, 9), clock)
    taken: list[float] = []
    for gap in gaps:
        clock.now += gap
        if limit.take("a") == 0:
            taken.append(clock.now)
    for start in taken:
        assert len([at for at in taken if start <= at < start + 2.0]) <= 2 * most
