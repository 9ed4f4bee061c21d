"""Delays between retries, in seconds."""

from __future__ import annotations

import asyncio
from typing import Self

FAILURES_ALLOWED = 3
"""Consecutive failures of a stage that end the job."""

WEBHOOK_DELAYS = (0.0, 10.0, 60.0, 600.0, 3600.0)
"""Seconds before each delivery attempt of a webhook, scaled by heartbeat / 10."""


def delay(failures: int, heartbeat: float) -> float:
    """Seconds before a stage is retried after ``failures`` (>= 1) in a row.

    One heartbeat, then three, then nine, at most sixty: by default 10 s, 30 s, 90 s.
    """
    return heartbeat * min(3.0 ** (failures - 1), 60.0)


def webhook_delay(attempts: int, heartbeat: float) -> float | None:
    """Seconds before the next delivery after ``attempts`` (>= 0) failed ones; None: give up."""
    if attempts >= len(WEBHOOK_DELAYS):
        return None
    return WEBHOOK_DELAYS[attempts] * heartbeat / 10.0


def reconnect_delay(attempt: int) -> float:
    """Seconds before retrying a server that does not answer: 0.1 s, doubling, at most 5 s."""
    return float(min(0.1 * 2.0 ** min(attempt, 16), 5.0))


class Reconnects:
    """Endless attempts, numbered from 0: the first at once, each later one after a delay.

    Not an async generator: leaving one early costs the event loop a task that closes it.
    """

    def __init__(self) -> None:
        self._attempt = -1

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> int:
        if self._attempt >= 0:
            await asyncio.sleep(reconnect_delay(self._attempt))
        self._attempt += 1
        return self._attempt
