"""A running gateway: the test plays the workers by publishing their messages."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from services.gateway.app import Gateway
from services.gateway.jobs.fields.shown import shown
from services.gateway.ports import StoredJob
from shared.keys import unseal
from shared.messaging.messages import (
    ArtifactsPublished,
    BucketChecked,
    BucketDue,
    CheckpointFinal,
    CheckpointSaved,
    ClaimGranted,
    DatasetStaged,
    GatewayHeartbeat,
    JobCancelled,
    JobRequested,
    JobStarted,
    ModelStaged,
    ResumePointSaved,
    SamplesGenerated,
    StageFailed,
    StagingDue,
    StagingInterrupted,
    StagingProgressed,
    TrainingProgressed,
    WebhookDelivered,
    WebhookDue,
    WebhookFailed,
)
from shared.messaging.topology import (
    FETCHER,
    GATEWAY_RECORDER,
    INFERENCER_RESULTS,
    NOTIFIER_PUBLISH,
    NOTIFIER_WEBHOOKS,
    TRAINER,
)
from shared.network.addresses import shown_url
from shared.request import ModelSource, S3Config
from shared.service_process import closing
from shared.storage.snapshots import sample_key, snapshot_prefix
from tests.integration.gateway.test_server_sent_events import following
from tests.support.gateway_world import (
    API_KEY,
    DEADLINE,
    HEARTBEAT,
    KEY,
    LIMIT,
    OTHER_KEY,
    REPORT,
    REQUEST,
    S3_CONFIG,
    Claimed,
    World,
    answers_within,
    eventually,
    found,
    running,
    training,
    without_signatures,
    world,
)
from tests.support.servers.rabbitmq import RabbitMQ

TRAIN_ONLY = {"input": {"train": REQUEST["input"]["train"]}}
HOOK = "https://example.com/hook"


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as one:
        yield one


async def staged(here: World, request: dict[str, Any] = REQUEST) -> str:
    """A job that waits for a trainer."""
    job = await here.run(request)
    submitted = await here.get(FETCHER)
    await (await here.claim(job, "staging")).stage_dataset(submitted)
    assert isinstance(await here.get(TRAINER), DatasetStaged)
    return job


async def trained(here: World, request: dict[str, Any] = REQUEST) -> str:
    """A job with a model."""
    job = await staged(here, request)
    if "s3Config" in request:
        await (await here.claim(job, "bucket_check")).publish(BucketChecked)
    await (await here.claim(job, "training", gpu="H100")).finish_training()
    return job


# --- The straight path ------------------------------------------------------------------------


async def test_a_job_completes_and_the_webhook_reports_it(here: World) -> None:
    job = await here.run({**REQUEST, "webhook": HOOK})
    assert (await here.status(job))["output"]["stage"] == "staging"

    submitted = await here.get(FETCHER)
    fetcher = await here.claim(job, "staging")
    await fetcher.stage_dataset(submitted)

    assert isinstance(await here.get(TRAINER), DatasetStaged)
    trainer = await here.claim(job, "training", gpu="H100")
    at_work = await here.status_becomes(job, "IN_PROGRESS")
    assert at_work["gpu"] == "H100"
    assert (await here.receive(JobStarted)).gpu == "H100"
    await trainer.publish(TrainingProgressed, progress={"step": 3, "loss": 0.5})

    shown = await eventually(lambda: output_if(here, job, step=3))
    assert shown["stage"] == "training"
    assert shown["loss"] == 0.5
    assert shown["eta_seconds"] is None
    assert shown["dataset"] == REPORT
    assert shown["samples"] == []
    row = tuple([await trainer.sample(0, index) for index in (1, 0)])
    await here.publish(SamplesGenerated(job=job, samples=row))
    (first, second) = (await eventually(lambda: samples_if(here, job)))["samples"]
    assert (first["prompt"], second["prompt"]) == ("prompt 0", "prompt 1")
    await trainer.finish_training()

    assert isinstance(await here.get(INFERENCER_RESULTS), CheckpointFinal)
    inferencer = await here.claim(job, "generation", gpu="H100")
    await inferencer.finish_generation()

    done = await here.status_becomes(job, "COMPLETED")
    assert list(done) == [
        "delayTime", "executionTime", "gpu", "id", "input", "output", "status"
    ]  # fmt: skip
    assert done["input"] == REQUEST["input"]
    assert done["output"]["train"]["steps"] == 8
    assert done["output"]["dataset"] == REPORT, "which images were left out is still told"
    assert done["output"]["inference"][0]["seed"] == 7
    (early,) = done["output"]["train"]["checkpoints"]
    assert (early["epoch"], early["validation_loss"], early["best"]) == (1, 0.25, True)
    kinds = [each["kind"] for each in done["output"]["artifacts"]]
    assert kinds == ["checkpoint", "checkpoint", "image", *["sample"] * 3, "metrics"]
    *_, last = samples = done["output"]["train"]["samples"]
    assert [each["step"] for each in samples] == [0, 0, 8]
    link = last["image"].removeprefix("http://gateway.example")
    assert (last["epoch"], last["prompt"], last["seed"]) == (2, "prompt 0", 5)
    async with here.session.get(here.url(link)) as answer:
        assert await answer.read() == sample_key(job, step=8, index=0).encode()

    due = await here.get(NOTIFIER_WEBHOOKS)
    assert isinstance(due, WebhookDue)
    assert due.url == HOOK
    assert without_signatures(json.loads(due.body)) == without_signatures(done)


async def test_thumbnails_are_shown_beside_their_images_and_are_no_results(here: World) -> None:
    job, trainer = await training(here, REQUEST)
    await here.publish(SamplesGenerated(job=job, samples=(await trainer.sample(0, 0),)))
    live = await eventually(lambda: samples_if(here, job))
    await trainer.finish_training()
    await (await here.claim(job, "generation", gpu="H100")).finish_generation()
    output = (await here.status_becomes(job, "COMPLETED"))["output"]

    shown = [*output["train"]["samples"], *output["inference"]]
    assert len(shown) == 3
    for each in (*shown, *live["samples"]):
        small = each["thumbnail"].removeprefix("http://gateway.example")
        async with here.session.get(here.url(small)) as answer:
            assert (await answer.read()).decode().removesuffix(".webp") in each["image"]
            assert answer.content_type == "image/webp"
    listed = [each["name"] for each in output["artifacts"]]
    assert not [name for name in listed if name.endswith(".webp")]
    followed = await events_of(here, job)
    assert [kind for kind, data in followed if "thumbnail" in data] == ["sample", "sample", "image"]
    smalls = [data["thumbnail"].partition("?")[0] for _, data in followed if "thumbnail" in data]
    assert smalls == [each["thumbnail"].partition("?")[0] for each in shown]


async def events_of(here: World, job: str) -> list[tuple[str, dict[str, Any]]]:
    """The types of an ended job's events, with their data."""
    url, key = here.url(f"/v1/everydream-v1/events/{job}"), {"Authorization": API_KEY}
    async with here.session.get(url, headers=key) as answer:
        told = (await answer.text()).strip().split("\n\n")
    events = [dict(line.split(": ", 1) for line in each.splitlines()) for each in told]
    return [(each["event"], json.loads(each["data"])) for each in events]


