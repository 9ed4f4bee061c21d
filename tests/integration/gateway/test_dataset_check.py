"""``/dataset/check``: a job that ends with the report on its dataset."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.gateway.jobs.rows import read
from shared.messaging.messages import (
    DatasetStaged,
    JobCompleted,
    StageFailed,
    StagingDue,
    TrainingStarted,
    WebhookDue,
)
from shared.messaging.topology import FETCHER, NOTIFIER_WEBHOOKS, TRAINER
from tests.support.gateway_world import (
    OTHER_KEY,
    REPORT,
    REQUEST,
    S3_CONFIG,
    Claimed,
    World,
    eventually,
    world,
)

CHECK, RUN = "/v1/everydream-v1/dataset/check", "/v1/everydream-v1/run"
HOOK = "https://example.com/hook"


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as one:
        yield one


async def asked(here: World, **more: Any) -> tuple[str, Claimed, StagingDue]:
    """A check whose staging is claimed."""
    answer = await here.ask("POST", CHECK, json={**REQUEST, **more})
    assert (answer.status, answer.body["status"]) == (200, "IN_QUEUE")
    submitted = await here.get(FETCHER)
    assert isinstance(submitted, StagingDue)
    return submitted.job, await here.claim(submitted.job, "staging"), submitted


async def test_a_check_ends_with_the_report_and_calls_the_webhook(here: World) -> None:
    job, fetcher, submitted = await asked(here, webhook=HOOK, s3Config=S3_CONFIG)
    assert submitted.inference == ()
    assert set(read(await row(here, job)).stages) == {"staging"}, "no bucket is tried"

    await fetcher.stage_dataset(submitted)

    last = await here.status_becomes(job, "COMPLETED")
    assert last["output"] == {"dataset": REPORT}
    assert last["executionTime"] == 0
    assert (await here.receive(JobCompleted)).output == {"dataset": REPORT}
    due = await here.get(NOTIFIER_WEBHOOKS)
    assert isinstance(due, WebhookDue)
    assert '"output":{"dataset":{"images":4,' in due.body


async def row(here: World, job: str) -> Any:
    return await here.stores.jobs.get(job)


async def test_nothing_is_trained_and_nothing_of_the_dataset_stays(here: World) -> None:
    job, fetcher, submitted = await asked(here)
    await fetcher.stage_dataset(submitted)
    await here.status_becomes(job, "COMPLETED")

    assert isinstance(await here.get(TRAINER), DatasetStaged)
    claim = "c" * 36
    await here.publish(TrainingStarted(job=job, stage="training", claim=claim, worker="w", gpu="g"))
    assert (await here.refusal_of(claim)).reason == "the job has ended"
    assert (await here.status(job))["status"] == "COMPLETED"
    await eventually(lambda: _gone(here, job))


async def _gone(here: World, job: str) -> bool | None:
    return None if [entry async for entry in here.store.list(f"jobs/{job}/")] else True


async def test_a_check_that_finds_nothing_usable_fails_with_the_reason(here: World) -> None:
    job, fetcher, _ = await asked(here)

    await fetcher.publish(StageFailed, kind="refused", reason="no usable image")

    last = await here.status_becomes(job, "FAILED")
    assert (last["error"], last["output"]) == ("no usable image", {"dataset": {}})


async def test_a_check_ends_with_the_warnings_of_its_request(here: World) -> None:
    train = {**REQUEST["input"]["train"], "lr_warmup_steps": 5}
    job, fetcher, submitted = await asked(here, input={"train": train})

    await fetcher.stage_dataset(submitted)

    last = await here.status_becomes(job, "COMPLETED")
    (warning,) = last["output"]["warnings"]
    assert "input.train.lr_warmup_steps 5 has no effect" in warning


async def test_a_check_and_a_run_of_the_same_request_are_not_the_same(here: World) -> None:
    once = {"Idempotency-Key": "one"}
    check = await here.ask("POST", CHECK, json=REQUEST, headers=once)

    again = await here.ask("POST", CHECK, json=REQUEST, headers=once)
    run = await here.ask("POST", RUN, json=REQUEST, headers=once)

    assert again.body == check.body
    assert run.status == 422


async def test_a_check_is_of_a_dataset(here: World) -> None:
    model = "org/model"
    answer = await here.ask(
        "POST", CHECK, json={"input": {"model": model, "inference": {"prompt": "x"}}}
    )

    assert answer.status == 400
    assert answer.body["mistakes"] == [
        "input.train: required for a check of its dataset, but missing"
    ]


async def test_a_check_is_its_key_s_alone(here: World) -> None:
    job, *_ = await asked(here)

    answer = await here.ask("GET", f"/v1/everydream-v1/status/{job}", key=OTHER_KEY)

    assert answer.status == 404
