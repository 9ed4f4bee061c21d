"""Read JSON bodies within time and memory, whoever sends how many of them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from typing import Any, NamedTuple

import msgspec
from aiohttp import web

from services.gateway.jobs.budgets import Budgets
from services.gateway.jobs.request_parser import Invalid
from services.gateway.web.json_bounds import check_bounds
from shared.concurrency import in_thread
from shared.errors import Unavailable

IDLE_SECONDS = 60.0
"""Most time between two pieces of a body."""
LARGE_IDLE_SECONDS = 15.0
"""The same of a large body, whose room others wait for."""
BODY_SECONDS = 300.0
"""Most time for a whole body."""
ROOM_SECONDS = 30.0
"""How long a body waits to be read."""
SMALL_BYTES = 1 << 16
"""A body up to this length never waits for a larger one; longer ones are parsed in a thread."""
SMALL_ROOM = 16 << 20
"""Bytes held of small bodies."""


class Bodies:
    """Reads bodies; those for which there is no room wait unread, where they cost nothing."""

    def __init__(self, budgets: Budgets, memory: int) -> None:
        """``memory`` is how many bytes of large bodies are held."""
        self._budgets = budgets
        self._small, self._large = Room(SMALL_ROOM), Room(memory)
        self._one_large = asyncio.Lock()
        """What is made of a body takes several times its bytes, so one is made at a time."""

    @asynccontextmanager
    async def json(self, request: web.Request, owner: str, most: int) -> AsyncIterator[Any]:
        """The request's body, decoded from JSON; its room is held until the block ends.

        Raises:
            Invalid: the body is not JSON, or incomplete, or has too many values.
            BudgetExceeded: the owner sends too much at once.
            Unavailable: others' bodies take all the room, and do not end.
            web.HTTPRequestEntityTooLarge: it has more than ``most`` bytes.
            web.HTTPRequestTimeout: it does not arrive in time.
        """
        size = most if request.content_length is None else request.content_length
        _check_size(size, most)
        is_large = size > SMALL_BYTES
        room = self._large if is_large else self._small
        with self._budgets.in_flight("body_bytes", owner, size):
            async with room.hold(owner, size):
                body = bytearray(size)  # at once, because memory that grows is copied
                try:
                    await _fill(body, request, is_large=is_large)
                    async with self._one_large if is_large else nullcontext():
                        decoded = await in_thread(_decoded, body) if is_large else _decoded(body)
                        body.clear()
                        yield decoded
                finally:
                    body.clear()  # an error's traceback may keep the array itself for longer


class _Waiter(NamedTuple):
    owner: str
    size: int
    admitted: asyncio.Future[None]


class Room:
    """Bytes for bodies, given in the order of asking; one owner gets half of them at most."""

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
            raise Unavailable("the room for bodies is taken by others") from None

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


async def _fill(body: bytearray, request: web.Request, *, is_large: bool) -> None:
    """Read the whole body, and shorten the array to it."""
    idle = min(LARGE_IDLE_SECONDS, IDLE_SECONDS) if is_large else IDLE_SECONDS
    try:
        async with asyncio.timeout(BODY_SECONDS):
            del body[await _read_into(body, request, idle) :]
    except TimeoutError:
        raise web.HTTPRequestTimeout(
            text=f"the body must come within {BODY_SECONDS:g} s, and not be silent for {idle:g} s"
        ) from None
    except (web.RequestPayloadError, ConnectionError) as error:
        raise Invalid([f"the request's body broke off: {error}"]) from None


async def _read_into(body: bytearray, request: web.Request, idle: float) -> int:
    """The number of bytes read."""
    end = 0
    while True:
        async with asyncio.timeout(idle):
            piece = await request.content.readany()
        if not piece:
            return end
        _check_size(end + len(piece), len(body))
        body[end : end + len(piece)] = piece
        end += len(piece)


def _check_size(size: int, most: int) -> None:
    if size > most:
        raise web.HTTPRequestEntityTooLarge(
            max_size=most,
            actual_size=size,
            text=f"the request is larger than {most} bytes; put the images behind data_url",
        )


def _decoded(body: bytes | bytearray) -> Any:
    try:
        check_bounds(body)
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise Invalid([f"the request is not JSON: {error}"]) from None