async def output_if(here: World, job: str, **expected: object) -> dict[str, Any] | None:
    output: dict[str, Any] = (await here.status(job))["output"]
    return output if expected.items() <= output.items() else None


async def samples_if(here: World, job: str) -> dict[str, Any] | None:
    output: dict[str, Any] = (await here.status(job))["output"]
    return output if output["samples"] else None


async def test_links_lead_to_the_files_of_the_store(here: World) -> None:
    job = await trained(here, TRAIN_ONLY)
    done = await here.status_becomes(job, "COMPLETED")

    link = done["output"]["train"]["checkpoint_url"].removeprefix("http://gateway.example")
    content = f"jobs/{job}/training/1/last-job.safetensors".encode()
    async with here.session.get(here.url(link)) as answer:
        assert await answer.read() == content
        assert answer.content_type == "application/octet-stream"
        assert answer.headers["Content-Disposition"].endswith("''last-job.safetensors")
    async with here.session.get(here.url(link), headers={"Range": "bytes=5-8"}) as part:
        assert (part.status, await part.read()) == (206, content[5:9])
    size = len(content)
    beyond = await here.ask("GET", link, headers={"Range": f"bytes={size}-"})
    assert (beyond.status, beyond.headers["Content-Range"]) == (416, f"bytes */{size}")
    assert f"within the file's {size} bytes" in beyond.body["error"]
    changed = await here.ask("GET", link, headers={"If-Match": '"another"'})
    assert (changed.status, "If-Match" in changed.body["error"]) == (412, True)
    async with here.session.head(here.url(link), headers={"If-Match": '"another"'}) as head:
        assert (head.status, await head.read()) == (412, b"")

    forged = re.sub("signature=.", "signature=g", link)
    for wrong in (forged, link.partition("?")[0], link.replace("last-job", "other")):
        assert (await here.ask("GET", wrong)).status == 403
    here.clock.ahead = 8 * 24 * 3600
    assert (await here.ask("GET", link)).status == 403


async def test_a_bucket_that_refuses_us_ends_the_job_before_any_gpu_works(here: World) -> None:
    job = await here.run({**REQUEST, "s3Config": S3_CONFIG})
    assert await here.get(NOTIFIER_PUBLISH) == BucketDue(job=job, run=1)
    notifier = await here.claim(job, "bucket_check")
    assert unseal(KEY, notifier.grant.s3 or "", job) == S3Config(**S3_CONFIG)

    await notifier.publish(StageFailed, kind="refused", reason="these keys may not do that")

    done = await here.status_becomes(job, "FAILED")
    assert (done["error"], done["executionTime"]) == ("these keys may not do that", 0)


