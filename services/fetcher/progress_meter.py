"""How a download gets on, in the words of ``/status``."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any

MEASURED_SECONDS = 2.0
"""Before that a rate says nothing."""


class ProgressMeter:
    """Turns bytes into a rate and a remaining time; any call is a sign of life."""

    def __init__(self, phase: str, tell: Callable[..., Any], keepalive: Callable[[], None]) -> None:
        """``tell`` takes numbers by name; ``keepalive`` is a sign of life without numbers."""
        self.keepalive = keepalive
        self._phase = phase
        self._tell = tell
        self._begun: float | None = None
        self._first = 0

    def bytes(self, done: int, total: int | None) -> None:
        """``done`` bytes have arrived, of ``total`` where that is known."""
        if self._begun is None or done < self._first:
            self._begun, self._first = monotonic(), done
        seconds = monotonic() - self._begun
        rate = (done - self._first) / seconds if seconds > MEASURED_SECONDS else None
        eta = round((total - done) / rate) if rate and total else None
        self._tell(
            phase=self._phase,
            bytes=done,
            bytes_total=total,
            bytes_per_second=rate and round(rate),
            eta_seconds=eta,
        )
