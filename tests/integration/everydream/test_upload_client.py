"""The command line's upload to a real gateway, over connections that break."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from random import Random

import aiohttp
import pytest

from everydream import client as clients
from everydream import photos
from everydream.client import Client, Rejected, with_retries
from services.gateway.jobs import uploads
from shared.storage.folders import sha256_of
from tests.support.gateway_world import API_KEY, World, world

FILE = Random(0).randbytes(1_000_000)
HEAD_BYTES = 5_000
"""More than the heads of all requests between two breaks."""


@pytest.fixture
async def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(clients, "RETRY_DELAYS", (0.3,) * 4)
    monkeypatch.setattr(photos, "CHUNK_BYTES", 400_000)
    monkeypatch.setattr(uploads, "PART_BYTES", 70_000)
    async with world(tmp_path) as one:
        yield one


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "photos.zip"
    path.write_bytes(FILE)
    return path


class Line:
    """A connection to the gateway that breaks after some bytes, the first times it is used."""

    def __init__(self, port: int, *lives: int) -> None:
        self._port = port
        self._lives = list(lives)
        self.carried = 0

    @asynccontextmanager
    async def open(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        async with server:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, to = await asyncio.open_connection("127.0.0.1", self._port)
        back = asyncio.create_task(self._bring_back(there, writer))
        life = self._lives.pop(0) if self._lives else len(FILE) * 10
        with suppress(ConnectionError):
            while life > 0 and (data := await reader.read(min(10_000, life))):
                life -= len(data)
                self.carried += len(data)
                to.write(data)
                await to.drain()
        back.cancel()
        for end in (writer, to):
            end.close()

    async def _bring_back(self, there: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await there.read(10_000):
                writer.write(data)
                await writer.drain()


async def test_an_upload_goes_on_where_a_broken_line_ended(here: World, archive: Path) -> None:
    lives = (250_000, 333_333, 100)
    line = Line(here.gateway.port, *lives)
    reported: list[int] = []
    async with line.open() as url:
        client = Client(here.session, url, API_KEY)

        data_url = await photos.upload(client, archive, reported.append)

        facts = await client.upload_facts(data_url.rpartition("/")[2])
    assert facts["sha256"] == await sha256_of(archive)
    assert reported[-1] == len(FILE)
    # Where the gateway has yet to notice that the line is broken, a chunk is refused, too.
    heads = len(lives) * HEAD_BYTES
    assert line.carried < len(FILE) + len(lives) * photos.CHUNK_BYTES + heads, (
        "a line that breaks costs a chunk at most"
    )
    assert await client_can_train(here, data_url)


async def client_can_train(here: World, data_url: str) -> bool:
    answer = await here.ask(
        "POST", "/v1/everydream-v1/run", json={"input": {"train": {"data_url": data_url}}}
    )
    return answer.status == 200


async def test_a_line_that_stays_broken_is_an_error(here: World, archive: Path) -> None:
    line = Line(here.gateway.port, *[50] * 20)
    async with line.open() as url:
        with pytest.raises(aiohttp.ClientError):
            await photos.upload(Client(here.session, url, API_KEY), archive, lambda _done: None)


async def test_what_the_gateway_rejects_is_reported_once(here: World) -> None:
    asked = 0
    client = Client(here.session, here.url(""), API_KEY)

    async def wrong() -> str:
        nonlocal asked
        asked += 1
        return await client.run({"input": {"train": {"lr": "much", "batch_size": 0}}})

    with pytest.raises(Rejected) as caught:
        await with_retries(wrong)

    assert asked == 1
    assert [mistake.partition(":")[0] for mistake in caught.value.mistakes] == [
        "input.train.data_url",
        "input.train.batch_size",
        "input.train.lr",
    ]


async def test_a_submission_whose_answer_is_lost_is_one_job(here: World) -> None:
    request = {"input": {"train": {"data_url": "https://example.com/photos.zip"}}}
    client = Client(here.session, here.url(""), API_KEY)
    answers: list[str] = []

    async def lost() -> str:
        answers.append(await client.run(request, once="the same"))
        if len(answers) == 1:
            raise TimeoutError
        return answers[-1]

    job = await with_retries(lost)

    assert answers == [job, job]