async def test_what_could_not_be_found_out_about_a_bucket_is_always_shown(here: World) -> None:
    job = await here.run({**TRAIN_ONLY, "s3Config": S3_CONFIG})
    await (await here.claim(job, "bucket_check")).publish(BucketChecked, warning="no answer")
    await (await here.claim(job, "staging")).stage_dataset(await here.get(FETCHER))
    trainer = await here.claim(job, "training")
    assert (await here.status(job))["output"]["warnings"] == ["no answer"]
    await trainer.finish_training()
    await (await here.claim(job, "model_publication")).publish(ArtifactsPublished, urls={})

    done = await here.status_becomes(job, "COMPLETED")
    assert done["output"]["train"]["warnings"] == ["no answer"]


async def test_with_a_bucket_the_job_waits_for_its_publications(here: World) -> None:
    job = await trained(here, {**REQUEST, "s3Config": S3_CONFIG})
    publisher = await here.claim(job, "model_publication")
    assert unseal(KEY, publisher.grant.s3 or "", job) == S3Config(**S3_CONFIG)
    model = f"jobs/{job}/training/1/last-job.safetensors"
    await publisher.publish(ArtifactsPublished, urls={model: "https://s3.example.com/model"})

    inferencer = await here.claim(job, "generation")
    assert inferencer.grant.s3 is None
    await inferencer.finish_generation()
    publisher = await here.claim(job, "image_publication")
    assert (await here.status(job))["status"] == "IN_PROGRESS"
    await publisher.publish(ArtifactsPublished, urls={})

    done = await here.status_becomes(job, "COMPLETED")
    assert done["output"]["train"]["checkpoint_url"] == "https://s3.example.com/model"
    assert done["output"]["inference"][0]["image"].startswith("http://gateway.example/files/")
    row = await here.jobs.get(job)
    assert json.loads(row.record)["s3"] is None


async def test_a_job_whose_bucket_refuses_the_model_after_training_completes_with_links_of_ours(
    here: World,
) -> None:
    job = await trained(here, {**REQUEST, "s3Config": S3_CONFIG})
    publisher = await here.claim(job, "model_publication")
    await publisher.publish(StageFailed, kind="refused", reason="these keys may not do that")
    (told,) = (await eventually(lambda: warnings_if(here, job)))["warnings"]
    await (await here.claim(job, "generation")).finish_generation()
    await (await here.claim(job, "image_publication")).publish(ArtifactsPublished, urls={})

    done = await here.status_becomes(job, "COMPLETED")
    assert done["output"]["train"]["warnings"] == [told]
    assert told == (
        "your bucket does not have the model and its checkpoints: these keys may not do that; the"
        " links here are ours, and work as long as the job is kept"
    )
    link = done["output"]["train"]["checkpoint_url"].removeprefix("http://gateway.example")
    async with here.session.get(here.url(link)) as answer:
        assert await answer.read() == f"jobs/{job}/training/1/last-job.safetensors".encode()


async def warnings_if(here: World, job: str) -> dict[str, Any] | None:
    output: dict[str, Any] = (await here.status(job))["output"]
    return output if "warnings" in output else None


async def test_a_job_may_go_on_from_the_model_of_another_of_the_same_owner(here: World) -> None:
    first = await trained(here, TRAIN_ONLY)
    await here.status_becomes(first, "COMPLETED")
    going_on = {"input": {"train": {**TRAIN_ONLY["input"]["train"], "resume_ckpt_url": first}}}
    second = await here.run(going_on)
    submitted = await here.get(FETCHER)
    assert isinstance(submitted, StagingDue)
    assert submitted.train
    assert submitted.train.resume_ckpt_url == f"store:jobs/{first}/training/1/model"
    assert (await here.status(second))["input"] == going_on["input"]

    for job, key in ((first, OTHER_KEY), (second, API_KEY), (str(uuid4()), API_KEY)):
        request = {"input": {"train": {"data_url": HOOK, "resume_ckpt_url": job}}}
        answer = await here.ask("POST", "/v1/everydream-v1/run", json=request, key=key)
        assert answer.status == 400
        assert "of a job of yours that has a model" in answer.body["error"]


async def test_our_own_links_are_keys_of_the_store_for_their_owner_only(here: World) -> None:
    job = await trained(here, TRAIN_ONLY)
    done = await here.status_becomes(job, "COMPLETED")
    link = done["output"]["train"]["checkpoint_url"]
    request = {"input": {"train": {"data_url": HOOK, "resume_ckpt_url": link}}}
    await here.run(request)
    submitted = await here.get(FETCHER)
    assert isinstance(submitted, StagingDue)
    key = f"store:jobs/{job}/training/1/last-job.safetensors"
    assert submitted.train
    assert submitted.train.resume_ckpt_url == key

    answer = await here.ask("POST", "/v1/everydream-v1/run", json=request, key=OTHER_KEY)
    assert answer.status == 400
    forged = link.replace("signature=", "signature=0")
    for wrong in (forged, f"{here.settings.public_url}/v1/everydream-v1/status/{job}"):
        request = {"input": {"train": {"data_url": wrong}}}
        answer = await here.ask("POST", "/v1/everydream-v1/run", json=request)
        assert answer.status == 400
        assert "input.train.data_url: expected a link" in answer.body["error"]


