"""Report a download's progress, rate and remaining time for ``/status``."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any

MIN_SECONDS = 2.0
"""No rate is reported before that."""


class ProgressMeter:
    """Turns numbers of bytes into a rate and a remaining time."""

    def __init__(
        self, phase: str, report: Callable[..., Any], keepalive: Callable[[], None]
    ) -> None:
        """``report`` takes numbers by name; ``keepalive`` is a sign of life without numbers."""
        self.keepalive = keepalive
        self._phase = phase
        self._report = report
        self._started: float | None = None
        self._first = 0

    def bytes(self, done: int, total: int | None) -> None:
        """Report that ``done`` bytes have arrived; ``total`` is None if it is not known."""
        if self._started is None or done < self._first:
            self._started, self._first = monotonic(), done
        seconds = monotonic() - self._started
        rate = (done - self._first) / seconds if seconds > MIN_SECONDS else None
        eta = round((total - done) / rate) if rate and total else None
        self._report(
            phase=self._phase,
            bytes=done,
            bytes_total=total,
            bytes_per_second=rate and round(rate),
            eta_seconds=eta,
        )
