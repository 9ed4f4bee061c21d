"""Rate limits of a key: requests in a time, and concurrent requests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal


class TooManyRequests(Exception):
    """A limit is exceeded; retry after ``seconds``."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"too many requests; try again in {seconds:.3g} s")
        self.seconds = seconds


@dataclass(frozen=True)
class Rate:
    """The most requests in some seconds, and at the same time."""

    requests: int
    seconds: float
    at_once: int


Operation = Literal[
    "run", "runsync", "status", "stream", "cancel", "command", "resend", "delete", "purge",
    "upload", "operate",
]  # fmt: skip
"""Each has a limit of its own."""

RATES: Mapping[Operation, Rate] = {
    "run": Rate(1000, 10.0, 200),
    "runsync": Rate(2000, 10.0, 400),
    "status": Rate(2000, 10.0, 400),
    "stream": Rate(2000, 10.0, 400),
    "cancel": Rate(100, 10.0, 20),
    "command": Rate(100, 10.0, 20),
    "resend": Rate(100, 10.0, 20),
    "delete": Rate(100, 10.0, 20),
    "purge": Rate(2, 10.0, 2),
    "upload": Rate(1000, 10.0, 8),
    "operate": Rate(100, 10.0, 20),
}
"""RunPod's published limits for an endpoint.

Operations that RunPod does not list use the closest one's limit; the one for uploads is our own.
"""
SOON = 1.0
"""When to retry after too many concurrent requests."""


class RateLimiter:
    """A bucket of ``rate.requests`` tokens for each key, refilled evenly over ``rate.seconds``."""

    def __init__(self, rate: Rate, clock: Callable[[], float]) -> None:
        """``clock`` gives monotonic seconds."""
        self._rate = rate
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}
        self._concurrent: Counter[str] = Counter()

    @contextmanager
    def slot(self, owner: str) -> Iterator[None]:
        """Take a token, and count as a concurrent request until the handler has returned.

        Raises:
            TooManyRequests: there is no token, or no room for a concurrent request.
        """
        if self._concurrent[owner] >= self._rate.at_once:
            raise TooManyRequests(SOON)
        if seconds := self.take(owner):
            raise TooManyRequests(seconds)
        self._concurrent[owner] += 1
        try:
            yield
        finally:
            self._concurrent[owner] -= 1

    def take(self, owner: str) -> float:
        """Take a token and return 0; or take none and return the seconds until there is one."""
        now, full = self._clock(), float(self._rate.requests)
        per_second = full / self._rate.seconds
        tokens, then = self._buckets.get(owner, (full, now))
        tokens = min(tokens + (now - then) * per_second, full)
        if tokens < 1.0:
            return (1.0 - tokens) / per_second
        self._buckets[owner] = (tokens - 1.0, now)
        return 0.0
