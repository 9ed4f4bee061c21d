"""Wait for a job to change, whichever gateway writes it."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator
from contextlib import suppress
from math import inf
from time import monotonic

POLL_SECONDS = 1.0
"""A change that another gateway wrote is noticed after this time at the latest."""


class ChangeNotifier:
    """Wakes requests that wait for a job when this gateway writes it."""

    def __init__(self) -> None:
        self._waiting: defaultdict[str, list[asyncio.Event]] = defaultdict(list)

    def notify(self, job_id: str) -> None:
        """The job was written."""
        for changed in self._waiting.get(job_id, ()):
            changed.set()

    async def changes(self, job_id: str, seconds: float = inf) -> AsyncGenerator[None, None]:
        """Yield whenever the job should be read: now, after each change, and at the end.

        No change after the first step is missed. Close the iterator (``aclosing``) when leaving
        it early.

        Args:
            job_id: of the job to watch.
            seconds: from now to the last step.
        """
        deadline = monotonic() + seconds
        changed = asyncio.Event()
        self._waiting[job_id].append(changed)
        try:
            yield
            while (left := deadline - monotonic()) > 0:
                await _wait(changed, min(left, POLL_SECONDS))
                changed.clear()
                yield
        finally:
            self._waiting[job_id].remove(changed)
            if not self._waiting[job_id]:
                del self._waiting[job_id]


async def _wait(changed: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await changed.wait()
