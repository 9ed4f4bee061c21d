"""``everydream serve``: the same story in one process, and bad input."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import psutil
import pytest
import pytest_asyncio

from everydream.client import Client
from shared.scratch import PREFIX
from tests.end_to_end.story import API_KEY, PATIENCE, User, picture, served
from tests.support.following import followed
from tests.support.scraping import port_of, value
from tests.support.servers.web import Page, Web, running_web
from tests.support.services import COMMAND, WARM, ServiceProcess

pytestmark = pytest.mark.usefixtures("warm_children")

INVALID_KEY = str({"error": "invalid API key: send it as 'Authorization: Bearer KEY'"})


@pytest.mark.parametrize("program", [WARM, pytest.param(COMMAND, marks=pytest.mark.long)])
async def test_the_story_in_one_process(web: Web, program: tuple[str, ...]) -> None:
    async with served(web, program, METRICS_PORT="0") as (process, user):
        port = await port_of(process)
        job = await user.client.run(user.request())
        last = await user.finished(job)
        children = psutil.Process(process.pid).children()
        threads = {child.environ().get("OMP_NUM_THREADS") for child in children}
        assert threads == {str(max(1, len(os.sched_getaffinity(0)) // 2))}
        assert last["status"] == "COMPLETED", last
        webhook = await user.webhook()
        checkpoint, image, *others = last["output"]["artifacts"]
        kinds = [each["kind"] for each in others]
        assert kinds == [*["sample"] * (len(others) - 3), "metrics", "tensorboard", "report"]
        fetched = [await user.fetch(artifact["url"]) for artifact in (checkpoint, image)]
        samples = await port.scrape()
        no_entries = [line for line in process.text.splitlines() if not line.startswith("{")]

    assert no_entries == [], "a collector of logs reads a JSON object a line"
    for stage in ("staging", "training", "generation"):
        done = {"stage": stage, "outcome": "done"}
        assert value(samples, "everydream_stage_seconds_count", **done) == 1
        granted = {"stage": stage, "answer": "granted"}
        assert value(samples, "everydream_claim_seconds_count", **granted) == 1
    assert value(samples, "everydream_images_drawn_total") >= 1
    assert value(samples, "everydream_webhook_post_seconds_count", outcome="delivered") == 1
    assert webhook["status"] == "COMPLETED"
    assert [len(each) for each in fetched] == [checkpoint["bytes"], image["bytes"]]
    assert fetched[1].startswith(b"\x89PNG")


def zipped(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name.replace("__", "."), data)
    return buffer.getvalue()


async def refusal(user: User, body: dict[str, Any], key: str = API_KEY) -> tuple[int, str]:
    url = f"{user.client.endpoint}/run"
    headers = {"Authorization": f"Bearer {key}"}
    async with user.session.post(url, json=body, headers=headers) as response:
        return response.status, str(await response.json())


Served = tuple[ServiceProcess, User]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def warm_one(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    """One process with warm children and two keys, where an earlier one was killed."""
    home = tmp_path_factory.mktemp("home")
    (home / "scratch" / f"{PREFIX}abc-job-training-1" / "out").mkdir(parents=True)
    async with (
        running_web() as web,
        served(web, WARM, API_KEYS=f"{API_KEY},another-key", HOME=str(home)) as one,
    ):
        yield one


@pytest.mark.asyncio(loop_scope="module")
async def test_what_a_request_shows_is_told_at_once_and_anothers_job_is_not_found(
    warm_one: Served,
) -> None:
    process, user = warm_one
    good = user.request()
    train = good["input"]["train"]

    def with_train(**changes: Any) -> dict[str, Any]:
        return {"input": {"train": {**train, **changes}}}

    assert await refusal(user, good, key="wrong") == (401, INVALID_KEY)
    no_url = {name: value for name, value in train.items() if name != "data_url"}
    for body, field in (
        ({"input": {"train": no_url}}, "input.train.data_url: required"),
        (with_train(batch_size="2"), 'batch_size: expected an integer from 1 to 1024, got "2"'),
        (with_train(cond_dropout=1.5), "cond_dropout: expected a number from 0 to 1, got 1.5"),
        (with_train(batchsize=2), "batchsize: no such field; did you mean batch_size?"),
    ):
        status, text = await refusal(user, body)
        assert status == 400
        assert field in text

    job = await user.client.run(good)
    async with aiohttp.ClientSession() as session:
        other = Client(session, process.url, "another-key")
        for unknown in (job, "00000000-0000-0000-0000-000000000000"):
            with pytest.raises(aiohttp.ClientResponseError) as error:
                await other.status(unknown)
            assert error.value.status == 404
    await user.client.cancel(job)
    await process.wait_for(lambda: not list(process.settings.scratch.glob("*")), PATIENCE)


@pytest.mark.asyncio(loop_scope="module")
async def test_what_only_the_data_shows_fails_the_job_with_a_reason_that_names_it(
    warm_one: Served,
) -> None:
    process, user = warm_one
    web = user.web
    broken = zipped(good_1__png=picture(1), good_2__png=picture(2), bad_1__png=picture(3)[:500])
    cases = {
        web.url("/nothing.zip"): "404",
        web.serve("/page.zip", Page(b"<html>hello</html>")): "not a zip",
        web.serve("/empty.zip", zipped(readme__txt=b"no pictures")): "no usable image",
    }
    jobs = {url: await user.client.run(user.request() | _with_url(url)) for url in cases}
    kept = await user.client.run(user.request() | _with_url(web.serve("/mixed.zip", broken)))
    for url, job in jobs.items():
        last = await user.finished(job)
        assert last["status"] == "FAILED"
        assert url in last["error"], last["error"]
        assert cases[url] in last["error"], last["error"]
    mixed = await _report(user, kept)
    assert mixed["images"] == 2
    assert "bad_1.png" in str(mixed["skipped"])
    assert (await user.finished(kept))["status"] == "COMPLETED"
    assert not list(process.settings.scratch.glob("*")), "a job left files behind"


def _with_url(url: str) -> dict[str, Any]:
    train = {"data_url": url, "resolution": 256, "max_epochs": 1, "useadam8bit": False}
    return {"input": {"train": train}}


async def _report(user: User, job: str) -> dict[str, Any]:
    async for status in followed(user.client, job, every=0.1):
        if report := status["output"].get("dataset"):
            return dict(report)
    raise AssertionError


@pytest.mark.asyncio(loop_scope="module")
async def test_a_cancelled_job_stops_its_training_and_its_place_takes_the_next(
    warm_one: Served,
) -> None:
    _, user = warm_one
    job = await user.client.run(user.request(max_epochs=100_000))
    async for status in followed(user.client, job, every=0.1):
        if status["output"].get("step"):
            break
    await user.client.cancel(job)
    assert (await user.finished(job))["status"] == "CANCELLED"
    following = await user.client.run(user.request())
    assert (await user.finished(following))["status"] == "COMPLETED"