# --- Drawing with a finished model ------------------------------------------------------------


def drawing_with(model: str) -> dict[str, Any]:
    return {"input": {"model": model, "inference": REQUEST["input"]["inference"]}}


async def drawn_again(here: World, model: str) -> tuple[str, ModelSource]:
    """A job that waits for a fetcher, and the model that it uses."""
    job = await here.run(drawing_with(model))
    submitted = await here.get(FETCHER)
    assert isinstance(submitted, StagingDue)
    assert submitted.train is None
    assert submitted.model
    return job, submitted.model


async def finished(here: World, **train: Any) -> dict[str, Any]:
    """A complete job with a model."""
    body = {"input": {"train": {**TRAIN_ONLY["input"]["train"], **train}}}
    return await here.status_becomes(await trained(here, body), "COMPLETED")


async def test_a_finished_job_is_drawn_from_again_without_a_trainer(here: World) -> None:
    first = (await finished(here, clip_skip=2))["id"]
    model = f"jobs/{first}/training/1/model"
    await here.store.put(f"{model}/model_index.json", b"{}")

    job = await here.run(drawing_with(first))
    submitted = await here.get(FETCHER)
    assert isinstance(submitted, StagingDue)
    assert submitted.model == ModelSource(
        source=f"store:{model}", clip_skip=2, name="last-job.safetensors", sha256="0" * 64
    )
    await (await here.claim(job, "staging")).stage_model(submitted)
    staged = await here.get(INFERENCER_RESULTS)
    while not isinstance(staged, ModelStaged):  # the first job's checkpoint waits there, too
        staged = await here.get(INFERENCER_RESULTS)
    waiting = await eventually(lambda: output_if(here, job, stage="generation"))
    assert (waiting["step"], waiting["dataset"], waiting["samples"]) == (None, {}, [])
    await (await here.claim(job, "generation", gpu="H100")).finish_generation()

    done = await here.status_becomes(job, "COMPLETED")
    assert done["gpu"] == "H100"
    assert done["input"] == drawing_with(first)["input"]
    assert done["output"]["train"] is None
    assert [each["seed"] for each in done["output"]["inference"]] == [7]
    assert await here.bus.depth(TRAINER) == 0
    later = await finished(here)  # deleted after generation, in order of their ends
    await eventually(lambda: true_if_the_result_alone_is_kept(here, later["id"]))
    assert await here.store.exists(f"{model}/model_index.json")


async def test_a_checkpoint_of_ours_keeps_what_its_job_knows_of_it(here: World) -> None:
    done = await finished(here, clip_skip=1)
    (early,) = done["output"]["train"]["checkpoints"]
    for link, name in (
        (early["url"], "job-ep01.safetensors"),
        (done["output"]["train"]["checkpoint_url"], "last-job.safetensors"),
    ):
        _, model = await drawn_again(here, link)
        key = f"store:jobs/{done['id']}/training/1/{name}"
        assert model == ModelSource(source=key, clip_skip=1, name=name, sha256="0" * 64)


async def test_a_loras_file_of_ours_is_put_on_the_model_that_it_was_trained_on(here: World) -> None:
    other = "https://example.com/other.safetensors"
    job, trainer = await training(here, training_from(None, lora_rank=8))
    key = f"jobs/{job}/training/1/job-ep00.safetensors"
    await trainer.publish(
        CheckpointSaved, artifact=await trainer.put(key, "checkpoint"), step=2, epoch=0
    )
    async with following(here, job) as source:
        saved = await source.until("checkpoint")
    assert await base_of(here, drawing_with(saved.data["url"])) == "store:cache/base"

    await trainer.finish_training(lora_base="cache/base")
    train = (await here.status_becomes(job, "COMPLETED"))["output"]["train"]
    for link in (train["checkpoints"][0]["url"], train["checkpoint_url"]):
        drawing, trained_on = drawing_with(link)["input"], training_from(link)["input"]["train"]
        assert await base_of(here, {"input": drawing}) == "store:cache/base"
        assert await base_of(here, {"input": {**drawing, "base": other}}) == other
        assert await base_of(here, {"input": {"train": trained_on}}) == "store:cache/base"
        assert await base_of(here, {"input": {"train": {**trained_on, "base": other}}}) == other
    assert await base_of(here, drawing_with(job)) == ""
    assert await base_of(here, training_from(job)) is None


async def test_a_whole_models_file_of_ours_is_put_on_nothing(here: World) -> None:
    (early,) = (await finished(here))["output"]["train"]["checkpoints"]

    assert await base_of(here, drawing_with(early["url"])) == ""
    assert await base_of(here, training_from(early["url"])) is None


def training_from(model: str | None, **more: Any) -> dict[str, Any]:
    train = {**TRAIN_ONLY["input"]["train"], "resume_ckpt_url": model, **more}
    return {"input": {"train": {name: value for name, value in train.items() if value is not None}}}


