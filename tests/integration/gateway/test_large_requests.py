"""Large requests and results: whole for clients and workers, small in rows and on the broker."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shared.adapters.folder import FolderStore
from shared.errors import Unavailable
from shared.messaging.messages import (
    ArtifactsPublished,
    BucketChecked,
    DatasetStaged,
    DrawnImage,
    ImagesGenerated,
    Message,
    SamplesGenerated,
    StagingDue,
    WebhookDue,
    encode,
)
from shared.messaging.topology import FETCHER, INFERENCER_RESULTS, NOTIFIER_WEBHOOKS, TRAINER
from shared.storage.large_fields import LARGE, load_fields, store_message
from tests.support.gateway_world import (
    API_KEY,
    S3_CONFIG,
    TRAIN_ONLY,
    Claimed,
    World,
    eventually,
    world,
)
from tests.support.live_folders import files_below

ROOT = "/v2/everydream-v1"
SMALL = LARGE
"""Bytes that no row and no message of a large job reaches."""
LONG = "ein Fuß " * (LARGE // 8)
REQUEST: dict[str, Any] = {
    "input": {
        "train": {"data_url": "https://example.com/dataset.zip", "sample_prompts": [LONG]},
        "inference": [{"prompt": LONG, "passback": "back", "seed": 7}],
    },
    "webhook": "https://example.com/hook",
}


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as one:
        yield one


def largest_row(here: World) -> int:
    """Bytes of the largest record, message or event in the database."""
    columns = {"jobs": "record", "outbox": "message", "events": "data"}
    with closing(sqlite3.connect(here.settings.home / "everydream.db")) as database:
        sizes = [
            database.execute(f"SELECT max(length({column})) FROM {table}").fetchone()[0] or 0  # noqa: S608
            for table, column in columns.items()
        ]
    return max(sizes)


async def publish(worker: Claimed, kind: Any, **fields: Any) -> None:
    """As a worker does: what is large is in the store."""
    stamp: dict[str, Any] = {"job": worker.job, "stage": worker.stage, "claim": worker.id}
    small = await store_message(worker.world.store, kind(**stamp, **fields))
    assert len(encode(small)) < SMALL
    await worker.world.publish(small)


async def loaded(here: World, message: Message) -> Any:
    assert len(encode(message)) < SMALL
    return await load_fields(here.store, message)


async def test_a_large_job_goes_through_and_no_row_or_message_is_large(here: World) -> None:
    job = await here.run(REQUEST)
    assert (await here.status(job))["input"] == REQUEST["input"]

    submitted = await loaded(here, await here.get(FETCHER))
    assert isinstance(submitted, StagingDue)
    assert submitted.train
    assert (submitted.inference[0].prompt, submitted.train.sample_prompts) == (LONG, [LONG])
    fetcher = await here.claim(job, "staging")
    await publish(
        fetcher, DatasetStaged, train=submitted.train, inference=submitted.inference,
        dataset="d", base_model="b", report={"images": 4, "warnings": [LONG]},
    )  # fmt: skip
    staged = await loaded(here, await here.get(TRAINER))
    assert staged.inference == submitted.inference
    trainer = await here.claim(job, "training", gpu="card")
    sample = await trainer.sample(0, 0)
    row = SamplesGenerated(
        job=job,
        samples=tuple(msgspec.structs.replace(sample, index=i, prompt=LONG) for i in range(2)),
    )
    await here.publish(await store_message(here.store, row))
    output = (await eventually(lambda: samples_of(here, job)))["output"]
    assert [each["prompt"] for each in output["samples"]] == [LONG, LONG]
    assert output["dataset"]["warnings"] == [LONG]
    await trainer.finish_training()
    await here.get(INFERENCER_RESULTS)
    inferencer = await here.claim(job, "generation", gpu="card")
    image = DrawnImage(
        artifact=await inferencer.put(f"jobs/{job}/generation/1/000.png", "image"),
        prompt=LONG, width=512, height=512, num_inference_steps=50, guidance_scale=7.5,
        scheduler="K-LMS", seed=7,
    )  # fmt: skip
    await publish(inferencer, ImagesGenerated, images=(image, image))

    ended = await here.status_becomes(job, "COMPLETED")
    assert [each["prompt"] for each in ended["output"]["inference"]] == [LONG, LONG]
    assert len(ended["output"]["train"]["samples"]) == 2
    assert largest_row(here) < SMALL
    due = await loaded(here, await here.get(NOTIFIER_WEBHOOKS))
    assert isinstance(due, WebhookDue)
    assert json.loads(due.body)["input"] == REQUEST["input"]
    kept = [each async for each in here.store.list(f"jobs/{job}/values/")]
    assert kept
    await here.ask("DELETE", f"{ROOT}/jobs/{job}")
    await eventually(lambda: nothing_left(here, job))


async def samples_of(here: World, job: str) -> dict[str, Any] | None:
    status = await here.status(job)
    return status if status["output"].get("samples") else None


async def nothing_left(here: World, job: str) -> bool | None:
    return not [each async for each in here.store.list(f"jobs/{job}/")] or None


async def test_events_with_large_data_are_sent_whole(here: World) -> None:
    job = await here.run(TRAIN_ONLY)
    submitted = await here.get(FETCHER)
    assert isinstance(submitted, StagingDue)
    fetcher = await here.claim(job, "staging")
    report = {"images": 4, "warnings": [LONG]}
    await publish(
        fetcher, DatasetStaged, train=submitted.train, dataset="d", base_model="b", report=report
    )
    await here.claim(job, "training", gpu="card")  # the fact is recorded
    await here.ask("POST", f"{ROOT}/cancel/{job}")

    url = here.url(f"{ROOT}/events/{job}")
    async with here.session.get(url, headers={"Authorization": API_KEY}) as answer:
        lines = (await answer.text()).splitlines()

    data = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data")]
    assert [each["warnings"] for each in data if "warnings" in each] == [[LONG]]
    assert largest_row(here) < SMALL


async def test_links_of_two_publications_are_joined_however_many_they_are(here: World) -> None:
    job = await here.run({**drawn_request(), "s3Config": S3_CONFIG})
    submitted = await here.get(FETCHER)
    await (await here.claim(job, "staging")).stage_dataset(submitted)
    await (await here.claim(job, "bucket_check")).publish(BucketChecked)
    await here.get(TRAINER)
    await (await here.claim(job, "training", gpu="card")).finish_training()
    publisher = await here.claim(job, "model_publication")
    await publish(publisher, ArtifactsPublished, urls=many_links(f"jobs/{job}/training/1/"))
    await here.get(INFERENCER_RESULTS)
    await (await here.claim(job, "generation", gpu="card")).finish_generation()
    publisher = await here.claim(job, "image_publication")
    await publish(publisher, ArtifactsPublished, urls=many_links(f"jobs/{job}/generation/1/"))

    output = (await here.status_becomes(job, "COMPLETED"))["output"]

    assert output["train"]["checkpoint_url"].startswith("https://bucket/")
    assert output["inference"][0]["image"].startswith("https://bucket/")
    assert largest_row(here) < SMALL
    url = here.url(f"{ROOT}/events/{job}")
    async with here.session.get(url, headers={"Authorization": API_KEY}) as answer:
        events = await answer.text()
    assert events.count('"url":"https://bucket/') == 3, "two checkpoints and an image"


def drawn_request() -> dict[str, Any]:
    return {"input": {**TRAIN_ONLY["input"], "inference": {"prompt": "a cat", "seed": 7}}}


def many_links(prefix: str) -> dict[str, str]:
    shown = ("last-job.safetensors", "job-ep01.safetensors", "000.png")
    names = (*shown, *(f"{number}.png" for number in range(1000)))
    return {f"{prefix}{name}": f"https://bucket/{prefix}{name}?{'x' * 50}" for name in names}


async def test_a_job_whose_large_fields_are_lost_goes_on_without_them(here: World) -> None:
    """The store may have been put back to an older state than the database."""
    job = await here.run(REQUEST)
    submitted = await loaded(here, await here.get(FETCHER))
    fetcher = await here.claim(job, "staging")
    await here.store.delete(f"jobs/{job}/values/")

    status = await here.status(job)
    await publish(
        fetcher, DatasetStaged, train=submitted.train, dataset="d", base_model="b",
        report={"images": 4},
    )  # fmt: skip
    await here.claim(job, "training", gpu="card")

    assert (status["status"], status["input"]) == ("IN_QUEUE", {})
    assert (await here.ask("POST", f"{ROOT}/cancel/{job}")).body["status"] == "CANCELLED"


async def test_what_was_stored_for_a_job_that_was_not_written_is_deleted(
    here: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = FolderStore.put

    async def put_and_lose_the_database(store: FolderStore, key: str, data: bytes) -> None:
        await put(store, key, data)
        here.jobs.unavailable = True

    with monkeypatch.context() as patch:
        patch.setattr(FolderStore, "put", put_and_lose_the_database)
        answer = await here.ask("POST", f"{ROOT}/run", json=REQUEST)
    assert answer.status == 503
    assert stored(here)
    here.jobs.unavailable = False

    async def nothing_is_left() -> bool | None:
        return None if stored(here) else True

    await eventually(nothing_is_left)


def stored(here: World) -> list[Path]:
    files = files_below(here.settings.home / "store")
    return [path for path in files if path.suffix == ".json"]


@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
async def test_while_the_store_is_away_only_what_needs_it_is_refused(
    here: World,
    monkeypatch: pytest.MonkeyPatch,
    large: bool,  # noqa: FBT001
) -> None:
    async def away(*_: Any) -> None:
        raise Unavailable("a test made the store unavailable")

    with monkeypatch.context() as patch:
        patch.setattr(FolderStore, "put", away)
        request = REQUEST if large else TRAIN_ONLY
        answer = await here.ask("POST", f"{ROOT}/run", json=request)

    assert answer.status == (503 if large else 200)
    jobs = (await here.ask("GET", f"{ROOT}/jobs")).body["jobs"]
    if large:
        assert answer.headers["Retry-After"]
        assert jobs == []
    else:
        assert [each["id"] for each in jobs] == [answer.body["id"]]
