"""Send large answers within memory, however many are asked for and however slowly they are read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from aiohttp import web

from services.gateway.web.room import FairLock, Room
from shared.settings import MAX_BODY

AT_ONCE = 2
"""Answers that are held in memory; of one owner half as many."""
PIECE = 1 << 18
SEND_SECONDS = 60.0
"""Most time for sending one, whose room others wait for."""


class LargeAnswers:
    """Makes one large answer at a time, and holds a few until they are sent."""

    def __init__(self, one_large: FairLock) -> None:
        """``one_large`` is held while an answer is made, which takes several times its bytes."""
        self._one_large = one_large
        self._room = Room(AT_ONCE * MAX_BODY)

    @asynccontextmanager
    async def making(self, owner: str) -> AsyncIterator[AbstractAsyncContextManager[None]]:
        """Hold room for a large answer, or a part of one; make it under the lock, then send it.

        Raises:
            Unavailable: others' answers take all the room, and are not read. The lock, too, raises
                it: it was not free in time.
        """
        async with self._room.hold(owner, MAX_BODY):
            yield self._one_large.hold(owner)

    async def send(
        self, request: web.Request, owner: str, make: Callable[[], Awaitable[bytes]]
    ) -> web.StreamResponse:
        """Answer with JSON that is made when there is room for it.

        Raises:
            Unavailable: others' answers take all the room, and are not read; or it is long not its
                turn.
        """
        async with self.making(owner) as one_large:
            async with one_large:
                body = await make()
            return await send_large(request, body)


async def send_large(request: web.Request, body: bytes) -> web.StreamResponse:
    """Answer with JSON for which there is room; cut off who does not read it."""
    response = web.StreamResponse()
    response.content_type = "application/json"
    response.content_length = len(body)
    await response.prepare(request)
    try:
        async with asyncio.timeout(SEND_SECONDS):
            await _write(response, body)
    except TimeoutError:  # nothing else can be said in the middle of an answer
        if request.transport:
            request.transport.abort()
    return response


async def _write(response: web.StreamResponse, body: bytes) -> None:
    """Piece by piece: what the client does not read yet is not copied."""
    view = memoryview(body)
    for start in range(0, len(body), PIECE):
        await response.write(view[start : start + PIECE])
    await response.write_eof()