async def base_of(here: World, body: dict[str, Any]) -> str | None:
    """The base model that a fetcher is told of, for a job that is then cancelled."""
    job = await here.run(body)
    submitted = await here.get(FETCHER)
    while not isinstance(submitted, StagingDue) or submitted.job != job:
        submitted = await here.get(FETCHER)  # those that are cancelled come again
    assert (await here.ask("POST", f"/v1/everydream-v1/cancel/{job}")).status == 200
    named = submitted.train or submitted.model
    assert named
    return named.base


async def test_warnings_of_a_job_that_trains_nothing_stand_by_themselves(here: World) -> None:
    first = (await finished(here))["id"]
    job = await here.run({**drawing_with(first), "s3Config": S3_CONFIG})
    await (await here.claim(job, "bucket_check")).publish(BucketChecked, warning="no answer")
    await (await here.claim(job, "staging")).stage_model(await here.get(FETCHER))
    await (await here.claim(job, "generation")).finish_generation()
    await (await here.claim(job, "image_publication")).publish(ArtifactsPublished, urls={})

    output = (await here.status_becomes(job, "COMPLETED"))["output"]
    assert (output["train"], output["warnings"]) == (None, ["no answer"])


@pytest.mark.parametrize("elsewhere", ["org/name", "https://example.com/m.safetensors"])
async def test_a_model_from_elsewhere_is_left_to_the_fetcher(here: World, elsewhere: str) -> None:
    assert (await drawn_again(here, elsewhere))[1] == ModelSource(source=elsewhere)


async def test_nobody_draws_with_a_model_that_is_not_there_or_another_ones(here: World) -> None:
    done = await finished(here)
    drawing, _ = await drawn_again(here, done["id"])
    untrained = await here.run(TRAIN_ONLY)
    link = done["output"]["train"]["checkpoint_url"]
    no_job = "input.model: expected the id of a job of yours that has a model"
    no_link = "input.model: expected a link of this service to a file of yours that has not ended"
    for model, key, mistake in (
        (done["id"], OTHER_KEY, no_job),
        (str(uuid4()), API_KEY, no_job),
        (untrained, API_KEY, no_job),
        (drawing, API_KEY, no_job),
        (link, OTHER_KEY, no_link),
        (link.replace("signature=", "signature=0"), API_KEY, no_link),
    ):
        answer = await here.ask("POST", "/v1/everydream-v1/run", json=drawing_with(model), key=key)
        told = f"{mistake}, got {shown(shown_url(model))}"
        assert (answer.status, answer.body["mistakes"]) == (400, [told])


async def test_either_a_training_or_a_model_is_asked_for(here: World) -> None:
    both = {"input": {**REQUEST["input"], "model": str(uuid4())}}
    neither = {"input": {"inference": REQUEST["input"]["inference"]}}
    for body, got in ((both, "both"), (neither, "neither")):
        answer = await here.ask("POST", "/v1/everydream-v1/run", json=body)
        assert answer.status == 400
        assert answer.body["error"].endswith(f"got {got}")


# --- Claims, fences and heartbeats ------------------------------------------------------------


async def test_the_same_claim_gets_the_same_answer_and_a_second_worker_none(here: World) -> None:
    job = await here.run()
    first = await here.claim(job, "staging")
    here.received.messages.clear()
    await first.publish_started()
    again = await here.answer_to(first.id)
    assert again == first.grant

    late = Claimed(here, job, "staging", str(uuid4()), first.grant)
    await late.publish_started()
    assert "has it" in (await here.refusal_of(late.id)).reason


async def test_a_silent_worker_loses_its_claim_and_the_work_is_asked_for_again(
    here: World,
) -> None:
    job = await here.run()
    submitted = await here.get(FETCHER)
    silent = await here.claim(job, "staging")
    assert silent.grant.attempt == 1

    assert await here.get(FETCHER) == submitted
    await silent.stage_dataset(submitted)
    assert "not the live one" in (await here.refusal_of(silent.id)).reason

    second = await here.claim(job, "staging")
    assert second.grant.attempt == 2
    await second.stage_dataset(submitted)
    assert (await eventually(lambda: output_if(here, job, stage="training")))["dataset"]


async def test_a_worker_that_sends_heartbeats_keeps_its_claim(here: World) -> None:
    job = await here.run()
    await here.get(FETCHER)
    worker = await here.claim(job, "staging")
    for step in range(12):
        await worker.publish(StagingProgressed, progress={"step": step})
        await asyncio.sleep(HEARTBEAT)
    here.received.messages.clear()
    await worker.publish_started()
    assert isinstance(await here.answer_to(worker.id), ClaimGranted)


async def test_work_that_vanished_is_put_on_its_queue_again(here: World) -> None:
    await here.run()
    submitted = await here.get(FETCHER)
    assert isinstance(submitted, StagingDue)
    assert await here.get(FETCHER) == submitted
    assert await here.get(FETCHER) == submitted


async def test_work_that_waits_in_its_queue_is_not_asked_for_twice(here: World) -> None:
    await here.run()
    await asyncio.sleep(10 * HEARTBEAT)
    assert await here.bus.depth(FETCHER) == 1


