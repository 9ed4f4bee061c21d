"""The whole story over RabbitMQ, PostgreSQL and S3, with every service in a process of its own."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from PIL import Image
from safetensors.torch import load

from tests.end_to_end.story import PATIENCE, TINY, User, bucket_config, host_of, user_of
from tests.end_to_end.traced import exporting_to, run_traced, see_one_trace
from tests.support.following import followed
from tests.support.servers.otlp import Collector, collecting
from tests.support.servers.postgres import PostgreSQL
from tests.support.servers.rabbitmq import RabbitMQ
from tests.support.servers.s3 import S3Server
from tests.support.servers.web import Web, running_web
from tests.support.services import (
    WARM,
    ServiceProcess,
    Services,
    running,
    shared_environment,
)

SERVICES = ["gateway", "fetcher", "trainer", "inferencer", "notifier"]
WORKERS = SERVICES[1:]
SELDOM = {"EVERYDREAM_RESUME_EVERY": "60"}
"""For a trainer that is not killed: resume points cost more than the steps between them."""

pytestmark = pytest.mark.usefixtures("warm_children")


@asynccontextmanager
async def world(
    names: list[str], web: Web, amqp_url: str, postgres_url: str, s3: S3Server, bucket: str,
    program: Sequence[str] = WARM, collector: str = "", **settings: str,
) -> AsyncIterator[tuple[Services, User]]:  # fmt: skip
    allowed = f"{host_of(web.url())},{host_of(s3.endpoint_url)}"
    environment = shared_environment(
        amqp_url=amqp_url, database_url=postgres_url, s3=s3, bucket=bucket,
        **{"HEARTBEAT": "0.5", "ALLOWED_PRIVATE_HOSTS": allowed, **settings},
    ) | exporting_to(collector)  # fmt: skip
    async with (
        running(names, environment, program=program) as services,
        user_of(services.first("gateway").url, web) as user,
    ):
        yield services, user


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def collector() -> AsyncIterator[Collector]:
    async with collecting() as one:
        yield one


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def deployment(
    rabbitmq: RabbitMQ, postgres: PostgreSQL, s3_server: S3Server, collector: Collector
) -> AsyncIterator[tuple[Services, User]]:
    """One of every service with warm children; a trainer saves a resume point twice a second."""
    rabbitmq.start()
    postgres.start()
    s3_server.start()
    async with (
        running_web() as web,
        world(
            SERVICES, web, rabbitmq.fresh_url(), postgres.url(), s3_server,
            s3_server.create_bucket(), RESUME_EVERY="0.5", collector=collector.url,
        ) as (services, user),
    ):  # fmt: skip
        yield services, user


@pytest.mark.asyncio(loop_scope="module")
async def test_a_posted_zip_becomes_a_model_in_the_users_bucket_and_images_drawn_from_it(
    deployment: tuple[Services, User], s3_server: S3Server, collector: Collector, tmp_path: Path
) -> None:
    services, user = deployment
    theirs = s3_server.create_bucket()
    request = user.request(s3=bucket_config(s3_server, theirs), clip_skip=2)
    posts = len(user.web.posts)
    job = await run_traced(services.first("gateway").url, user, request)
    statuses = [status async for status in followed(user.client, job, every=0.1)]
    last = statuses[-1]
    assert last["status"] == "COMPLETED", last
    webhook = await user.webhook(posts + 1)

    told = [status["status"] for status in statuses]
    assert told == sorted(told, key=["IN_QUEUE", "IN_PROGRESS", "COMPLETED"].index)
    assert {"staging", "training"} <= {status["output"].get("stage") for status in statuses}
    assert "s3Config" not in str(last)
    assert s3_server.secret_key not in str(last)
    assert last["gpu"] == "cpu"
    assert last["delayTime"] > 0
    assert last["executionTime"] > 0
    assert webhook["id"] == job
    assert webhook["status"] == "COMPLETED"
    await see_one_trace(collector, job, user.web.posts[-1])

    train = last["output"]["train"]
    assert (train["steps"], train["epochs"], train["images"]) == (2, 2, 8)
    assert f"/{theirs}/{job}/last-" in train["checkpoint_url"]
    checkpoint = tmp_path / "model.safetensors"
    checkpoint.write_bytes(await user.fetch(train["checkpoint_url"]))
    (drawn,) = last["output"]["inference"]
    assert (drawn["seed"], drawn["passback"], drawn["scheduler"]) == (7, "mine", "K-LMS")
    image = Image.open(io.BytesIO(await user.fetch(drawn["image"])))
    assert image.size == (128, 128)

    artifacts = last["output"]["artifacts"]
    (report,) = [each for each in artifacts if each["kind"] == "report"]
    assert f"/{theirs}/{job}/report.html?" in report["url"]
    page = (await user.fetch(report["url"])).decode()
    assert len(page.encode()) == report["bytes"]
    assert_tells(page, last["output"])

    again = await user.client.run(drawing_with(job, request))
    last = await user.finished(again)
    assert last["status"] == "COMPLETED", last
    assert (await user.webhook(posts + 2))["id"] == again
    assert last["output"]["train"] is None
    (drawn,) = last["output"]["inference"]
    assert f"/{theirs}/{again}/" in drawn["image"]
    same = Image.open(io.BytesIO(await user.fetch(drawn["image"])))
    assert same.tobytes() == image.tobytes()
    assert again in services.first("inferencer").text
    assert again not in services.first("trainer").text

    redrawn = await asyncio.to_thread(drawn_by_stock_diffusers, checkpoint)
    assert redrawn.size == (128, 128)


def assert_tells(page: str, output: dict[str, Any]) -> None:
    """The report shows each result of the job, and no link or secret."""
    samples, images = output["train"]["samples"], output["inference"]
    assert page.count("data:image/webp;base64,") == len(samples) + len(images)
    assert {f'scope="row">{each["step"]}<' in page for each in samples} == {True}
    checkpoints = [each for each in output["artifacts"] if each["kind"] == "checkpoint"]
    assert [each["sha256"] for each in checkpoints if each["sha256"] not in page] == []
    assert f"<b>{output['train']['steps']}</b> steps" in page
    assert "Signature" not in page
    assert "http" not in page.replace("http-equiv", "")


def drawing_with(job: str, request: dict[str, Any]) -> dict[str, Any]:
    """The same images of the job's finished model once more."""
    return {**request, "input": {"model": job, "inference": request["input"]["inference"]}}


