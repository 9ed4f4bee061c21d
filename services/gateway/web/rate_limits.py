"""How often a key may ask, and how many answers it may await at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal


class TooManyRequests(Exception):
    """Come back after so many seconds."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"too many requests; try again in {seconds:.3g} s")
        self.seconds = seconds


@dataclass(frozen=True)
class Rate:
    """So many requests in so many seconds, and so many at once."""

    requests: int
    seconds: float
    at_once: int


Operation = Literal[
    "run", "runsync", "status", "stream", "cancel", "command", "resend", "delete", "purge", "upload"
]
"""What is counted together."""

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
}
"""RunPod's published limits of one endpoint; what it lacks counts as its like, uploads are ours."""
SOON = 1.0
"""When to come back if too many answers are awaited."""


class RateLimiter:
    """A bucket of ``rate.requests`` tokens for each key, filled evenly over ``rate.seconds``."""

    def __init__(self, rate: Rate, clock: Callable[[], float]) -> None:
        """``clock`` gives seconds that never go back."""
        self._rate = rate
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}
        self._inside: Counter[str] = Counter()

    @contextmanager
    def slot(self, owner: str) -> Iterator[None]:
        """Take a token and one of the places, for as long as the answer takes.

        Raises:
            TooManyRequests: there is none.
        """
        if self._inside[owner] >= self._rate.at_once:
            raise TooManyRequests(SOON)
        if seconds := self.wait(owner):
            raise TooManyRequests(seconds)
        self._inside[owner] += 1
        try:
            yield
        finally:
            self._inside[owner] -= 1

    def wait(self, owner: str) -> float:
        """Take a token, and return 0; or seconds until there is one, and take none."""
        per_second = self._rate.requests / self._rate.seconds
        tokens = self._tokens(owner, per_second)
        if tokens < 1.0:
            return (1.0 - tokens) / per_second
        self._buckets[owner] = (tokens - 1.0, self._clock())
        return 0.0

    def _tokens(self, owner: str, per_second: float) -> float:
        tokens, then = self._buckets.get(owner, (float(self._rate.requests), self._clock()))
        return min(tokens + (self._clock() - then) * per_second, float(self._rate.requests))
