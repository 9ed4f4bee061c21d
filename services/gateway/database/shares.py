"""How many calls to the database are made at a time, for whom."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary

from services.gateway.request_owner import request_owner

OF_AN_OWNER = 2
"""Of one owner's requests."""
OWN = 8
"""Of the gateway's own work: bursts of it leave connections to requests."""


class Shares:
    """Lets calls in as they come, a few at a time; the rest wait for those of the same owner.

    A call is where a request takes its time, so this also shares the gateway's processor: between
    two steps of one owner's request, another can put in only a few.
    """

    def __init__(self) -> None:
        self._of: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._own = asyncio.Semaphore(OWN)

    @asynccontextmanager
    async def hold(self) -> AsyncIterator[None]:
        """Wait for a place of the owner whose request this is. Do not hold two at a time."""
        owner = request_owner()
        if owner is None:
            share = self._own
        else:
            share = self._of.setdefault(owner, asyncio.Semaphore(OF_AN_OWNER))
        async with share:
            yield
