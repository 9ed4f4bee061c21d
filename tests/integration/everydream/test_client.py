"""The small client, against a server with fixed answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from everydream.client import Client, Damaged, NoGateway
from tests.support.servers.web import Answer, Page, Web

JSON = {"Content-Type": "application/json"}
REQUEST = {"input": {"train": {"data_url": "https://example.com/ü.zip"}}}


@pytest.fixture
async def client(web: Web) -> AsyncIterator[Client]:
    async with aiohttp.ClientSession() as session:
        yield Client(session, web.url("").rstrip("/"), "first-key")


def said(code: int, **answer: str) -> Answer:
    return Answer(code, JSON, json.dumps(answer).encode())


def contents(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in folder.iterdir()]


async def test_a_job_is_submitted_with_the_key_and_its_id_comes_back(
    client: Client, web: Web
) -> None:
    web.answer(said(200, id="7b1c", status="IN_QUEUE"))

    assert await client.run(REQUEST) == "7b1c"

    (seen,) = web.posts
    assert seen.path == "/v1/everydream-v1/run"
    assert seen.headers["Authorization"] == "Bearer first-key"
    assert json.loads(seen.body) == REQUEST


async def test_a_request_with_a_mistake_is_reported_in_the_gateway_s_own_words(
    client: Client, web: Web
) -> None:
    web.answer(said(400, error="input.train.lr: expected a number above 0, got -1"))

    with pytest.raises(aiohttp.ClientResponseError, match=r"train\.lr: expected") as caught:
        await client.run(REQUEST)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "body", [b'{"detail": "Not Found"}', b"[1]", b"{", b"\xff", b"", b"[" * 99_999]
)
@pytest.mark.parametrize(("status", "reason"), [(404, "Not Found"), (502, "Bad Gateway")])
async def test_an_error_that_is_not_the_gateway_s_is_said_by_its_status(
    client: Client, web: Web, body: bytes, status: int, reason: str
) -> None:
    web.serve("/v1/everydream-v1/status/7b1c", Page(body, status=status, headers=JSON))

    with pytest.raises(aiohttp.ClientResponseError, match=reason) as caught:
        await client.status("7b1c")
    assert caught.value.status == status


@pytest.mark.parametrize("body", [b'{"hello": "world"}', b"[1]", b"<html>", b""])
async def test_an_answer_that_is_not_the_gateway_s_is_an_error(
    client: Client, web: Web, body: bytes
) -> None:
    for path in ("status/7b1c", "jobs", "health"):
        web.serve(f"/v1/everydream-v1/{path}", Page(body, headers=JSON))
    web.answer(Answer(200, JSON, body))

    asked = (client.status("7b1c"), client.jobs(), client.health(), client.run(REQUEST))
    for each in asked:
        with pytest.raises(NoGateway, match="no gateway's answer: expected a JSON object with '"):
            await each


async def test_a_job_that_nobody_knows_is_an_error(client: Client) -> None:
    with pytest.raises(aiohttp.ClientResponseError, match="404"):
        await client.status("nobody")


async def test_a_job_is_cancelled_and_a_refusal_is_an_error(client: Client, web: Web) -> None:
    web.answer(said(200, id="7b1c", status="CANCELLED"), said(404, error="no such job"))

    assert await client.cancel("7b1c") == {"id": "7b1c", "status": "CANCELLED"}
    assert web.posts[0].path == "/v1/everydream-v1/cancel/7b1c"
    with pytest.raises(aiohttp.ClientResponseError, match="404"):
        await client.cancel("7b1c")


async def test_an_artifact_is_downloaded_byte_for_byte_without_the_key(
    client: Client, web: Web, tmp_path: Path
) -> None:
    artifact = bytes(range(256)) * 10_000
    url = web.serve("/bucket/last.safetensors", artifact)

    await client.download(url, tmp_path / "new" / "last.safetensors")

    assert (tmp_path / "new" / "last.safetensors").read_bytes() == artifact
    assert "Authorization" not in web.seen[0].headers


async def test_an_artifact_that_is_cut_off_is_an_error_and_the_old_file_stays(
    client: Client, web: Web, tmp_path: Path
) -> None:
    url = web.serve("/bucket/last.safetensors", Page(b"x" * 1000, cut_at=500))
    (tmp_path / "last.safetensors").write_bytes(b"old")

    with pytest.raises(aiohttp.ClientPayloadError):
        await client.download(url, tmp_path / "last.safetensors")
    assert contents(tmp_path) == [b"old"]


async def test_an_artifact_that_is_not_the_one_that_was_made_is_an_error(
    client: Client, web: Web, tmp_path: Path
) -> None:
    url = web.serve("/bucket/last.safetensors", b"x" * 1000)
    digest = hashlib.sha256(b"y" * 1000).hexdigest()

    with pytest.raises(Damaged, match=rf"last\.safetensors: .* not {digest}"):
        await client.download(url, tmp_path / "last.safetensors", sha256=digest)
    assert contents(tmp_path) == []
