"""RunPod's operations, one by one: the test plays the workers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from structlog.testing import capture_logs

from services.gateway.app import Gateway
from services.gateway.database.jobs import SqlJobStore
from services.gateway.ports import StoredJob
from shared.messaging.messages import (
    CheckpointSaved,
    CommandIssued,
    DatasetStaged,
    ModelStaged,
    StageFailed,
    TrainingInterrupted,
    TrainingProgressed,
)
from shared.messaging.topology import FETCHER, TRAINER
from shared.request import Command
from shared.service_process import closing
from tests.support.gateway_world import (
    KEY,
    OTHER_KEY,
    REQUEST,
    TRAIN_ONLY,
    World,
    eventually,
    found,
    running,
    trained,
    training,
    world,
)

ROOT = "/v2/everydream-v1"
DATA = "an http or https URL, or the id of a dataset check"


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as one:
        yield one


async def failed(here: World) -> str:
    job, trainer = await training(here)
    await trainer.publish(StageFailed, kind="refused", reason="the images are gone")
    await here.status_becomes(job, "FAILED")
    return job


# --- Waiting


async def test_status_sync_answers_in_the_moment_that_the_job_ends(here: World) -> None:
    job, trainer = await training(here)
    waiting = asyncio.create_task(here.ask("GET", f"{ROOT}/status-sync/{job}?wait=60000"))
    assert (await here.status(job))["status"] == "IN_PROGRESS"
    assert not waiting.done()
    await trainer.finish_training()

    async with asyncio.timeout(30):
        answer = await waiting

    assert (answer.status, answer.body["status"]) == (200, "COMPLETED")
    assert answer.body["output"]["train"]["steps"] == 8


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_who_waits_in_vain_gets_the_status_as_it_is(here: World, method: str) -> None:
    job = await here.run()

    answer = await here.ask(method, f"{ROOT}/status-sync/{job}?wait=50")

    assert (answer.status, answer.body["status"]) == (200, "IN_QUEUE")


async def test_runsync_waits_for_the_end(here: World) -> None:
    asking = asyncio.create_task(here.ask("POST", f"{ROOT}/runsync?wait=60000", json=TRAIN_ONLY))
    submitted = await here.get(FETCHER)
    await (await here.claim(submitted.job, "staging")).stage_dataset(submitted)
    await (await here.claim(submitted.job, "training")).finish_training()

    async with asyncio.timeout(30):
        answer = await asking

    assert (answer.status, answer.body["status"]) == (200, "COMPLETED")
    assert answer.body["id"] == submitted.job


async def test_runsync_gives_the_id_of_a_job_that_takes_longer(here: World) -> None:
    answer = await here.ask("POST", f"{ROOT}/runsync?wait=1", json=REQUEST)

    assert (answer.status, answer.body["status"]) == (200, "IN_QUEUE")
    assert (await here.status(answer.body["id"]))["status"] == "IN_QUEUE"


async def test_mistakes_of_query_header_and_body_are_reported_together(here: World) -> None:
    answer = await here.ask(
        "POST",
        f"{ROOT}/runsync?wait=soon",
        json={"input": {"train": {}}},
        headers={"Idempotency-Key": ""},
    )

    assert answer.status == 400
    assert answer.body["mistakes"] == [
        "Idempotency-Key: expected 1 to 255 letters, got 0",
        "wait: expected milliseconds from 0 to 300000, got 'soon'",
        f"input.train.data_url: required, but missing; expected {DATA}",
    ]


@pytest.mark.parametrize("wait", ["soon", "", "1.5", "1_000", "9" * 5000])
async def test_a_wait_that_is_no_number_is_reported(here: World, wait: str) -> None:
    job = await here.run()

    answer = await here.ask("GET", f"{ROOT}/status-sync/{job}?wait={wait}")

    assert answer.status == 400
    assert "expected milliseconds from 0 to 90000" in answer.body["error"]


async def test_a_change_by_another_gateway_ends_the_wait(tmp_path: Path) -> None:
    async with world(tmp_path) as here, closing(here.broker.bus("gateway/other")) as bus:
        other = Gateway(here.settings, KEY, bus, here.store, here.stores)
        async with running(other):
            job = await here.run()
            url = f"http://127.0.0.1:{other.port}{ROOT}/status-sync/{job}?wait=60000"
            headers = {"Authorization": "a-key-of-anna"}
            waiting = asyncio.create_task(body_of(here.session, url, headers))
            await here.ask("POST", f"{ROOT}/cancel/{job}")

            async with asyncio.timeout(30):
                assert (await waiting)["status"] == "CANCELLED"


async def body_of(session: aiohttp.ClientSession, url: str, headers: dict[str, str]) -> Any:
    async with session.get(url, headers=headers) as answer:
        return await answer.json()


# --- Streams


async def stream(here: World, job: str, wait: int = 60_000) -> dict[str, Any]:
    answer = await here.ask("GET", f"{ROOT}/stream/{job}?wait={wait}")
    assert answer.status == 200, answer
    body: dict[str, Any] = answer.body
    return body


async def test_a_stream_gives_each_change_of_the_output_once_and_the_end_to_its_last(
    tmp_path: Path,
) -> None:
    # The trainer of this test says nothing for seconds: no claim must be lost meanwhile.
    async with world(tmp_path, heartbeat=5.0) as here:
        job, trainer = await training(here)
        first = await stream(here, job)
        assert (first["id"], first["status"]) == (job, "IN_PROGRESS")
        assert first["stream"][0]["output"]["stage"] == "training"

        await trainer.publish(TrainingProgressed, progress={"step": 3, "steps": 8})
        (second,) = (await stream(here, job))["stream"]
        assert second["output"]["step"] == 3
        assert (await stream(here, job, wait=0))["stream"] == []

        await trainer.finish_training()
        await here.status_becomes(job, "COMPLETED")
        last = await stream(here, job)
        assert last["status"] == "COMPLETED"
        assert last["stream"][0]["output"]["train"]["steps"] == 8
        assert (await stream(here, job))["stream"] == []


async def test_a_job_that_has_ended_unseen_streams_its_results(here: World) -> None:
    job = await trained(here)

    (only,) = (await stream(here, job))["stream"]

    assert only["output"]["train"]["steps"] == 8


async def test_two_who_read_one_stream_share_it(here: World) -> None:
    job = await trained(here)

    answers = await asyncio.gather(*(stream(here, job) for _ in range(6)))

    assert sorted(len(answer["stream"]) for answer in answers) == [0, 0, 0, 0, 0, 1]


async def test_the_stream_of_a_cancelled_job_ends_so_that_nobody_reads_for_ever(
    here: World,
) -> None:
    job = await here.run()
    await here.ask("POST", f"{ROOT}/cancel/{job}")

    assert len((await stream(here, job))["stream"]) == 1
    assert (await stream(here, job))["stream"] == []
    here.clock.ahead += 11
    assert (await here.ask("GET", f"{ROOT}/stream/{job}")).status == 404


# --- Trying again


async def test_a_result_of_another_kind_is_told_in_words_and_its_worker_to_operators(
    here: World,
) -> None:
    job = await here.run()
    fetcher = await here.claim(job, "staging")
    with capture_logs() as logs:
        await fetcher.publish(ModelStaged, inference=(), model="cache/base", worker="fetcher/h-3/1")
        again = await eventually(lambda: tried_again(here, job))

    assert again["reason"] == "its worker gave a result of another kind (model.staged)"
    (noted,) = [each for each in logs if each["event"] == "unexpected_result"]
    assert (noted["worker"], noted["type"], noted["job"]) == ("fetcher/h-3/1", "model.staged", job)


async def test_an_unexpected_result_is_told_once_though_another_writer_was_faster(
    here: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await here.run()
    fetcher = await here.claim(job, "staging")
    replace, tries = SqlJobStore.replace, list[str]()

    async def second_time(store: SqlJobStore, row: StoredJob, *rest: Any, **more: Any) -> bool:
        tries.append(row.id)
        return len(tries) > 1 and await replace(store, row, *rest, **more)

    monkeypatch.setattr(SqlJobStore, "replace", second_time)
    with capture_logs() as logs:
        await fetcher.publish(ModelStaged, inference=(), model="cache/base", worker="fetcher/h-3/1")
        await eventually(lambda: tried_again(here, job))

    assert len(tries) > 1
    assert [each["event"] for each in logs].count("unexpected_result") == 1


async def tried_again(here: World, job: str) -> dict[str, Any] | None:
    retries: list[dict[str, Any]] = (await here.status(job))["output"].get("retries", [])
    return retries[0] if retries else None


async def test_a_failed_job_goes_on_from_the_stage_that_failed(here: World) -> None:
    job = await failed(here)

    answer = await here.ask("POST", f"{ROOT}/retry/{job}")

    assert (answer.status, answer.body) == (200, {"id": job, "status": "IN_QUEUE"})
    assert isinstance(await here.get(TRAINER), DatasetStaged)
    body = await here.status(job)
    assert "error" not in body
    assert body["executionTime"] == 0
    trainer = await here.claim(job, "training")
    assert trainer.grant.attempt == 2
    await trainer.finish_training()
    assert (await here.status_becomes(job, "COMPLETED"))["output"]["train"]["steps"] == 8


async def test_a_job_that_did_not_fail_is_not_run_again(here: World) -> None:
    job = await trained(here)

    answer = await here.ask("POST", f"{ROOT}/retry/{job}")

    assert answer.status == 400
    assert "COMPLETED; only one that FAILED or TIMED_OUT" in answer.body["error"]
    assert (await here.ask("POST", f"{ROOT}/retry/{job}", key=OTHER_KEY)).status == 404


async def test_a_worker_of_the_run_before_is_ignored(here: World) -> None:
    job, trainer = await training(here, {**TRAIN_ONLY, "policy": {"executionTimeout": 5000}})
    here.clock.ahead += 6
    await here.status_becomes(job, "TIMED_OUT")

    await here.ask("POST", f"{ROOT}/retry/{job}")
    await trainer.finish_training()

    refused = await eventually(lambda: found(here._refusals(trainer.id)))
    assert "not the live one" in refused.reason or "has ended" in refused.reason
    assert (await here.status(job))["status"] == "IN_QUEUE"


# --- What is wanted of a training at work


async def commands_heard(here: World, times: int) -> list[dict[Command, int]]:
    """The messages to workers, once there are so many."""

    async def look() -> list[dict[Command, int]] | None:
        asked = [
            each.commands for each in here.received.messages if isinstance(each, CommandIssued)
        ]
        return asked if len(asked) >= times else None

    return await eventually(look)


async def checking_only(here: World) -> str:
    return str((await here.ask("POST", f"{ROOT}/dataset/check", json=TRAIN_ONLY)).body["id"])


@pytest.mark.parametrize("kind", ["sample", "save", "stop"])
async def test_a_command_reaches_the_worker(here: World, kind: str) -> None:
    job, trainer = await training(here)

    answer = await here.ask("POST", f"{ROOT}/jobs/{job}/{kind}")

    assert (answer.status, answer.body) == (200, {"id": job, "status": "IN_PROGRESS"})
    asked = await here.receive(CommandIssued)
    assert (asked.job, asked.claim, asked.commands) == (job, trainer.id, {kind: 1})


async def test_a_command_is_sent_with_each_heartbeat_and_stays_one_until_it_is_done(
    here: World,
) -> None:
    job, trainer = await training(here)
    for _ in range(2):
        assert (await here.ask("POST", f"{ROOT}/jobs/{job}/save")).status == 200
    await trainer.publish(TrainingProgressed, progress={"step": 1})
    assert await commands_heard(here, 3) == [{"save": 1}] * 3

    artifact = await trainer.put("a checkpoint", "checkpoint")
    await trainer.publish(CheckpointSaved, artifact=artifact, step=2, epoch=0, command=1)

    async def is_another_command() -> bool | None:
        before = len(await commands_heard(here, 3))
        await here.ask("POST", f"{ROOT}/jobs/{job}/save")
        return (await commands_heard(here, before + 1))[-1] == {"save": 2} or None

    await eventually(is_another_command)


@pytest.mark.parametrize("end", ["it is interrupted", "it goes silent"])
async def test_open_commands_and_those_issued_meanwhile_come_with_the_next_claim(
    here: World, end: str
) -> None:
    job, trainer = await training(here)
    await here.ask("POST", f"{ROOT}/jobs/{job}/save")
    if end == "it is interrupted":
        await trainer.publish(TrainingInterrupted)
    assert isinstance(await here.get(TRAINER), DatasetStaged)

    assert (await here.ask("POST", f"{ROOT}/jobs/{job}/stop")).status == 200

    assert (await here.claim(job, "training")).grant.commands == {"save": 1, "stop": 1}


async def test_a_training_that_is_not_running_takes_no_commands(here: World) -> None:
    done, (drawing, trainer) = await trained(here), await training(here, REQUEST)
    await trainer.finish_training()
    await here.claim(drawing, "generation")
    waiting, checking = await here.run(), await checking_only(here)
    model_only = {"model": "org/name", "inference": {"prompt": "a cat"}}
    untrained = await here.run({"input": model_only})

    for job, reason in (
        (waiting, "the training has not begun: the job is IN_QUEUE"),
        (drawing, "the training has ended"),
        (done, "the job has ended: it is COMPLETED"),
        (checking, "the job trains nothing"),
        (untrained, "the job trains nothing"),
    ):
        answer = await here.ask("POST", f"{ROOT}/jobs/{job}/stop")
        assert (answer.status, answer.body["error"]) == (409, reason)


async def test_another_owners_training_takes_no_commands(here: World) -> None:
    job, _ = await training(here)

    for kind in ("save", "stop"):
        answer = await here.ask("POST", f"{ROOT}/jobs/{job}/{kind}", key=OTHER_KEY)
        assert answer.status == 404
    await here.ask("POST", f"{ROOT}/jobs/{job}/sample")

    assert await commands_heard(here, 1) == [{"sample": 1}]


async def test_a_training_with_too_many_commands_can_still_be_cancelled(here: World) -> None:
    job, _ = await training(here)
    wished = [(await here.ask("POST", f"{ROOT}/jobs/{job}/save")).status for _ in range(100)]
    while (status := (await here.ask("POST", f"{ROOT}/jobs/{job}/save")).status) == 200:
        wished.append(status)
        assert len(wished) < 1000, "the limit never came"

    assert status == 429
    assert (await here.ask("POST", f"{ROOT}/cancel/{job}")).body["status"] == "CANCELLED"


# --- The queue as a whole


async def test_a_purge_cancels_what_waits_and_nothing_else(here: World) -> None:
    at_work, _ = await training(here)
    waiting = [await here.run() for _ in range(2)]
    theirs = (await here.ask("POST", f"{ROOT}/run", json=REQUEST, key=OTHER_KEY)).body["id"]

    answer = await here.ask("POST", f"{ROOT}/purge-queue")

    assert (answer.status, answer.body) == (200, {"removed": 2, "status": "completed"})
    assert [(await here.status(job))["status"] for job in waiting] == ["CANCELLED"] * 2
    assert (await here.status(at_work))["status"] == "IN_PROGRESS"
    status = await here.ask("GET", f"{ROOT}/status/{theirs}", key=OTHER_KEY)
    assert status.body["status"] == "IN_QUEUE"


async def health_with(here: World, *, idle: int) -> dict[str, Any] | None:
    body: dict[str, Any] = (await here.ask("GET", f"{ROOT}/health")).body
    return body if body["workers"]["idle"] == idle else None


async def test_health_counts_ones_own_jobs_and_everybodys_workers(here: World) -> None:
    await trained(here)
    retried = await failed(here)
    await here.ask("POST", f"{ROOT}/retry/{retried}")
    await here.get(TRAINER)
    await here.claim(retried, "training")
    await here.run()
    idle = [asyncio.create_task(here.bus.get(TRAINER)) for _ in range(2)]

    health = await eventually(lambda: health_with(here, idle=2))

    assert health["jobs"] == {
        "completed": 1, "failed": 0, "inProgress": 1, "inQueue": 1, "retried": 1,
    }  # fmt: skip
    workers = health["workers"]
    assert (workers["idle"], workers["running"], workers["ready"]) == (2, 1, 3)
    theirs = (await here.ask("GET", f"{ROOT}/health", key=OTHER_KEY)).body
    assert set(theirs["jobs"].values()) == {0}
    for task in idle:
        task.cancel()


# --- Submitting once


async def test_the_same_idempotency_key_is_the_same_job(here: World) -> None:
    once = {"Idempotency-Key": "order 17"}

    answers = await asyncio.gather(
        *(here.ask("POST", f"{ROOT}/run", json=REQUEST, headers=once) for _ in range(5))
    )

    assert {answer.status for answer in answers} == {200}
    assert len({answer.body["id"] for answer in answers}) == 1
    other = await here.ask("POST", f"{ROOT}/run", json=REQUEST, headers=once, key=OTHER_KEY)
    assert other.body["id"] != answers[0].body["id"]
    asked = {(await here.get(FETCHER)).job for _ in range(2)}
    assert asked == {answers[0].body["id"], other.body["id"]}
    assert await here.bus.depth(FETCHER) == 0


async def test_a_repeated_request_answers_with_the_state_of_the_job(here: World) -> None:
    once = {"Idempotency-Key": "order 17"}
    first = await here.ask("POST", f"{ROOT}/run", json=REQUEST, headers=once)
    await here.ask("POST", f"{ROOT}/cancel/{first.body['id']}")

    again = await here.ask("POST", f"{ROOT}/run", json=REQUEST, headers=once)

    assert again.body == {"id": first.body["id"], "status": "CANCELLED"}


async def test_a_key_that_was_used_for_another_request_is_refused(here: World) -> None:
    once = {"Idempotency-Key": "order 17"}
    await here.ask("POST", f"{ROOT}/run", json=REQUEST, headers=once)

    answer = await here.ask("POST", f"{ROOT}/run", json=TRAIN_ONLY, headers=once)

    assert answer.status == 422
    assert "used for another request" in answer.body["error"]


@pytest.mark.parametrize("key", ["", "x" * 256])
async def test_a_key_of_no_use_is_refused(here: World, key: str) -> None:
    headers = {"Idempotency-Key": key}

    answer = await here.ask("POST", f"{ROOT}/run", json=REQUEST, headers=headers)

    assert answer.status == 400
    assert "Idempotency-Key: expected 1 to 255" in answer.body["error"]
