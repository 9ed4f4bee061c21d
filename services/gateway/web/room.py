"""Room in memory for what is large, and turns at it, shared by all owners."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import NamedTuple
from weakref import WeakValueDictionary

from shared.errors import Unavailable

ROOM_SECONDS = 30.0
"""How long one waits for it, or for a turn."""


class _Waiter(NamedTuple):
    owner: str
    size: int
    admitted: asyncio.Future[None]


class Room:
    """Bytes of memory, given in the order of asking; one owner gets half of them at most."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._held: Counter[str] = Counter()
        self._waiting: list[_Waiter] = []

    @asynccontextmanager
    async def hold(self, owner: str, size: int) -> AsyncIterator[None]:
        """Wait for room, and hold it until the block ends.

        Raises:
            Unavailable: there was none in time.
        """
        waiter = _Waiter(owner, size, asyncio.get_running_loop().create_future())
        self._waiting.append(waiter)
        self._admit()
        try:
            await self._admitted(waiter)
            yield
        finally:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
            else:
                self._held[owner] -= size
                self._held += Counter()  # without the owners that hold nothing
            self._admit()

    async def _admitted(self, waiter: _Waiter) -> None:
        try:
            async with asyncio.timeout(ROOM_SECONDS):
                await waiter.admitted
        except TimeoutError:
            raise Unavailable("the room is taken by others") from None

    def _admit(self) -> None:
        """Whoever comes next waits for the first that has its share left, so that it gets room."""
        for waiter in list(self._waiting):
            if self._held[waiter.owner] + waiter.size > self._size // 2:
                continue
            if self._held.total() + waiter.size > self._size:
                return
            self._waiting.remove(waiter)
            self._held[waiter.owner] += waiter.size
            if not waiter.admitted.done():
                waiter.admitted.set_result(None)


class FairLock:
    """Held by one at a time. Of each owner one waits for it, and all others for that one.

    So nobody waits behind all that another owner sends.
    """

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._of: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def hold(self, owner: str) -> AsyncIterator[None]:
        """Wait for the lock, and hold it until the block ends.

        Raises:
            Unavailable: it was not free in time.
        """
        async with AsyncExitStack() as held:
            try:
                async with asyncio.timeout(ROOM_SECONDS):
                    for lock in (self._of.setdefault(owner, asyncio.Lock()), self._lock):
                        await held.enter_async_context(lock)
            except TimeoutError:
                raise Unavailable("others' large requests and answers take too long") from None
            yield
