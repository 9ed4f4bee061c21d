"""What bodies and heads take of a gateway: of the memory and the open files of a real process."""

from __future__ import annotations

import asyncio
import json
import re
import resource
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from io import BytesIO
from itertools import cycle, islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest

from shared.request import MAX_ITEMS
from tests.support.forms import few
from tests.support.gateway_world import OTHER_KEY, REQUEST
from tests.support.pace import slowness
from tests.support.services import ROOT, ServiceProcess, services_in_a_folder

LARGE = 20 << 20
MOST, AFTERWARDS = 400 << 20, 200 << 20
"""Bytes that the process may have in memory at its peak, and when all bodies have gone."""
FEW, MOST_OF_FEW = 6, 330 << 20
"""The same at its peak, when few bodies come at a time."""
ANSWER_SECONDS = 10.0
"""Most time until a small request of another key is answered, on a quiet machine."""
FEW_FILES = 256
"""The soft limit of open files with which the process starts."""
RUNSYNC = "/v1/everydream-v1/runsync?wait=0"
KEYS = [f"key-number-{number}" for number in range(10)]


@pytest.fixture
async def gateway(amqp_url: str) -> AsyncIterator[ServiceProcess]:
    environment = {
        "EVERYDREAM_AMQP_URL": amqp_url,
        "EVERYDREAM_API_KEYS": ",".join([*KEYS, OTHER_KEY]),
        "EVERYDREAM_SECRET_KEY": "k" * 32,
        "PYTHONPATH": str(ROOT),
    }
    async with services_in_a_folder(environment) as services:
        with few_files():
            process = services.begin("gateway")
        await process.wait_until_ready()
        yield process


@contextmanager
def few_files() -> Iterator[None]:
    """What is started now begins with a low limit of open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (FEW_FILES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def memory(gateway: ServiceProcess, name: str) -> int:
    """Bytes that the process has in memory (VmRSS), or has had at its peak (VmHWM)."""
    status = Path(f"/proc/{gateway.pid}/status").read_text()
    (found,) = re.findall(rf"{name}:\s+(\d+) kB", status)
    return int(found) * 1024


def long(text: str, **more: Any) -> bytes:
    """A request of almost 20 MB, most of it one prompt."""
    return asking_for({"prompt": text * ((LARGE - 1000) // len(text.encode()))}, **more)


def long_list(text: str) -> bytes:
    """A request of almost 20 MB with as many prompts as there may be."""
    prompt = text * ((LARGE // MAX_ITEMS - 100) // len(text.encode()))
    return asking_for([{"prompt": prompt}] * MAX_ITEMS)


def asking_for(inference: Any, **more: Any) -> bytes:
    body = {"input": {**REQUEST["input"], "inference": inference}, **more}
    return json.dumps(body, ensure_ascii=False).encode()


FOUR_BYTES_A_LETTER = "word " * 1000 + "\U0001f600"
BODIES: dict[str, Callable[[], bytes]] = {
    "objects": lambda: b"[" + b"{}," * ((LARGE - 4) // 3) + b"{}]",
    "one text": lambda: long("word ", unknown=1),
    "a text that takes four bytes a letter": lambda: long(FOUR_BYTES_A_LETTER, unknown=1),
    "escapes": lambda: b'{"input": "' + b"\\u00e9" * ((LARGE - 100) // 6) + b'"}',
}
VALID: dict[str, Callable[[], bytes]] = {
    "one text": lambda: long("word "),
    "a text that takes four bytes a letter": lambda: long(FOUR_BYTES_A_LETTER),
    "a thousand texts": lambda: long_list("word "),
}


@pytest.mark.parametrize("number", [FEW, pytest.param(200, marks=pytest.mark.long)])
async def test_large_bodies_in_number_leave_the_gateway_small_and_answering(
    gateway: ServiceProcess, number: int
) -> None:
    async with client(gateway) as session:
        for name, body in BODIES.items():
            statuses = await send_all(session, body(), number)
            assert statuses[400] > 0, name
            assert set(statuses) <= {0, 400, 429, 503}, name
            assert memory(gateway, "VmHWM") < MOST, name
    assert memory(gateway, "VmRSS") < AFTERWARDS


@pytest.mark.parametrize("number", [FEW, pytest.param(200, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", few("a text that takes four bytes a letter", of=VALID))
async def test_large_requests_that_become_jobs_leave_the_gateway_small_and_answering(
    gateway: ServiceProcess, name: str, number: int
) -> None:
    async with client(gateway) as session:
        statuses = await send_all(session, VALID[name](), number)
    assert statuses[200] > 0
    assert set(statuses) <= {0, 200, 429, 503}
    assert memory(gateway, "VmHWM") < (MOST if number > FEW else MOST_OF_FEW)
    assert memory(gateway, "VmRSS") < AFTERWARDS


@pytest.mark.parametrize("number", [12, pytest.param(200, marks=pytest.mark.long)])
async def test_large_answers_in_number_leave_the_gateway_small_and_answering(
    gateway: ServiceProcess, number: int
) -> None:
    async with client(gateway) as session:
        path = await large_job(session, KEYS[0])
        asking = [asyncio.create_task(ask(session, path, KEYS[0])) for _ in range(number)]
        while not all(task.done() for task in asking):
            await another_key_is_answered(session)
            await asyncio.sleep(0.1)
    statuses = Counter(task.result() for task in asking)
    assert statuses[200] > 0
    assert set(statuses) <= {200, 503}
    assert memory(gateway, "VmHWM") < MOST


async def large_job(session: aiohttp.ClientSession, key: str) -> str:
    """The path of a job's status with 20 MB of input."""
    headers = {"Authorization": key}
    async with session.post(RUNSYNC, data=BytesIO(long("word ")), headers=headers) as answer:
        return f"/v1/everydream-v1/status/{(await answer.json())['id']}"