def drawn_by_stock_diffusers(checkpoint: Path) -> Image.Image:
    """What anybody else does with the file."""
    from diffusers import StableDiffusionPipeline  # noqa: PLC0415 - heavy, and only here

    pipeline = StableDiffusionPipeline.from_single_file(
        str(checkpoint), config=str(TINY), local_files_only=True,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("a zorblat", width=128, height=128, num_inference_steps=2).images[0]
    assert isinstance(image, Image.Image)
    return image


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.long
async def test_two_jobs_at_once_are_shared_by_two_of_every_worker(
    deployment: tuple[Services, User],
) -> None:
    services, user = deployment
    seconds = await asyncio.gather(*(services.start(name) for name in WORKERS))
    posts = len(user.web.posts)
    jobs = [await user.client.run(user.request(seed=seed)) for seed in (1, 2)]
    ends = await asyncio.gather(*(user.finished(job) for job in jobs))
    await user.web.wait_for_posts(posts + 2)

    assert [end["status"] for end in ends] == ["COMPLETED", "COMPLETED"]
    trained_by = {
        trainer.pid for job in jobs for trainer in services.named("trainer") if job in trainer.text
    }
    assert len(trained_by) == 2
    checksums = {end["output"]["artifacts"][0]["sha256"] for end in ends}
    assert len(checksums) == 2
    await asyncio.gather(*(each.stop() for each in seconds))


@pytest.mark.asyncio(loop_scope="module")
async def test_a_trainer_killed_in_the_middle_costs_the_steps_since_its_resume_point_only(
    deployment: tuple[Services, User],
) -> None:
    services, user = deployment
    request = user.request(batch_size=1, max_epochs=6, save_full_precision=True)
    job = await user.client.run(request)
    trainer = services.first("trainer")
    await trainer.wait_for(lambda: resume_point_of(trainer, job), PATIENCE)
    await trainer.kill()
    second = await services.start("trainer", {**services.environment, **SELDOM})
    last = await user.finished(job)

    assert last["status"] == "COMPLETED", last
    assert last["output"]["train"]["steps"] == 24
    assert "resuming" in second.text

    undisturbed = await user.finished(await user.client.run(request))
    assert second.text.count("resuming") == 1
    assert await weights_of(user, last) == await weights_of(user, undisturbed)


def resume_point_of(trainer: ServiceProcess, job: str) -> bool:
    lines = trainer.text.splitlines()
    return any("resume_point_saved" in line and job in line for line in lines)


async def weights_of(user: User, status: dict[str, Any]) -> dict[str, bytes]:
    """The finished checkpoint's tensors, byte for byte."""
    file = await user.fetch(status["output"]["train"]["checkpoint_url"])
    return {name: tensor.numpy().tobytes() for name, tensor in load(file).items()}


@pytest.mark.asyncio(loop_scope="module")
async def test_a_trainer_hands_its_work_over_and_what_is_wanted_meanwhile_is_done_by_the_next(
    deployment: tuple[Services, User],
) -> None:
    services, user = deployment
    request = user.request(
        batch_size=1, max_epochs=100_000, sample_prompts=["a zorblat"], sample_steps=1_000_000
    )
    job = await user.client.run(request)
    trainer = services.first("trainer")
    async for status in followed(user.client, job, every=0.1):
        if (status["output"].get("step") or 0) > 2:
            break
    await asyncio.gather(trainer.stop(), services.start("trainer"))
    await user.client.send_command(job, "save")
    await user.client.send_command(job, "sample")
    async for status in followed(user.client, job, every=0.1):
        if any(each["step"] for each in status["output"].get("samples", ())):
            break
    await user.client.send_command(job, "stop")
    last = await user.finished(job)

    assert last["status"] == "COMPLETED", last
    assert "resuming" in services.named("trainer")[-1].text
    train = last["output"]["train"]
    assert len(train["checkpoints"]) == 1
    assert train["warnings"][-1] == f"stopped on request after step {train['steps']} of 400000"
    assert train["samples"][-1]["step"] == train["steps"] < 400_000