async def test_only_the_gateways_own_heartbeats_count(here: World) -> None:
    job = await here.run()
    await here.get(FETCHER)
    worker = await here.claim(job, "staging")
    for number in range(100):
        stranger = GatewayHeartbeat(gateway="gateway/other", number=number)
        await here.bus.send(GATEWAY_RECORDER.name, stranger)
    here.received.messages.clear()
    await worker.publish_started()
    assert isinstance(await here.answer_to(worker.id), ClaimGranted)


async def test_an_interrupted_worker_costs_no_failure(here: World) -> None:
    job = await here.run()
    for attempt in range(1, 6):
        submitted = await here.get(FETCHER)
        assert isinstance(submitted, StagingDue)
        worker = await here.claim(job, "staging")
        assert worker.grant.attempt == attempt
        await worker.publish(StagingInterrupted)


async def test_training_goes_on_from_the_newest_resume_point(here: World) -> None:
    job = await staged(here)
    for number in range(4):  # without a resume point, the third failure would end the job
        trainer = await here.claim(job, "training", gpu="H100")
        assert trainer.grant.resume_point == (f"resume/{number - 1}/" if number else None)
        await trainer.publish(ResumePointSaved, prefix=f"resume/{number}/", step=number, epoch=0)
        await trainer.publish(StageFailed, kind="passing", reason="the child died")
        assert isinstance(await here.get(TRAINER), DatasetStaged)
    assert (await here.status(job))["status"] == "IN_PROGRESS"


async def test_the_third_failure_in_a_row_ends_the_job(here: World) -> None:
    job = await here.run({**REQUEST, "webhook": HOOK})
    for number in (1, 2, 3):
        assert isinstance(await here.get(FETCHER), StagingDue)
        worker = await here.claim(job, "staging")
        await worker.publish(StageFailed, kind="passing", reason="the store is down")
        if number < 3:
            shown = await eventually(partial(retries_if, here, job, number + 1))
            (again,) = shown["retries"]
            assert (again["stage"], again["tries"]) == ("staging", 3)
            assert again["reason"] == "the store is down"
    failed = await here.status_becomes(job, "FAILED")
    assert failed["error"] == "staging failed 3 times in a row: the store is down"
    due = await here.get(NOTIFIER_WEBHOOKS)
    assert isinstance(due, WebhookDue)
    assert json.loads(due.body)["error"] == failed["error"]


async def retries_if(here: World, job: str, number: int) -> dict[str, Any] | None:
    output: dict[str, Any] = (await here.status(job))["output"]
    return output if [each["number"] for each in output.get("retries", ())] == [number] else None


async def test_facts_of_an_unknown_job_are_refused_and_hold_nothing_up(here: World) -> None:
    stranger = Claimed(here, "no-such-job", "training", str(uuid4()), grant_of("no-such-job"))
    await stranger.publish_started()
    assert (await here.refusal_of(stranger.id)).reason == "no such job"
    await here.claim(await here.run(), "staging")


def grant_of(job: str) -> ClaimGranted:
    return ClaimGranted(job=job, stage="training", claim="", attempt=1)


async def test_a_fact_that_cannot_be_recorded_is_dead_lettered_and_the_next_one_goes_on(
    here: World,
) -> None:
    damaged = StoredJob(
        id="damaged", owner="", status="COMPLETED", version=1,
        created_at=0.0, ended_at=here.clock(), record=b"not a record",
    )  # fmt: skip
    await here.jobs.insert(damaged, [])
    await Claimed(here, "damaged", "training", "c", grant_of("damaged")).publish_started()
    dead = await eventually(lambda: found(here.broker.dead_letters))
    assert dead.queue == "gateway.recorder"
    assert "DecodeError" in dead.reason
    await here.claim(await here.run(), "staging")


# --- Ends -------------------------------------------------------------------------------------


async def test_a_cancelled_job_stops_its_worker(here: World) -> None:
    job = await here.run({**REQUEST, "webhook": HOOK})
    worker = await here.claim(job, "staging")
    answer = await here.ask("POST", f"/v1/everydream-v1/cancel/{job}")
    assert (answer.status, answer.body) == (200, {"id": job, "status": "CANCELLED"})

    assert (await here.refusal_of(worker.id)).reason == "the job has ended"
    assert (await here.receive(JobCancelled)).job == job
    here.received.messages.clear()
    await worker.publish_started()
    assert (await here.refusal_of(worker.id)).reason == "the job has ended"
    assert await here.bus.depth(NOTIFIER_WEBHOOKS) == 0

    again = await here.ask("POST", f"/v1/everydream-v1/cancel/{job}")
    assert (again.status, again.body["status"]) == (200, "CANCELLED")


async def test_of_two_writers_the_first_wins_and_the_second_looks_again(here: World) -> None:
    job = await here.run()
    cancel = f"/v1/everydream-v1/cancel/{job}"
    here.jobs.rival = lambda: here.ask("POST", cancel)
    late = Claimed(here, job, "staging", str(uuid4()), grant_of(job))
    await late.publish_started()
    assert (await here.answer_to(late.id)) == (await here.refusal_of(late.id))
    assert (await here.refusal_of(late.id)).reason == "the job has ended"
    assert (await here.status(job))["status"] == "CANCELLED"