async def ask(session: aiohttp.ClientSession, path: str, key: str) -> int:
    async with session.get(path, headers={"Authorization": key}) as answer:
        await answer.read()
        return answer.status


async def send_all(session: aiohttp.ClientSession, body: bytes, number: int) -> Counter[int]:
    """Send a body so many times at once, while another key is answered; the statuses."""
    sending = [asyncio.create_task(send(session, body, key)) for key in keys(number)]
    while not all(task.done() for task in sending):
        await another_key_is_answered(session)
        await asyncio.sleep(0.1)
    return Counter(task.result() for task in sending)


def keys(number: int) -> list[str]:
    return list(islice(cycle(KEYS), number))


async def send(session: aiohttp.ClientSession, body: bytes, key: str) -> int:
    headers = {"Authorization": key}
    try:
        async with session.post(RUNSYNC, data=BytesIO(body), headers=headers) as answer:
            await answer.read()
            return answer.status
    except aiohttp.ClientConnectionError:  # it did not listen to the end
        return 0


async def another_key_is_answered(session: aiohttp.ClientSession) -> None:
    """In time; on a busy machine it may have to ask again."""
    async with asyncio.timeout(ANSWER_SECONDS * slowness()):
        while await ask(session, "/v1/everydream-v1/budgets", OTHER_KEY) != 200:
            pass


@asynccontextmanager
async def client(gateway: ServiceProcess) -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(gateway.url, connector=connector) as session:
        yield session


@pytest.mark.parametrize("number", [FEW, pytest.param(200, marks=pytest.mark.long)])
async def test_bodies_whose_end_does_not_come_are_held_within_the_room_for_bodies(
    gateway: ServiceProcess, number: int
) -> None:
    async with client(gateway) as session, AsyncExitStack() as silent:
        for key in keys(number):
            beginning = head(key) + bytes(LARGE - (1 << 20))
            await silent.enter_async_context(begun(gateway, beginning))
        for key in KEYS[:number]:
            await until_in_flight(session, key)
        for _ in range(5):
            await another_key_is_answered(session)
            await asyncio.sleep(0.2)

    assert memory(gateway, "VmHWM") < MOST


def head(key: str) -> bytes:
    line = f"POST {RUNSYNC} HTTP/1.1\r\nHost: x\r\nAuthorization: {key}\r\n"
    return f"{line}Content-Length: {LARGE}\r\n\r\n".encode()


@asynccontextmanager
async def begun(gateway: ServiceProcess, beginning: bytes) -> AsyncIterator[None]:
    address = urlsplit(gateway.url)
    _, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(beginning)
    try:
        yield
    finally:
        writer.transport.abort()


async def until_in_flight(session: aiohttp.ClientSession, key: str) -> None:
    path = "/v1/everydream-v1/budgets"
    body: Any = None
    while body is None or body["body_bytes"]["used"] < LARGE:
        async with session.get(path, headers={"Authorization": key}) as answer:
            body = await answer.json()


async def test_more_half_sent_heads_than_files_may_be_open_keep_nobody_from_an_answer(
    gateway: ServiceProcess,
) -> None:
    async with client(gateway) as session, AsyncExitStack() as half_sent:
        for _ in range(2 * FEW_FILES):
            await half_sent.enter_async_context(begun(gateway, b"GET / HTTP/1.1\r\nHost:"))

        async with asyncio.timeout(10):
            await another_key_is_answered(session)
