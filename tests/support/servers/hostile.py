"""A server that answers HTTP as badly as one can, over bare sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar

from shared.concurrency import cancelled
from tests.support.servers.process import HOST

PIECE = b"<a/>" * 16_384
TURNS = 5
"""Of the loop, in which a connection that is there comes here. asyncio's server, closed before,
leaves it open.
"""
_writer: ContextVar[asyncio.StreamWriter] = ContextVar("writer")
"""To whoever is answered."""


class Hostile:
    """Answers each request by a script, and counts what it got rid of."""

    def __init__(self, answer: Callable[[Hostile, str], Awaitable[None]]) -> None:
        self._answer = answer
        self.url = ""
        self.sent = 0
        self.requests: list[str] = []
        self.left = asyncio.Event()
        """Set when a client closes its connection."""
        self._serving: dict[asyncio.StreamWriter, asyncio.Task[None]] = {}

    async def send(self, data: bytes) -> None:
        _writer.get().write(data)
        await _writer.get().drain()
        self.sent += len(data)

    async def for_ever(self, data: bytes, *, pause: float = 0.0) -> None:
        while True:
            await self.send(data)
            await asyncio.sleep(pause)

    async def whole(self, status: int, body: bytes) -> None:
        await self.send(head(status, f"Content-Length: {len(body)}") + body)

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._serving[writer] = asyncio.create_task(self._serve(reader, writer))

    async def close(self) -> None:
        """End every connection, also one whose task has not begun, which then never does."""
        for writer, task in self._serving.items():
            await cancelled(task)
            writer.transport.abort()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._serve_requests(reader, writer)
        finally:
            self.left.set()
            writer.transport.abort()

    async def _serve_requests(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = dict(line.lower().split(": ", 1) for line in lines if line)
                if "expect" in headers:
                    writer.write(head(100))
                await reader.readexactly(int(headers.get("content-length", 0)))
                _writer.set(writer)
                self.requests.append(first)
                await self._answer(self, first)


def head(status: int, *headers: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status} Some Reason", *headers, "", ""]).encode()


@asynccontextmanager
async def hostile(answer: Callable[[Hostile, str], Awaitable[None]]) -> AsyncIterator[Hostile]:
    """Run it on a port of its own, in this loop."""
    server = Hostile(answer)
    listening = await asyncio.start_server(server.accept, HOST, 0)
    server.url = f"http://{HOST}:{listening.sockets[0].getsockname()[1]}"
    try:
        yield server
    finally:
        for _ in range(TURNS):
            await asyncio.sleep(0)
        listening.close()
        await server.close()
