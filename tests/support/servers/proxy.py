"""A TCP proxy with faults, in the tests' own loop, between clients and one server.

    async with Proxy("127.0.0.1", rabbitmq.port) as proxy:
        proxy.cut()     # whoever is connected is reset, whoever comes is refused
        proxy.open()    # as if nothing had been

The faults are plain calls: each one holds as soon as it returns.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Literal, Self

from tests.support.servers.process import HOST, free_port

Side = Literal["client", "server"]

PIECE = 1 << 18
"""Bytes that are read at once."""
THROTTLED_PIECES_A_SECOND = 20
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: close with a reset, whatever has not been sent."""
BACKLOG = 128


class Proxy:
    """Listens on ``port`` of the loopback address, and passes on both ways."""

    def __init__(self, target_host: str, target_port: int) -> None:
        self.port = free_port()
        self._target = (target_host, target_port)
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._connections: dict[asyncio.Task[None], list[socket.socket]] = {}
        self._latency = 0.0
        self._rate = 0.0
        self._alive: dict[Side, asyncio.Event] = {
            "client": asyncio.Event(),
            "server": asyncio.Event(),
        }

    async def __aenter__(self) -> Self:
        self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = [*self._connections]
        self.cut()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- what the tests say

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._connections)

    def latency(self, seconds: float) -> None:
        """Let every piece of data come so much later, in each direction."""
        self._latency = seconds

    def throttle(self, bytes_per_second: float) -> None:
        """Pass on no more than this, on each connection and in each direction."""
        self._rate = bytes_per_second

    def half_close(self, towards: Side = "client") -> None:
        """Let one direction die without a word: what is said that way arrives after `open`."""
        self._alive[towards].clear()

    def cut(self) -> None:
        """Reset every connection, and refuse new ones."""
        self._stop_listening()
        for task, sockets in self._connections.items():
            _reset(sockets)
            task.cancel()
        self._connections.clear()

    def open(self) -> None:
        """End all faults; those that a cut has reset must connect anew."""
        self._latency = self._rate = 0.0
        for alive in self._alive.values():
            alive.set()
        if self._listener is None:
            self._listen()

    # -- what the proxy does

    def _listen(self) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, self.port))
        listener.listen(BACKLOG)
        listener.settimeout(0)
        self._listener = listener
        self._accepting = asyncio.create_task(self._accept(listener))

    def _stop_listening(self) -> None:
        if self._listener and self._accepting:
            self._accepting.cancel()
            _reset([self._listener])
            self._listener = self._accepting = None

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            client, _ = await asyncio.get_running_loop().sock_accept(listener)
            sockets = [client]
            task = asyncio.create_task(self._serve(sockets))
            self._connections[task] = sockets
            task.add_done_callback(lambda done: self._connections.pop(done, None))

    async def _serve(self, sockets: list[socket.socket]) -> None:
        """Connect on, and pass on until both ways have ended or one side is gone."""
        (client,) = sockets
        server = socket.socket()
        server.settimeout(0)
        sockets.append(server)
        try:
            await asyncio.get_running_loop().sock_connect(server, self._target)
            async with asyncio.TaskGroup() as both_ways:
                both_ways.create_task(self._pass_on(client, server, "server"))
                both_ways.create_task(self._pass_on(server, client, "client"))
        except* OSError:
            pass  # the other side is told by the reset
        finally:
            _reset(sockets)

    async def _pass_on(self, source: socket.socket, sink: socket.socket, towards: Side) -> None:
        loop = asyncio.get_running_loop()
        sink.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while piece := await loop.sock_recv(source, PIECE):
            await self._alive[towards].wait()
            await asyncio.sleep(self._latency)
            await self._send(sink, piece)
        sink.shutdown(socket.SHUT_WR)

    async def _send(self, sink: socket.socket, data: bytes) -> None:
        loop = asyncio.get_running_loop()
        while data:
            size = self._size_of_next(data)
            await loop.sock_sendall(sink, data[:size])
            await asyncio.sleep(size / self._rate if self._rate else 0)
            data = data[size:]

    def _size_of_next(self, data: bytes) -> int:
        slow = int(self._rate / THROTTLED_PIECES_A_SECOND) or 1
        return min(slow, len(data)) if self._rate else len(data)


def _reset(sockets: list[socket.socket]) -> None:
    """Close at once; nothing more happens to one that is closed already."""
    loop = asyncio.get_running_loop()
    for each in sockets:
        if each.fileno() >= 0:
            loop.remove_reader(each)
            loop.remove_writer(each)
            each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            each.close()
