"""How often a key may ask: a token bucket for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Rate:
    """So many requests in so many seconds."""

    requests: int
    seconds: float


RUN = Rate(1000, 10.0)
STATUS = Rate(2000, 10.0)
CANCEL = Rate(100, 10.0)
"""RunPod's published limits of one endpoint."""


class Limit:
    """A bucket of ``rate.requests`` tokens for each key, filled evenly over ``rate.seconds``."""

    def __init__(self, rate: Rate, clock: Callable[[], float]) -> None:
        """``clock`` gives seconds that never go back."""
        self._rate = rate
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}

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
