"""Waiting for a job to change, whichever gateway writes it."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import suppress
from typing import Self

LOOK_SECONDS = 1.0
"""A change that another gateway wrote is seen after this time at the latest."""


class ChangeNotifier:
    """Wakes those who wait for a job when this gateway has written it."""

    def __init__(self) -> None:
        self._waiting: defaultdict[str, list[asyncio.Event]] = defaultdict(list)

    def tell(self, job_id: str) -> None:
        """The job was written."""
        for event in self._waiting.get(job_id, ()):
            event.set()

    def watch(self, job_id: str) -> Watch:
        """Notice every change from now on."""
        return Watch(self._waiting, job_id)


class Watch:
    """A hold on one job's changes; a context manager."""

    def __init__(self, waiting: defaultdict[str, list[asyncio.Event]], job_id: str) -> None:
        self._waiting = waiting
        self._job_id = job_id
        self._event = asyncio.Event()

    def __enter__(self) -> Self:
        self._waiting[self._job_id].append(self._event)
        return self

    def __exit__(self, *_: object) -> None:
        events = self._waiting[self._job_id]
        events.remove(self._event)
        if not events:
            del self._waiting[self._job_id]

    async def wait(self, seconds: float) -> None:
        """Return at the next change that was not waited for yet, or when it is time to look."""
        with suppress(TimeoutError):
            async with asyncio.timeout(min(seconds, LOOK_SECONDS)):
                await self._event.wait()
        self._event.clear()