async def test_a_job_that_runs_too_long_times_out_with_what_there_is(here: World) -> None:
    policy = {"executionTimeout": 60_000}
    job = await trained(here, {**REQUEST, "policy": policy, "webhook": HOOK})
    await here.claim(job, "generation")
    here.clock.ahead = 61.0
    late = await here.status_becomes(job, "TIMED_OUT")
    assert late["error"].startswith("executionTimeout of 60000 ms has passed: a request with a")
    assert late["output"]["train"]["checkpoint_url"]
    assert late["output"]["inference"] == []
    assert late["executionTime"] >= 61_000
    assert isinstance(await here.get(NOTIFIER_WEBHOOKS), WebhookDue)


async def test_a_webhook_is_due_again_until_it_is_delivered(here: World) -> None:
    job = await trained(here, {**TRAIN_ONLY, "webhook": HOOK})
    first = await here.get(NOTIFIER_WEBHOOKS)
    assert isinstance(first, WebhookDue)
    outcome: dict[str, Any] = {"job": job, "run": 1, "webhook_id": first.webhook_id}
    await here.publish(WebhookFailed(**outcome, attempt=1, reason="HTTP 500"))

    second = await here.get(NOTIFIER_WEBHOOKS)
    assert isinstance(second, WebhookDue)
    assert (second.attempt, second.webhook_id) == (2, first.webhook_id)
    told = [without_signatures(json.loads(each.body)) for each in (first, second)]
    assert told[0] == told[1]
    await here.publish(WebhookDelivered(**outcome, attempt=2, status=200))
    await eventually(lambda: record_if(here, job, webhook_settled=True))


async def record_if(here: World, job: str, **expected: object) -> dict[str, Any] | None:
    record: dict[str, Any] = json.loads((await here.jobs.get(job)).record)
    return record if expected.items() <= record.items() else None


# --- Weather ----------------------------------------------------------------------------------


async def test_facts_wait_while_the_database_is_away(here: World) -> None:
    job = await staged(here)
    here.jobs.unavailable = True
    claim = str(uuid4())
    await Claimed(here, job, "training", claim, grant_of(job)).publish_started()
    await here.bus.publish(JobRequested(request=TRAIN_ONLY))
    refused = here.jobs.refusals
    await eventually(lambda: true_if(here.jobs.refusals > refused + 5))
    answer = await here.ask("POST", "/v1/everydream-v1/run", json=REQUEST)
    assert answer.status == 503
    assert int(answer.headers["Retry-After"]) > 0
    assert (await here.ask("GET", "/healthz")).status == 503

    here.jobs.unavailable = False
    assert isinstance(await here.answer_to(claim), ClaimGranted)
    assert isinstance(await here.get(FETCHER), StagingDue)
    assert (await here.ask("GET", "/healthz")).status == 200
    assert not here.broker.dead_letters


async def true_if(holds: bool) -> bool | None:  # noqa: FBT001
    return holds or None


async def test_an_answer_comes_in_time_even_if_the_database_hangs(here: World) -> None:
    here.jobs.hangs = True
    with answers_within(LIMIT):
        async with asyncio.timeout(3):
            answer = await here.ask("GET", "/v1/everydream-v1/status/any")
    assert answer.status == 503
    here.jobs.hangs = False


