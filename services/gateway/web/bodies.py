"""Read JSON bodies within time and memory, whoever sends how many of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from typing import Any

import msgspec
from aiohttp import web

from services.gateway.jobs.budgets import Budgets
from services.gateway.jobs.fields.shown import shown
from services.gateway.jobs.request_parser import Invalid
from services.gateway.web.room import FairLock, Room
from shared.concurrency import in_thread
from shared.messaging.json_bounds import OutOfBounds, check_bounds

IDLE_SECONDS = 60.0
"""Most time between two pieces of a body."""
LARGE_IDLE_SECONDS = 15.0
"""The same of a large body, whose room others wait for."""
BODY_SECONDS = 300.0
"""Most time for a whole body."""
SMALL_BYTES = 1 << 16
"""A body up to this length never waits for a larger one; longer ones are parsed in a thread."""
SMALL_ROOM = 16 << 20
"""Bytes held of small bodies."""


class Bodies:
    """Reads bodies; those for which there is no room wait unread, where they cost nothing."""

    def __init__(self, budgets: Budgets, memory: int, one_large: FairLock) -> None:
        """``memory`` is how many bytes of large bodies are held.

        What is made of a body takes up to twelve times its bytes, so ``one_large`` is at a time.
        """
        self._budgets = budgets
        self._small, self._large = Room(SMALL_ROOM), Room(memory)
        self._one_large = one_large

    @asynccontextmanager
    async def json(self, request: web.Request, owner: str, most: int) -> AsyncIterator[Any]:
        """The request's body, decoded from JSON; its room is held until the block ends.

        Raises:
            Invalid: the body is not JSON, or incomplete, or has too many values.
            BudgetExceeded: the owner sends too much at once.
            Unavailable: others' bodies take all the room, and do not end; or it is long not its
                turn.
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
                    async with self._one_large.hold(owner) if is_large else nullcontext():
                        decoded = await in_thread(_decoded, body) if is_large else _decoded(body)
                        body.clear()
                        yield decoded
                finally:
                    body.clear()  # an error's traceback may keep the array itself for longer


async def _fill(body: bytearray, request: web.Request, *, is_large: bool) -> None:
    """Read the whole body, and shorten the array to it."""
    idle = LARGE_IDLE_SECONDS if is_large else IDLE_SECONDS
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
    if not body.strip():
        raise Invalid(["the request has no body: a JSON object is expected"])
    try:
        check_bounds(body)
        return msgspec.json.decode(body)
    except OutOfBounds as error:
        if error.name is None:
            raise Invalid([f"the request: {error}"]) from None
        twice = f"the request: {shown(error.name)} stands twice in one object"
        raise Invalid([twice]) from None
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise Invalid([f"the request is not JSON: {error}"]) from None
