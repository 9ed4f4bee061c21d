"""Budgets: what a key may keep and have under way; what exceeds them is refused by name."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from services.gateway.app import Gateway
from services.gateway.endpoints import jobs
from services.gateway.endpoints.uploads import CHUNK
from services.gateway.jobs import uploads
from services.gateway.jobs.admission import Admission
from services.gateway.jobs.budgets import BUDGETS
from services.gateway.jobs.record import Job
from services.gateway.web import bodies, room
from services.gateway.web.application import OVER_BUDGET_SECONDS
from shared.messaging.messages import JobRefused, JobRequested, StageFailed
from shared.messaging.topology import FETCHER
from shared.storage.large_fields import LARGE as LARGE_FIELD
from tests.support.gateway_world import (
    API_KEY,
    KEY,
    OTHER_KEY,
    REQUEST,
    TRAIN_ONLY,
    Answer,
    World,
    eventually,
    running,
    trained,
    world,
)

ROOT = "/v1/everydream-v1"
SIZE = len(json.dumps(REQUEST, separators=(",", ":")))
"""Bytes of a request as they are counted."""


def refusal(name: str, used: int, allowed: int) -> dict[str, Any]:
    return {"name": name, "used": used, "allowed": allowed}


async def submit(here: World, **more: Any) -> Answer:
    return await here.ask("POST", f"{ROOT}/run", **({"data": json.dumps(REQUEST)} | more))


async def used(here: World, name: str, **more: Any) -> int:
    answer = await here.ask("GET", f"{ROOT}/budgets", **more)
    assert answer.status == 200, answer
    return int(answer.body[name]["used"])


async def is_used(here: World, name: str, amount: int, **more: Any) -> bool | None:
    return await used(here, name, **more) == amount or None


async def fail(here: World) -> str:
    """A job that has failed, and may be retried."""
    job = await here.run()
    await here.get(FETCHER)
    staging = await here.claim(job, "staging")
    await staging.publish(StageFailed, kind="refused", reason="no such zip")
    await here.status_becomes(job, "FAILED")
    return job


async def test_a_key_sees_its_budgets_and_only_its_own_use(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        await here.run()
        await here.ask("POST", f"{ROOT}/uploads", data=b"12345")

        answer = await here.ask("GET", f"{ROOT}/budgets")

        assert list(answer.body) == list(BUDGETS)
        allowed = {name: getattr(here.settings, f"max_{name}") for name in BUDGETS}
        assert {name: each["allowed"] for name, each in answer.body.items()} == allowed
        assert {name: each["used"] for name, each in answer.body.items()} == {
            "live_jobs": 1,
            "kept_jobs": 1,
            "request_bytes": SIZE,
            "body_bytes": 0,
            "upload_bytes": 5,
            "unfinished_uploads": 0,
            "upload_parts": 2,
            "model_bytes": 0,
            "waiting_requests": 0,
        }
        other = await here.ask("GET", f"{ROOT}/budgets", key=OTHER_KEY)
        assert {each["used"] for each in other.body.values()} == {0}


# --- jobs


async def test_a_key_has_so_many_live_jobs_and_no_more(tmp_path: Path) -> None:
    async with world(tmp_path, max_live_jobs=2) as here:
        first, _ = await here.run(), await here.run()

        refused = await submit(here)

        assert refused.status == 429
        assert refused.body["budget"] == refusal("live_jobs", 2, 2)
        assert refused.body["error"].startswith("budget live_jobs: 2 of 2 are used")
        assert int(refused.headers["Retry-After"]) > 0
        assert (await submit(here, key=OTHER_KEY)).status == 200
        await here.ask("POST", f"{ROOT}/cancel/{first}")
        assert (await submit(here)).status == 200


async def test_who_is_over_a_budget_cannot_try_again_at_once_and_nobody_else_waits(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, max_live_jobs=1) as here:
        await here.run()
        began = monotonic()
        refusing = asyncio.create_task(submit(here))

        others = await submit(here, key=OTHER_KEY)

        assert (others.status, refusing.done()) == (200, False)
        assert (await refusing).status == 429
        assert monotonic() - began >= OVER_BUDGET_SECONDS


async def test_of_many_at_the_same_time_exactly_those_are_admitted_that_the_budget_has_left(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, max_live_jobs=7) as here:
        answers = await asyncio.gather(*(submit(here) for _ in range(20)))

        assert sorted(answer.status for answer in answers) == [200] * 7 + [429] * 13
        assert await used(here, "live_jobs") == 7


async def test_a_submission_repeated_by_its_idempotency_key_needs_no_budget(tmp_path: Path) -> None:
    async with world(tmp_path, max_live_jobs=1) as here:
        repeated = partial(submit, here, headers={"Idempotency-Key": "once"})
        first = await repeated()

        again = await repeated()

        assert (first.status, again.status) == (200, 200)
        assert again.body["id"] == first.body["id"]


async def test_a_retried_job_needs_a_place_among_the_live_ones(tmp_path: Path) -> None:
    async with world(tmp_path, max_live_jobs=1) as here:
        failed = await fail(here)
        waiting = await here.run()

        refused = await here.ask("POST", f"{ROOT}/retry/{failed}")

        assert (refused.status, refused.body["budget"]) == (429, refusal("live_jobs", 1, 1))
        await here.ask("POST", f"{ROOT}/cancel/{waiting}")
        assert (await here.ask("POST", f"{ROOT}/retry/{failed}")).status == 200


async def test_a_job_is_retried_so_often_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "MOST_RUNS", 2)
    async with world(tmp_path) as here:
        job = await fail(here)
        assert (await here.ask("POST", f"{ROOT}/retry/{job}")).status == 200
        await here.get(FETCHER)
        staging = await here.claim(job, "staging")
        await staging.publish(StageFailed, kind="refused", reason="no such zip")
        await here.status_becomes(job, "FAILED")

        refused = await here.ask("POST", f"{ROOT}/retry/{job}")

        assert (refused.status, "2 times" in refused.body["error"]) == (400, True)


async def test_a_key_keeps_so_many_jobs_until_it_deletes_some(tmp_path: Path) -> None:
    async with world(tmp_path, max_kept_jobs=1) as here:
        job = await trained(here)

        refused = await submit(here)

        assert (refused.status, refused.body["budget"]) == (429, refusal("kept_jobs", 1, 1))
        await here.ask("DELETE", f"{ROOT}/jobs/{job}")
        assert (await submit(here)).status == 200


async def test_the_requests_of_a_key_s_jobs_have_so_many_bytes_together(tmp_path: Path) -> None:
    async with world(tmp_path, max_request_bytes=2 * SIZE) as here:
        await submit(here, data=json.dumps(REQUEST, indent=8))
        await submit(here)

        refused = await submit(here)

        assert refused.body["budget"] == refusal("request_bytes", 2 * SIZE, 2 * SIZE)


async def test_a_producer_is_told_of_the_budget_that_its_job_exceeds(tmp_path: Path) -> None:
    async with world(tmp_path, max_live_jobs=1) as here:
        await here.bus.publish(JobRequested(request=REQUEST))
        await here.bus.publish(JobRequested(request=TRAIN_ONLY))

        refused = await here.receive(JobRefused)

        assert refused.mistakes[0].startswith("budget live_jobs: 1 of 1 are used")


async def test_two_gateways_count_what_is_kept_together(tmp_path: Path) -> None:
    async with world(tmp_path, max_live_jobs=2) as here:
        bus = here.broker.bus("gateway/second")
        second = Gateway(here.settings, KEY, bus, here.store, here.stores)
        async with running(second):
            await here.run()
            url = f"http://127.0.0.1:{second.port}{ROOT}/run"
            headers = {"Authorization": f"Bearer {API_KEY}"}
            for expected in (200, 429):
                async with here.session.post(url, json=REQUEST, headers=headers) as answer:
                    assert answer.status == expected
        await bus.close()


# --- uploads


def chunk(here: World, upload: str, offset: int, data: bytes) -> Any:
    headers = {
        "Authorization": f"Bearer {API_KEY}",
        "Content-Type": CHUNK,
        "Upload-Offset": str(offset),
    }
    return here.session.patch(here.url(f"{ROOT}/uploads/{upload}"), headers=headers, data=data)


async def begin(here: World, size: int) -> Answer:
    return await here.ask("POST", f"{ROOT}/uploads", headers={"Upload-Length": str(size)})


async def test_unfinished_uploads_count_with_their_whole_size(tmp_path: Path) -> None:
    async with world(tmp_path, max_upload_bytes=1000) as here:
        first = await begin(here, 600)

        refused = await begin(here, 401)

        assert (refused.status, refused.body["budget"]) == (429, refusal("upload_bytes", 600, 1000))
        assert (await begin(here, 400)).status == 201
        url = here.url(f"{ROOT}/uploads/{first.body['id']}")
        headers = {"Authorization": f"Bearer {API_KEY}"}
        async with here.session.delete(url, headers=headers) as deleted:
            assert deleted.status == 204
        assert (await begin(here, 600)).status == 201


async def test_a_key_has_so_many_parts_in_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "LEAST_CHUNK_BYTES", 10)
    async with world(tmp_path, max_upload_parts=3) as here:
        upload = (await begin(here, 100)).body["id"]
        for offset in (0, 10):
            async with chunk(here, upload, offset, bytes(10)) as answer:
                assert answer.status == 204

        async with chunk(here, upload, 20, bytes(10)) as answer:
            assert (answer.status, (await answer.json())["budget"]) == (
                429,
                refusal("upload_parts", 3, 3),
            )
        assert len([entry async for entry in here.store.list("uploads/")]) == 2


LEAST = uploads.LEAST_CHUNK_BYTES


@pytest.mark.parametrize("announced", [True, False])
async def test_a_short_chunk_is_not_kept_unless_it_is_the_last(
    tmp_path: Path,
    announced: bool,  # noqa: FBT001
) -> None:
    async def unannounced(data: bytes) -> AsyncIterator[bytes]:
        yield data

    async with world(tmp_path) as here:
        upload = (await begin(here, LEAST + 1)).body["id"]

        def sent(offset: int, data: bytes) -> Any:
            return chunk(here, upload, offset, data if announced else unannounced(data))  # type: ignore[arg-type]

        for short in (b"x", bytes(LEAST - 1)):
            async with sent(0, short) as answer:
                assert answer.status == 400
                assert f"at least {LEAST} bytes" in (await answer.json())["error"]
        assert [entry async for entry in here.store.list("uploads/")] == []
        async with sent(0, bytes(LEAST)) as answer:
            assert answer.status == 204
        async with sent(LEAST, b"x") as answer:
            assert answer.status == 204


async def test_a_chunk_that_breaks_off_after_a_byte_leaves_no_file(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        upload = (await begin(here, 1 << 20)).body["id"]
        for _ in range(20):
            async with connection(here) as writer:
                more = (f"Content-Type: {CHUNK}", "Upload-Offset: 0")
                request = f"PATCH {ROOT}/uploads/{upload}"
                writer.write(head(request, b"x", *more, length=1 << 20))
                await writer.drain()

        async def taken() -> int | None:
            """None while the gateway has not seen yet that eight others have hung up."""
            async with chunk(here, upload, 0, bytes(1 << 20)) as answer:
                return None if answer.status == 429 else answer.status

        assert await eventually(taken) == 204
        assert len([entry async for entry in here.store.list("uploads/")]) == 2, "part and list"


def test_the_least_chunk_grows_with_the_upload() -> None:
    assert uploads.least_chunk(1) == LEAST
    assert uploads.least_chunk(10 << 30) == -(-(10 << 30) // uploads.MOST_CHUNKS)


async def test_parts_become_short_while_many_uploads_come_and_then_none_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, size in {
        "PART_BYTES": 1000,
        "SHORT_PART_BYTES": 100,
        "PARTS_MEMORY": 1000,
        "SHORT_PARTS_MEMORY": 1050,
        "LEAST_CHUNK_BYTES": 1,
    }.items():
        monkeypatch.setattr(uploads, name, size)
    async with world(tmp_path) as here, AsyncExitStack() as slow:
        for expected in (1, 2):
            writer = await slow.enter_async_context(connection(here))
            writer.write(head(f"POST {ROOT}/uploads", length=900))
            await eventually(partial(is_used, here, "unfinished_uploads", expected))

        refused = await here.ask("POST", f"{ROOT}/uploads", data=bytes(900))

        assert refused.status == 503
        await slow.aclose()
        await eventually(partial(is_used, here, "unfinished_uploads", 0))
        assert (await here.ask("POST", f"{ROOT}/uploads", data=bytes(900))).status == 201


# --- in flight


WAIT = "?wait=60000"


async def test_a_key_has_so_many_long_polls_and_streams_open(tmp_path: Path) -> None:
    async with world(tmp_path, max_waiting_requests=4) as here, AsyncExitStack() as stack:
        job = await here.run()
        await here.ask("GET", f"{ROOT}/stream/{job}?wait=0")  # takes what there is already
        for path in (f"status-sync/{job}{WAIT}", f"stream/{job}{WAIT}", f"events/{job}"):
            writer = await stack.enter_async_context(connection(here))
            writer.write(head(f"GET {ROOT}/{path}"))
        writer = await stack.enter_async_context(connection(here))
        writer.write(head(f"POST {ROOT}/runsync{WAIT}", json.dumps(REQUEST).encode()))
        await eventually(partial(is_used, here, "waiting_requests", 4))
        await eventually(partial(is_used, here, "live_jobs", 2))

        for path in (f"status-sync/{job}", f"stream/{job}", f"events/{job}", "events"):
            refused = await here.ask("GET", f"{ROOT}/{path}")
            assert refused.body["budget"] == refusal("waiting_requests", 4, 4)
        refused = await here.ask("POST", f"{ROOT}/runsync", json=REQUEST)
        assert refused.status == 429
        assert await used(here, "live_jobs") == 2, "the refused one was not admitted"
        assert (await here.ask("GET", f"{ROOT}/status/{job}")).status == 200
        await stack.aclose()
        await eventually(partial(is_used, here, "waiting_requests", 0))


@asynccontextmanager
async def connection(here: World) -> AsyncIterator[asyncio.StreamWriter]:
    _, writer = await asyncio.open_connection("127.0.0.1", here.gateway.port)
    try:
        yield writer
    finally:
        writer.close()


def head(request: str, body: bytes = b"", *headers: str, length: int | None = None) -> bytes:
    """A request with its body, or the beginning of one of this length."""
    size = len(body) if length is None else length
    lines = (
        f"{request} HTTP/1.1",
        "Host: x",
        f"Authorization: Bearer {API_KEY}",
        f"Content-Length: {size}",
        *headers,
    )
    return "\r\n".join((*lines, "", "")).encode() + body


LARGE = 1000
"""Bytes of a large body, while the longest small one has a hundred."""


@pytest.fixture
def _short_bodies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "SMALL_BYTES", 100)
    monkeypatch.setattr(bodies, "SMALL_ROOM", 200)


def silent(here: World, stack: AsyncExitStack, size: int = LARGE) -> Any:
    """A body of which all comes but the last byte."""
    return stack.enter_async_context(begun(here, head(f"POST {ROOT}/run", length=size), size - 1))


@asynccontextmanager
async def begun(here: World, beginning: bytes, size: int) -> AsyncIterator[asyncio.StreamReader]:
    reader, writer = await asyncio.open_connection("127.0.0.1", here.gateway.port)
    writer.write(beginning + b" " * size)
    await writer.drain()
    try:
        yield reader
    finally:
        writer.close()


async def status_of(reader: asyncio.StreamReader) -> int:
    async with asyncio.timeout(30):
        return int((await reader.readline()).split()[1])


@pytest.mark.usefixtures("_short_bodies")
async def test_a_key_s_bodies_in_flight_have_so_many_bytes_together(tmp_path: Path) -> None:
    async with world(tmp_path, max_body_bytes=2500) as here, AsyncExitStack() as stack:
        for expected in (1000, 2000):
            await silent(here, stack)
            await eventually(partial(is_used, here, "body_bytes", expected))

        refused = await submit(here, data=json.dumps(REQUEST).ljust(LARGE))

        assert refused.body["budget"] == refusal("body_bytes", 2000, 2500)
        assert (await submit(here, data=json.dumps(REQUEST))).status == 200
        await stack.aclose()
        await eventually(partial(is_used, here, "body_bytes", 0))


@pytest.mark.usefixtures("_short_bodies")
async def test_bodies_that_do_not_come_on_leave_room_for_others_and_are_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "LARGE_IDLE_SECONDS", 0.5)
    async with world(tmp_path, body_memory=4 * LARGE) as here, AsyncExitStack() as stack:
        readers = [await silent(here, stack) for _ in range(5)]
        await eventually(partial(is_used, here, "body_bytes", 5 * LARGE))

        other = await submit(here, data=json.dumps(REQUEST).ljust(LARGE), key=OTHER_KEY)

        assert other.status == 200
        assert [await status_of(reader) for reader in readers] == [408] * 5
        assert await used(here, "body_bytes") == 0
        assert (await submit(here, data=json.dumps(REQUEST).ljust(LARGE))).status == 200


@pytest.mark.usefixtures("_short_bodies")
async def test_a_body_that_waits_is_not_read_and_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "ROOM_SECONDS", 0.2)
    size = 30_000_000
    async with world(tmp_path, body_memory=4 * LARGE) as here, AsyncExitStack() as stack:
        for _ in range(2):
            await silent(here, stack)
        await eventually(partial(is_used, here, "body_bytes", 2 * LARGE))
        monkeypatch.setattr(jobs, "RUN_BYTES", size)
        reader, writer = await asyncio.open_connection("127.0.0.1", here.gateway.port)
        writer.write(head(f"POST {ROOT}/run", b" " * size, "Connection: close"))

        assert await status_of(reader) == 503
        assert writer.transport.get_write_buffer_size() > size / 2
        await reader.read()
        writer.close()


@pytest.mark.usefixtures("_short_bodies")
async def test_small_bodies_do_not_wait_for_large_ones_nor_one_key_s_for_another_s(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, body_memory=2 * LARGE) as here, AsyncExitStack() as stack:

        async def is_read(size: int, key: str) -> bool:
            return (await submit(here, data="{}".ljust(size), key=key)).status == 400

        for _ in range(2):
            await silent(here, stack)
        await eventually(partial(is_used, here, "body_bytes", 2 * LARGE))
        assert await is_read(100, API_KEY)
        assert await is_read(LARGE, OTHER_KEY)

        for _ in range(2):
            await silent(here, stack, 100)
        await eventually(partial(is_used, here, "body_bytes", 2 * LARGE + 200))
        assert await is_read(100, OTHER_KEY)


@asynccontextmanager
async def admitting_slowly(
    here: World, monkeypatch: pytest.MonkeyPatch, stack: AsyncExitStack, number: int
) -> AsyncIterator[list[str]]:
    """One key sends so many large bodies, and none is admitted before the block ends."""
    go_on, owners, admit = asyncio.Event(), list[str](), Admission.admit

    async def noted(admission: Admission, job_id: str, owner: str, *body: Any, **more: Any) -> Job:
        owners.append(owner)
        await go_on.wait()
        return await admit(admission, job_id, owner, *body, **more)

    monkeypatch.setattr(Admission, "admit", noted)
    for _ in range(number):
        whole = head(f"POST {ROOT}/run", json.dumps(REQUEST).ljust(LARGE).encode())
        await stack.enter_async_context(begun(here, whole, 0))
    await eventually(partial(is_used, here, "body_bytes", number * LARGE))
    yield owners
    go_on.set()
    await eventually(partial(is_used, here, "body_bytes", 0))


@pytest.mark.usefixtures("_short_bodies")
async def test_a_large_body_waits_for_one_large_body_of_another_key_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(tmp_path) as here, AsyncExitStack() as stack:
        async with admitting_slowly(here, monkeypatch, stack, 4) as owners:
            body = json.dumps(REQUEST).ljust(LARGE)
            other = asyncio.create_task(submit(here, data=body, key=OTHER_KEY))
            await eventually(partial(is_used, here, "body_bytes", LARGE, key=OTHER_KEY))
            await asyncio.sleep(0.05)  # until it is read

        assert (await other).status == 200
        assert [owners[0] == each for each in owners] in (
            [True, False, True, True, True],
            [True, True, False, True, True],
        )


@pytest.mark.usefixtures("_short_bodies")
async def test_a_large_body_or_answer_does_not_wait_for_ever_for_another_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "ROOM_SECONDS", 0.2)
    body = json.dumps(
        {"input": {**TRAIN_ONLY["input"], "inference": {"prompt": "x" * LARGE_FIELD}}}
    )
    async with world(tmp_path) as here, AsyncExitStack() as stack:
        job = (await submit(here, data=body, key=OTHER_KEY)).body["id"]
        async with admitting_slowly(here, monkeypatch, stack, 1):
            answers = [
                await submit(here, data=body, key=OTHER_KEY),
                await here.ask("GET", f"{ROOT}/status/{job}", key=OTHER_KEY),
            ]

        assert [answer.status for answer in answers] == [503, 503]
        assert all(answer.headers["Retry-After"] for answer in answers)


async def test_a_short_chunk_is_refused_before_it_comes(tmp_path: Path) -> None:
    async with world(tmp_path) as here, AsyncExitStack() as stack:
        upload = (await begin(here, LEAST + 1)).body["id"]
        more = (f"Content-Type: {CHUNK}", "Upload-Offset: 0")
        beginning = head(f"PATCH {ROOT}/uploads/{upload}", b"", *more, length=LEAST - 1)

        reader = await stack.enter_async_context(begun(here, beginning, 0))

        assert await status_of(reader) == 400


# --- models


async def stage(here: World, model: str, size: int) -> str:
    """A job whose fetcher has stored a model for it."""
    job = await here.run(TRAIN_ONLY)
    submitted = await here.get(FETCHER)
    await (await here.claim(job, "staging")).stage_dataset(submitted, model, size)
    return job


async def test_a_job_with_a_model_that_its_key_has_no_room_for_fails_and_says_so(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, max_model_bytes=1000) as here:
        first = await stage(here, "cache/one", 600)
        await here.claim(first, "training")

        too_large = await here.status_becomes(await stage(here, "cache/two", 401), "FAILED")

        assert too_large["error"] == (
            "the model cannot be kept: budget model_bytes: 600 of 1000 are used, and this needs"
            " more than is left; wait until other jobs have ended, or delete failed ones"
        )
        assert await used(here, "model_bytes") == 600
        for model, size in (("cache/one", 600), ("cache/three", 400), ("cache/base", 0)):
            job = await stage(here, model, size)
            await here.claim(job, "training")
        assert await used(here, "model_bytes") == 1000

        await here.ask("POST", f"{ROOT}/cancel/{first}")
        assert await used(here, "model_bytes") == 1000, "another job starts from the same model"


async def test_a_failed_job_keeps_its_model_for_a_retry_and_a_completed_one_needs_it_no_more(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as here:
        job = await stage(here, "cache/one", 600)
        trainer = await here.claim(job, "training")
        await trainer.publish(StageFailed, kind="refused", reason="loss is NaN")
        await here.status_becomes(job, "FAILED")
        assert await used(here, "model_bytes") == 600

        await here.ask("POST", f"{ROOT}/retry/{job}")
        await (await here.claim(job, "training")).finish_training()
        await here.status_becomes(job, "COMPLETED")

        assert await used(here, "model_bytes") == 0


async def test_a_check_does_not_get_past_the_budget_of_models(tmp_path: Path) -> None:
    async with world(tmp_path, max_model_bytes=1000) as here:
        answer = await here.ask("POST", f"{ROOT}/dataset/check", data=json.dumps(TRAIN_ONLY))
        submitted = await here.get(FETCHER)
        staging = await here.claim(answer.body["id"], "staging")

        await staging.stage_dataset(submitted, "cache/two", 1001)

        failed = await here.status_becomes(answer.body["id"], "FAILED")
        assert "budget model_bytes: 0 of 1000 are used" in failed["error"]
