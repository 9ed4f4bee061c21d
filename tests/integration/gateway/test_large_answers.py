"""Answers with a large input: few are held at a time, and one that nobody reads makes room."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from io import BytesIO
from pathlib import Path

import pytest

from services.gateway.web import large_answers, room
from services.gateway.web.measured import CLOSED
from shared.messaging.messages import DrawnImage, ImagesGenerated
from shared.messaging.topology import FETCHER
from shared.monitoring.registry import REGISTRY
from shared.storage.large_fields import LARGE as LARGE_FIELD
from shared.storage.large_fields import load_fields
from tests.integration.gateway.test_all_events import ask_and_leave
from tests.support.gateway_world import API_KEY, DEADLINE, REQUEST, World, eventually, world

ROOT = "/v1/everydream-v1"
LARGE = {"input": {**REQUEST["input"], "inference": {"prompt": "word " * 2_000_000}}}
"""Ten megabytes: more than the system takes for a client that does not read."""
LONG = "x" * LARGE_FIELD


async def test_a_large_input_comes_back_as_it_was_sent(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        job = await large_job(here)
        answer = await here.ask("GET", f"{ROOT}/status/{job}")
        assert answer.status == 200
        assert answer.headers["Content-Type"] == "application/json"
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.body["input"]["inference"] == LARGE["input"]["inference"]


async def test_who_leaves_before_a_large_answer_is_ready_leaves_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with world(tmp_path) as here:
        job = await large_job(here)
        before = gone_early()
        await ask_and_leave(here, f"{ROOT}/status/{job}?wait=60000")
        await eventually(partial(is_gone, before))
        assert (await here.ask("GET", f"{ROOT}/health")).status == 200

    assert [each.getMessage() for each in caplog.records] == []


def gone_early() -> float:
    labels = {"method": "GET", "route": "/status/{job}", "code": CLOSED}
    return REGISTRY.get_sample_value("everydream_http_request_seconds_count", labels) or 0.0


async def is_gone(before: float) -> bool:
    return gone_early() > before


async def test_a_large_answer_that_nobody_reads_is_cut_off_and_makes_room_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large_answers, "SEND_SECONDS", 1.0)
    async with world(tmp_path) as here, AsyncExitStack() as stack:
        job = await large_job(here)
        reader = await stack.enter_async_context(unread(here, f"{ROOT}/status/{job}"))
        await begins(reader)

        answer = await here.ask("GET", f"{ROOT}/status/{job}")

        assert answer.status == 200
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(10_000_000)


async def test_while_large_answers_are_read_slowly_small_ones_and_refusals_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "ROOM_SECONDS", 0.5)
    async with world(tmp_path) as here, AsyncExitStack() as stack:
        large, small = await large_job(here), await here.run()
        reader = await stack.enter_async_context(unread(here, f"{ROOT}/status/{large}"))
        await begins(reader)

        assert (await here.ask("GET", f"{ROOT}/status/{small}")).status == 200
        refused = await here.ask("GET", f"{ROOT}/status/{large}")
        assert refused.status == 503
        assert refused.headers["Retry-After"]


async def test_large_results_are_streamed_only_when_there_is_room_and_no_piece_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "ROOM_SECONDS", 0.5)
    async with world(tmp_path) as here:
        job = await drawn(here)
        async with unread(here, f"{ROOT}/status/{job}") as reader:
            await begins(reader)
            refused = await here.ask("GET", f"{ROOT}/stream/{job}")
            assert (refused.status, bool(refused.headers["Retry-After"])) == (503, True)
            assert LONG not in await events(here, job)

        piece = await here.ask("GET", f"{ROOT}/stream/{job}")
        assert piece.body["stream"][0]["output"]["inference"][0]["prompt"] == LONG
        assert (await here.ask("GET", f"{ROOT}/stream/{job}")).body["stream"] == []
        assert (await events(here, job)).count(LONG) == 2


async def drawn(here: World) -> str:
    """An ended job with a large input, and with large data in its results and events."""
    job = await large_job(here)
    submitted = await load_fields(here.store, await here.get(FETCHER))
    await (await here.claim(job, "staging")).stage_dataset(submitted)
    await (await here.claim(job, "training", gpu="card")).finish_training()
    inferencer = await here.claim(job, "generation", gpu="card")
    image = DrawnImage(
        artifact=await inferencer.put(f"jobs/{job}/generation/1/000.png", "image"),
        prompt=LONG, width=512, height=512, num_inference_steps=50, guidance_scale=7.5,
        scheduler="K-LMS", seed=7,
    )  # fmt: skip
    await inferencer.publish(ImagesGenerated, images=(image, image))
    async with asyncio.timeout(DEADLINE):
        while (await here.ask("GET", f"{ROOT}/jobs")).body["jobs"][0]["status"] != "COMPLETED":
            await asyncio.sleep(0.02)
    return job


async def events(here: World, job: str) -> str:
    url = here.url(f"{ROOT}/events/{job}")
    async with here.session.get(url, headers={"Authorization": API_KEY}) as answer:
        return await answer.text()


async def large_job(here: World) -> str:
    answer = await here.ask(
        "POST", f"{ROOT}/runsync?wait=0", data=BytesIO(json.dumps(LARGE).encode())
    )
    assert answer.status == 200, answer
    return str(answer.body["id"])


@asynccontextmanager
async def unread(here: World, path: str) -> AsyncIterator[asyncio.StreamReader]:
    """A request whose answer waits until it is read."""
    reader, writer = await asyncio.open_connection("127.0.0.1", here.gateway.port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {API_KEY}\r\n\r\n".encode())
    try:
        yield reader
    finally:
        writer.transport.abort()


async def begins(reader: asyncio.StreamReader) -> None:
    async with asyncio.timeout(30):
        assert b"200" in await reader.readline()
