"""Each fault of the proxy, as a client and a server of plain sockets see it."""

from __future__ import annotations

import asyncio
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic

import pytest

from tests.support.servers.process import HOST
from tests.support.servers.proxy import Proxy

Line = tuple[StreamReader, StreamWriter]

pytestmark = [pytest.mark.long, pytest.mark.timeout(30)]  # tests of the tests


@asynccontextmanager
async def echo_behind_a_proxy() -> AsyncIterator[tuple[Proxy, list[bytes]]]:
    """A server that gives back what it is told, and a list of what it was told."""
    heard: list[bytes] = []

    async def echo(reader: StreamReader, writer: StreamWriter) -> None:
        try:
            while piece := await reader.read(1 << 16):
                heard.append(piece)
                writer.write(piece)
                await writer.drain()
            writer.write(b"bye")
            await writer.drain()
        except ConnectionError:
            heard.append(b"(reset)")
        finally:
            writer.close()

    server = await asyncio.start_server(echo, HOST, 0)
    try:
        async with Proxy(HOST, server.sockets[0].getsockname()[1]) as proxy:
            yield proxy, heard
    finally:
        server.close()


async def connected(proxy: Proxy) -> Line:
    return await asyncio.open_connection(HOST, proxy.port)


async def said(line: Line, words: bytes) -> bytes:
    """What comes back."""
    line[1].write(words)
    return await line[0].readexactly(len(words))


async def hung_up(line: Line) -> None:
    line[1].close()
    await line[1].wait_closed()


async def test_without_a_fault_everything_is_passed_on_and_an_end_is_an_end() -> None:
    async with echo_behind_a_proxy() as (proxy, _):
        line = await connected(proxy)
        assert await said(line, bytes(range(256)) * 4096) == bytes(range(256)) * 4096
        line[1].write_eof()
        assert await line[0].read() == b"bye"
        await hung_up(line)


async def test_latency_makes_each_way_take_longer() -> None:
    async with echo_behind_a_proxy() as (proxy, _):
        line = await connected(proxy)
        proxy.latency(0.15)
        begun = monotonic()
        await said(line, b"slow")
        assert 0.3 <= monotonic() - begun < 1
        proxy.open()
        begun = monotonic()
        await said(line, b"fast")
        assert monotonic() - begun < 0.15
        await hung_up(line)


async def test_a_cut_resets_who_is_there_and_refuses_who_comes_until_it_is_open_again() -> None:
    async with echo_behind_a_proxy() as (proxy, heard):
        line = await connected(proxy)
        await said(line, b"hello")
        proxy.cut()
        with pytest.raises(ConnectionRefusedError):
            await connected(proxy)
        with pytest.raises(ConnectionResetError):
            await line[0].read()
        assert proxy.connections == 0
        proxy.open()
        line = await connected(proxy)
        assert await said(line, b"again") == b"again"
        assert heard == [b"hello", b"(reset)", b"again"]
        await hung_up(line)


async def test_a_half_closed_line_lets_one_way_through_and_loses_nothing() -> None:
    async with echo_behind_a_proxy() as (proxy, heard):
        line = await connected(proxy)
        proxy.half_close()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await said(line, b"hello")
        assert heard == [b"hello"]
        proxy.open()
        assert await line[0].readexactly(5) == b"hello"

        proxy.half_close(towards="server")
        line[1].write(b"anyone?")
        await asyncio.sleep(0.2)
        assert heard == [b"hello"]
        await hung_up(line)


async def test_a_throttled_line_passes_on_no_more_than_it_may() -> None:
    async with echo_behind_a_proxy() as (proxy, _):
        line = await connected(proxy)
        proxy.throttle(20_000)
        begun = monotonic()
        await said(line, bytes(8_000))
        assert 0.35 <= monotonic() - begun < 2
        await hung_up(line)


async def test_a_server_that_is_away_is_a_reset_and_not_a_silence() -> None:
    async with echo_behind_a_proxy() as (proxy, _):
        proxy._target = (HOST, 1)
        line = await connected(proxy)
        with pytest.raises(ConnectionResetError):
            await line[0].read()