async def test_another_gateway_takes_over(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        job = await staged(here)
        bus = here.broker.bus("gateway/second")
        second = Gateway(here.settings, KEY, bus, here.store, here.stores)
        async with closing(bus), running(second):
            await here.gateway_stops()
            await (await here.claim(job, "training")).finish_training()
            here.gateway = second
            await (await here.claim(job, "generation")).finish_generation()
            await here.status_becomes(job, "COMPLETED")
            # It supervises, too.
            other = await here.run()
            await here.get(FETCHER)
            await here.claim(other, "staging")
            assert (await here.get(FETCHER)).job == other


async def test_a_fact_in_hand_is_recorded_before_the_gateway_stops(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        job = await here.run()
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def slow() -> None:
            begun.set()
            await go_on.wait()

        here.jobs.rival = slow
        worker = Claimed(here, job, "staging", str(uuid4()), grant_of(job))
        await worker.publish_started()
        await begun.wait()
        stopping = asyncio.create_task(here.gateway_stops())
        for _ in range(20):  # let the background tasks stop
            await asyncio.sleep(0)
        go_on.set()
        await stopping
        assert isinstance(await here.answer_to(worker.id), ClaimGranted)
        assert await here.bus.depth(GATEWAY_RECORDER) <= 1  # a heartbeat, at most


async def test_a_broker_that_lost_everything_costs_nothing(tmp_path: Path) -> None:
    async with world(tmp_path) as before:
        job = await staged(before)
        await eventually(lambda: output_if(before, job, stage="training"))
        waiting = await before.run()
    async with world(tmp_path) as here:
        assert (await here.get(FETCHER)).job == waiting
        assert (await here.get(TRAINER)).job == job


@pytest.mark.long  # in every run the main job has both, and the faults have that broker
async def test_the_same_tale_over_rabbitmq_and_postgresql_with_a_broker_that_dies(
    tmp_path: Path, rabbitmq: RabbitMQ, amqp_url: str, postgres_url: str
) -> None:
    async with world(tmp_path, amqp_url=amqp_url, database_url=postgres_url, heartbeat=1.0) as here:
        await asyncio.to_thread(rabbitmq.settle)
        job = await staged(here, {**REQUEST, "webhook": HOOK})
        await asyncio.to_thread(rabbitmq.kill)
        waiting = await here.run(TRAIN_ONLY)
        await asyncio.to_thread(rabbitmq.start)
        assert (await here.get(FETCHER)).job == waiting

        trainer = await here.claim(job, "training", gpu="H100")
        await trainer.finish_training()
        await (await here.claim(job, "generation", gpu="H100")).finish_generation()
        await here.status_becomes(job, "COMPLETED")
        due = await here.get(NOTIFIER_WEBHOOKS)
        assert isinstance(due, WebhookDue)
        assert json.loads(due.body)["status"] == "COMPLETED"

        lost = await here.claim(waiting, "staging")
        assert (await here.get(FETCHER)).job == waiting
        assert not (await here.status(waiting)).get("error")
        await lost.publish(StagingProgressed)
        assert "not the live one" in (await here.refusal_of(lost.id)).reason


# --- What is kept -----------------------------------------------------------------------------


async def test_working_material_goes_when_a_job_is_complete(here: World) -> None:
    job = await staged(here, TRAIN_ONLY)
    trainer = await here.claim(job, "training")
    await here.store.put(f"jobs/{job}/training/1/resume/5/manifest.json", b"{}")
    await here.store.put(f"{snapshot_prefix(job, 1, step=4, epoch=1)}/weights", b"")
    await trainer.finish_training()
    await here.status_becomes(job, "COMPLETED")

    await eventually(lambda: true_if_the_result_alone_is_kept(here, job))


async def true_if_the_result_alone_is_kept(here: World, job: str) -> bool | None:
    result = ("job-ep01.safetensors", "last-job.safetensors", "metrics.jsonl")
    return await true_if_kept(here, job, [f"jobs/{job}/training/1/{name}" for name in result])


async def true_if_kept(here: World, job: str, keys: list[str]) -> bool | None:
    return [entry.key async for entry in here.store.list(f"jobs/{job}/")] == keys or None


async def test_a_failed_job_keeps_what_a_retry_needs_until_its_time_has_come(
    here: World,
) -> None:
    job = await staged(here)
    trainer = await here.claim(job, "training")
    await here.store.put(f"{snapshot_prefix(job, 1, step=4, epoch=1)}/weights", b"")
    await trainer.publish(StageFailed, kind="refused", reason="out of memory at the smallest")
    await here.status_becomes(job, "FAILED")
    dataset = f"jobs/{job}/staging/1/dataset/manifest.json"
    await eventually(lambda: true_if_kept(here, job, [dataset]))
    done = await trained(here, TRAIN_ONLY)
    await here.status_becomes(done, "COMPLETED")
    await eventually(lambda: true_if_the_result_alone_is_kept(here, done))
    assert await here.store.exists(dataset)

    live = await here.run()
    here.clock.ahead = 31 * 24 * 3600.0
    async with asyncio.timeout(DEADLINE):
        await here.gateway._retention.delete_expired()
    assert not await here.store.exists(dataset)
    assert (await here.ask("GET", f"/v1/everydream-v1/status/{job}")).status == 404
    assert (await here.ask("GET", f"/v1/everydream-v1/status/{live}")).status == 200


async def test_a_cancelled_job_keeps_nothing_that_was_not_finished(here: World) -> None:
    """Also what a worker still writes until it has learned of the end."""
    job = await staged(here)
    await here.claim(job, "training")
    await here.store.put(f"jobs/{job}/training/1/resume/5/manifest.json", b"{}")
    await here.store.put(f"jobs/{job}/training/1/model/unet/half.safetensors", b"")
    await here.ask("POST", f"/v1/everydream-v1/cancel/{job}")
    await eventually(lambda: true_if_kept(here, job, []))

    await here.store.put(f"jobs/{job}/staging/1/dataset/late.png", b"")
    await here.store.put(f"jobs/{job}/training/1/resume/9/late", b"")
    await eventually(lambda: true_if_kept(here, job, []))


async def test_attempts_at_staging_that_failed_leave_nothing(here: World) -> None:
    job = await here.run()
    await here.get(FETCHER)
    fetcher = await here.claim(job, "staging")
    await here.store.put(f"jobs/{job}/staging/1/dataset/half.png", b"")
    await fetcher.publish(StageFailed, kind="refused", reason="no usable image")
    await here.status_becomes(job, "FAILED")
    await eventually(lambda: true_if_kept(here, job, []))
