"""The deployment's proxy in front of a gateway: what it lets through, and what it keeps away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from tests.support.gateway_world import API_KEY, REQUEST, World, world
from tests.support.servers.nginx import Nginx
from tests.support.servers.process import HOST

ROOT = "/v1/everydream-v1"
AUTHORIZED = {"Authorization": f"Bearer {API_KEY}"}
LARGE = 20 << 20
HEADS = 100


@contextmanager
def proxy(here: World, changes: dict[str, str] | None = None) -> Iterator[Nginx]:
    with Nginx(here.gateway.port, changes or {}) as nginx:
        yield nginx


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as one:
        yield one


@asynccontextmanager
async def client(proxy: Nginx) -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.TCPConnector(ssl=proxy.trust)
    async with aiohttp.ClientSession(proxy.url, connector=connector, headers=AUTHORIZED) as session:
        yield session


def begun(proxy: Nginx, beginning: bytes) -> Any:
    @asynccontextmanager
    async def connection() -> AsyncIterator[asyncio.StreamReader]:
        reader, writer = await connected(proxy)
        writer.write(beginning)
        try:
            yield reader
        finally:
            writer.transport.abort()

    return connection()


async def connected(proxy: Nginx) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    while True:
        with suppress(ConnectionResetError):  # the time for a head is the time for a handshake, too
            return await asyncio.open_connection(HOST, proxy.port, ssl=proxy.trust)


async def test_jobs_uploads_and_events_go_through_it(here: World) -> None:
    with proxy(here) as nginx:
        async with client(nginx) as session:
            async with session.post(f"{ROOT}/run", json=REQUEST) as answer:
                assert answer.status == 200
                job = (await answer.json())["id"]
            async with session.get(f"{ROOT}/events/{job}") as events:
                async with asyncio.timeout(30):
                    assert (await events.content.readline()).startswith(b"id: ")
            upload = b"x" * (25 << 20)
            async with session.post(
                f"{ROOT}/uploads",
                data=iter_of(upload),
                headers={"Content-Length": str(len(upload))},
            ) as answer:
                assert (answer.status, (await answer.json())["received"]) == (201, len(upload))
            async with session.post(f"{ROOT}/run", data=iter_of(bytes((20 << 20) + 1))) as answer:
                assert answer.status == 413
                assert "put the images behind data_url" in (await answer.json())["error"]


async def iter_of(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 1 << 20):
        yield data[start : start + (1 << 20)]


async def test_half_sent_heads_reach_no_gateway_and_are_given_up(here: World) -> None:
    with proxy(here, {"client_header_timeout 10s;": "client_header_timeout 1s;"}) as nginx:
        async with AsyncExitStack() as stack:
            heads = [
                await stack.enter_async_context(begun(nginx, b"GET / HTTP/1.1\r\nHost:"))
                for _ in range(HEADS)
            ]

            async with client(nginx) as session, session.get("/healthz") as answer:
                assert answer.status == 200
            assert connections_to(here.gateway.port) < HEADS / 10
            async with asyncio.timeout(30):
                assert {await is_closed(head) for head in heads} == {True}


async def is_closed(reader: asyncio.StreamReader) -> bool:
    try:
        return await reader.read() == b""
    except ConnectionError:
        return True


def connections_to(port: int) -> int:
    return len([each for each in psutil.Process().net_connections("tcp") if each.laddr[1] == port])


async def test_a_body_whose_end_does_not_come_takes_nothing_of_a_gateway(here: World) -> None:
    head = (
        f"POST {ROOT}/runsync HTTP/1.1\r\nHost: x\r\nAuthorization: {API_KEY}\r\n"
        f"Content-Length: {LARGE}\r\n\r\n"
    ).encode()
    with proxy(here, {"client_body_timeout 60s;": "client_body_timeout 1s;"}) as nginx:
        async with begun(nginx, head + bytes(LARGE - 1)) as reader:
            closing = asyncio.create_task(is_closed(reader))
            seen = set()
            async with asyncio.timeout(30):
                while not closing.done():
                    used = (await here.ask("GET", f"{ROOT}/budgets")).body
                    seen.add(used["body_bytes"]["used"])

    assert (closing.result(), seen) == (True, {0})


async def test_one_address_has_so_many_requests_at_a_time(here: World) -> None:
    job = await here.run()
    with proxy(here, {"limit_conn at_once 200;": "limit_conn at_once 3;"}) as nginx:
        async with AsyncExitStack() as stack:
            head = (
                f"GET {ROOT}/events/{job} HTTP/1.1\r\nHost: x\r\nAuthorization: {API_KEY}\r\n\r\n"
            )
            for _ in range(3):
                reader = await stack.enter_async_context(begun(nginx, head.encode()))
                assert b" 200 " in await reader.readline()

            async with client(nginx) as session, session.get("/healthz") as answer:
                assert answer.status == 429
