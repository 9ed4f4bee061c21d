"""Wait for a job, or any job of an owner, to change, whichever gateway writes it."""

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
    """Wakes requests that wait for a job, or for an owner's jobs, when this gateway writes one."""

    def __init__(self) -> None:
        self._waiting: defaultdict[str, list[asyncio.Event]] = defaultdict(list)

    def notify(self, *names: str) -> None:
        """A job with this id, or one of this owner, was written."""
        for name in names:
            for changed in self._waiting.get(name, ()):
                changed.set()

    async def changes(self, name: str, seconds: float = inf) -> AsyncGenerator[None, None]:
        """Yield whenever there may be something new: now, after each change, and at the end.

        No change after the first step is missed. Close the iterator (``aclosing``) when leaving
        it early.

        Args:
            name: the id of the job to watch, or the owner.
            seconds: from now to the last step.
        """
        deadline = monotonic() + seconds
        changed = asyncio.Event()
        self._waiting[name].append(changed)
        try:
            yield
            while (left := deadline - monotonic()) > 0:
                await _wait(changed, min(left, POLL_SECONDS))
                changed.clear()
                yield
        finally:
            self._waiting[name].remove(changed)
            if not self._waiting[name]:
                del self._waiting[name]


async def _wait(changed: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await changed.wait()
