"""Faults of gateways, of clocks, and of those who wait for a webhook."""

from __future__ import annotations

import asyncio
import random
import shutil
import sqlite3
import uuid
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any

import pytest
from aiohttp import ClientResponseError

from everydream.client import ENDS, Client, with_retries
from tests.end_to_end.story import API_KEY, SECRET_KEY, host_of, verified
from tests.faults.cases import Form, Outcome, again_and_again, case
from tests.faults.looks import attempts_at, lines_of, record_of, stage_asked_for, stage_of, unsent
from tests.faults.script import Script
from tests.faults.stand_ins import skewed, stand_in
from tests.faults.world import PATIENCE, PROGRAM, Job, World, heartbeat
from tests.support.following import followed
from tests.support.pace import slowness
from tests.support.servers.process import free_port
from tests.support.servers.web import Answer, Seen, Web, running_web
from tests.support.services import ServiceProcess, Services, services_in_a_folder

SEED = 20
HOUR = 3600
DATABASE, STORE = "everydream.db", "store"
"""In the folder of `everydream serve`."""
AT_ONCE = 6
"""Requests with one idempotency key, to each gateway."""


# --- Webhooks ---------------------------------------------------------------------------------


@case(
    "12",
    "a webhook is answered with errors, a redirect and silence",
    shown_by=(
        "tests/integration/notifier/test_webhooks.py::test_each_try_is_one_post_with_the_same_id",
        "tests/integration/notifier/test_webhooks.py::test_a_redirect_is_a_failure_and_is_not_followed",
        "tests/integration/notifier/test_webhooks.py::test_a_receiver_that_never_answers_is_a_failure_with_its_reason",
        "tests/unit/gateway/test_transitions.py::test_the_webhook_is_tried_by_its_schedule_and_then_given_up",
    ),
)
async def webhook_refused(world: World, form: Form) -> Outcome:
    moved = Answer(302, {"Location": world.web.url("/elsewhere")})
    script = form.of((500, moved), (500, moved, Answer(None), 503))
    job, path = await hooked(world, *script)
    await world.recovered([job])
    began = monotonic()
    posts = await posts_at(world.web, path, len(script) + 1)
    seconds = monotonic() - began
    assert {each.headers["webhook-id"] for each in posts} == {posts[0].headers["webhook-id"]}
    assert {verified(each)["status"] for each in posts} == {"COMPLETED"}
    assert not [each for each in world.web.seen if each.path == "/elsewhere"]
    await settled(world, job)
    tries = (await record_of(world, job)).webhook_tries
    assert [each.attempt for each in tries] == list(range(1, len(script) + 2))
    assert [each.status for each in tries] == [None] * len(script) + [200]
    return Outcome(len(script), (job,), seconds)


@case(
    "12",
    "a webhook's receiver is gone, until its owner asks for it again",
    shown_by=(
        "tests/integration/notifier/test_webhooks.py::test_a_receiver_that_answers_gone_is_never_called_again",
        "tests/integration/gateway/test_webhook_deliveries.py::test_a_webhook_is_sent_again_on_request_signed_anew",
    ),
)
async def webhook_gone(world: World, form: Form) -> Outcome:
    scripts: list[tuple[int, ...]] = form.of([(410,)], [(410,), (500,) * 5])
    jobs = [await hooked(world, *script) for script in scripts]
    await world.recovered(job for job, _ in jobs)
    began = monotonic()
    for (job, path), script in zip(jobs, scripts, strict=True):
        await world.says("gateway", "webhook_given_up", job, f'"tries": {len(script)}')
        await resend(world, job)
        posts = await posts_at(world.web, path, len(script) + 1)
        assert len(posts) == len(script) + 1
        assert len({each.headers["webhook-id"] for each in posts}) == 1
    return Outcome(len(jobs), tuple(job for job, _ in jobs), monotonic() - began)


async def resend(world: World, job: str) -> None:
    """Send the end's webhook once more, as its owner may."""
    webhook = (await record_of(world, job)).webhook_tries[-1].id
    url = f"{world.client.endpoint}/jobs/{job}/webhooks/{webhook}/resend"
    headers = {"Authorization": f"Bearer {API_KEY}"}
    async with world.session.post(url, headers=headers, raise_for_status=True):
        pass


async def hooked(world: World, *script: int | Answer) -> tuple[str, str]:
    """A job whose webhook's receiver answers so, and the receiver's path."""
    path = f"/webhook/{uuid.uuid4()}"
    world.web.answer(*script, path=path)
    return await world.submit(request={"webhook": world.web.url(path)}), path


async def posts_at(web: Web, path: str, number: int) -> list[Seen]:
    """The POSTs to a path, once there are so many."""
    async with asyncio.timeout(PATIENCE * slowness()):
        while len(posts := [each for each in web.posts if each.path == path]) < number:
            await asyncio.sleep(0.05)
    return posts


async def posts_of(web: Web, job: str) -> list[Seen]:
    """The POSTs about a job, once there is one."""
    async with asyncio.timeout(PATIENCE):
        while not (posts := [each for each in web.posts if verified(each)["id"] == job]):
            await asyncio.sleep(0.05)
    return posts


async def settled(world: World, job: str) -> None:
    """Wait until the webhook of the end is tried no more."""

    async def done() -> bool | None:
        return (await record_of(world, job)).webhook_settled or None

    await world.until(done)


# --- Cancelling -------------------------------------------------------------------------------


@case(
    "13",
    "jobs are cancelled at any moment, also the one at which they complete",
    shown_by=(
        "tests/integration/gateway/test_cancel_race.py::test_of_a_cancel_and_the_end_of_the_work_one_wins_and_both_are_answered",
    ),
)
async def cancel_races(world: World, form: Form) -> Outcome:
    dice = random.Random(SEED)

    async def once() -> list[str]:
        script = Script(steps=2, step_seconds=0.01)
        jobs = [await world.submit(script, wanted=None) for _ in range(3)]
        await asyncio.gather(*(cancel_sometime(world, job, dice.uniform(0, 1.0)) for job in jobs))
        return jobs

    outcome = await again_and_again(world, form.of(1, 8), once)
    ends = [(await world.status(job))["status"] for job in outcome.jobs]
    assert set(ends) <= {"CANCELLED", "COMPLETED"}
    await world.recovered([await world.submit()])  # whatever comes late has come by its end
    assert [(await world.status(job))["status"] for job in outcome.jobs] == ends
    return replace(outcome, injected=len(ends))


async def cancel_sometime(world: World, job: str, after: float) -> None:
    """So long after the job's training has begun, or when it has ended."""

    async def begun() -> bool | None:
        return (await world.status(job))["status"] != "IN_QUEUE" or None

    await world.until(begun)
    await asyncio.sleep(after)
    await world.client.cancel(job)


@case("14", "a job is cancelled while it is queued, and while no trainer is there")
async def cancel_while_queued(world: World, form: Form) -> Outcome:
    await world.services.first("trainer").stop()
    jobs = [await world.submit(wanted="CANCELLED") for _ in range(form.of(2, 8))]
    for number, job in enumerate(jobs):
        if number % 2:
            await stage_asked_for(world, job, "training")
        await world.client.cancel(job)
    seconds = await world.recovered(jobs)
    trainer = await world.services.start("trainer")
    await world.recovered([await world.submit()])
    for job in jobs:
        training = (await record_of(world, job)).stages.get("training")
        assert training is None or training.attempts == 0
        assert not lines_of(trainer, job, "working")
    return Outcome(len(jobs), tuple(jobs), seconds)


# --- The gateway itself -----------------------------------------------------------------------


@case("15", "a gateway is killed between the commit of a job and its publishing")
async def killed_before_publishing(world: World, form: Form) -> Outcome:
    jobs = []
    for _ in range(form.of(1, 8)):
        world.proxies.broker.cut()
        gateway = world.services.first("gateway")
        job = await world.submit()
        jobs.append(job)
        assert await unsent(world, job), "there was a broker to publish it to"
        await gateway.kill()
        world.proxies.broker.open()
        await world.services.start("gateway")
    seconds = await world.recovered(jobs)
    for job in jobs:
        assert lines_of(world.services.first("fetcher"), "dataset_staged", job)
        assert await attempts_at(world, job, "staging") == 1
    return Outcome(len(jobs), tuple(jobs), seconds)


@case(
    "16",
    "two gateways get requests with one idempotency key at once",
    database="postgresql",
    shown_by=(
        "tests/integration/gateway/test_two_gateways.py::test_one_idempotency_key_at_both_at_once_is_one_job",
    ),
)
async def one_key_at_two_gateways(world: World, form: Form) -> Outcome:
    await world.services.start("gateway")
    urls = [gateway.url for gateway in world.services.named("gateway")]
    jobs = [await posted_everywhere(world, urls) for _ in range(form.of(2, 10))]
    seconds = await world.recovered(jobs)
    return Outcome(len(jobs), tuple(jobs), seconds)


async def posted_everywhere(world: World, urls: Iterable[str]) -> str:
    """The one id that all requests with one key are answered with."""
    body, once = world.body(Script()), str(uuid.uuid4())
    clients = [Client(world.session, url, API_KEY) for url in urls]
    ids = await asyncio.gather(
        *(posted(client, body, once) for client in clients for _ in range(AT_ONCE))
    )
    (job,) = set(ids)
    world.jobs[job] = Job(job, webhook=True, s3=True)
    return job


async def posted(client: Client, body: dict[str, Any], once: str) -> str:
    """The id that a request is answered with; a busy gateway is asked again."""
    return await with_retries(lambda: client.run(body, once=once))


@case(
    "19",
    "gateways with clocks an hour apart take one another's place in the middle of a job",
    shown_by=(
        "tests/integration/gateway/test_all_events.py::test_a_job_that_gateways_with_different_clocks_change_is_told_in_its_order",
        "tests/integration/gateway/test_two_gateways.py::test_what_one_accepts_goes_on_when_it_is_gone",
    ),
)
async def wrong_clocks(world: World, form: Form) -> Outcome:
    clocks = form.of((HOUR, -HOUR), (HOUR, -HOUR) * 3)
    each = form.of(60, 120)
    job = await world.submit(Script(steps=each * (len(clocks) + 1), step_seconds=0.1))
    async with AsyncExitStack() as stack:
        for number, seconds in enumerate(clocks):
            await world.reaches(job, step=5 + each * number)
            command = skewed("gateway", seconds)
            await stack.enter_async_context(stand_in(world, "gateway", command))
            check_times(await world.reaches(job, step=10 + each * number))
        recovery = await world.recovered([job])
        check_times(await world.status(job))
    for stage in ("staging", "training", "generation"):
        record = await stage_of(world, job, stage)
        assert (record.attempts, record.failures) == (1, 0), stage
    return Outcome(len(clocks), (job,), recovery)


@case("19", "workers have clocks an hour apart")
async def wrong_clocks_of_workers(world: World, form: Form) -> Outcome:
    names = form.of(("trainer", "fetcher"), ("trainer", "fetcher", "inferencer", "notifier"))
    async with AsyncExitStack() as stack:
        for number, name in enumerate(names):
            command = skewed(name, HOUR if number % 2 else -HOUR)
            await stack.enter_async_context(stand_in(world, name, command))
        job = await world.submit(Script(steps=6), webhook=False)
        seconds = await world.recovered([job])
    check_times(await world.status(job))
    assert await attempts_at(world, job, "training") == 1
    return Outcome(len(names), (job,), seconds)


def check_times(status: dict[str, Any]) -> None:
    times = (status["delayTime"], status["executionTime"])
    assert all(0 <= each < 2 * HOUR * 1000 for each in times), status


# --- All in one process -----------------------------------------------------------------------


@case(
    "+",
    "everydream serve is killed and started again in the middle of a job",
    shown_by=(
        "tests/end_to_end/test_terminal.py::test_terminals_of_every_width_show_a_job_to_its_end_though_the_server_is_killed",
    ),
)
async def serve_killed(world: World, form: Form) -> Outcome:
    times = form.of(1, 4)
    async with one_process(world) as one:
        client, process = await one.start()
        job = await one.submit(client, Script(steps=40 * times, step_seconds=0.05, resume_every=5))
        for number in range(times):
            await served_step(client, job, 10 + 30 * number)
            await process.kill()
            client, process = await one.start()
        began = monotonic()
        last = await served_end(client, job)
        seconds = monotonic() - began
        (post,) = await one.web.wait_for_posts(1)
    assert (last["status"], verified(post)["status"]) == ("COMPLETED", "COMPLETED"), last
    assert trained_from(last) >= 5 + 30 * (times - 1)
    return Outcome(times, (), seconds)


@case("+", "everydream serve is put back to a backup from the middle of a job")
async def put_back(world: World, form: Form) -> Outcome:
    times, last, seconds = form.of(1, 3), dict[str, Any](), 0.0
    async with one_process(world) as one:
        client, process = await one.start()
        job = await one.submit(client, Script(steps=60, step_seconds=0.05, resume_every=5))
        await served_step(client, job, 20)
        await asyncio.to_thread(one.back_up)
        for _ in range(times):
            await served_end(client, job)
            later = await one.submit(client, Script())
            await process.stop()
            await asyncio.to_thread(one.put_back)
            began = monotonic()
            client, process = await one.start()
            last = await served_end(client, job)
            seconds = monotonic() - began
            with pytest.raises(ClientResponseError, match="404"):
                await client.status(later)
        posts = await posts_of(one.web, job)
    assert last["status"] == "COMPLETED", last
    assert trained_from(last) >= 5
    assert len({each.headers["webhook-id"] for each in posts}) == 1
    return Outcome(times, (), seconds)


@dataclass(frozen=True)
class OneProcess:
    """``everydream serve`` over a folder that outlives it, and its user's web server."""

    world: World
    services: Services
    home: Path
    backup: Path
    web: Web

    async def start(self) -> tuple[Client, ServiceProcess]:
        process = await self.services.start("gateway", command=(*PROGRAM, "serve"))
        return Client(self.world.session, process.url, API_KEY), process

    async def submit(self, client: Client, script: Script) -> str:
        body = self.world.body(script, webhook=False, s3=False)
        return await client.run(body | {"webhook": self.web.url("/webhook")})

    def back_up(self) -> None:
        """As docs/operations.md says, while it runs: the database, then the store."""
        self.backup.mkdir()
        with (
            closing(sqlite3.connect(self.home / DATABASE)) as database,
            closing(sqlite3.connect(self.backup / DATABASE)) as copy,
        ):
            database.backup(copy)
        try:
            shutil.copytree(self.home / STORE, self.backup / STORE)
        except shutil.Error as error:  # what was deleted meanwhile is in no backup
            if any(Path(source).exists() for source, *_ in error.args[0]):
                raise

    def put_back(self) -> None:
        shutil.rmtree(self.home)
        shutil.copytree(self.backup, self.home)


@asynccontextmanager
async def one_process(world: World) -> AsyncIterator[OneProcess]:
    async with running_web() as web:
        with TemporaryDirectory(prefix="serve-") as folder:
            home, backup = Path(folder, "home"), Path(folder, "backup")
            environment = serve_environment(home, world.web, web)
            async with services_in_a_folder(environment, PROGRAM) as services:
                yield OneProcess(world, services, home, backup, web)


def serve_environment(home: Path, *webs: Web) -> dict[str, str]:
    """One process whose home and port outlive it."""
    return {
        "EVERYDREAM_HOME": str(home),
        "EVERYDREAM_PORT": str(free_port()),
        "EVERYDREAM_BASE_MODEL": "tiny",
        "EVERYDREAM_API_KEYS": API_KEY,
        "EVERYDREAM_SECRET_KEY": SECRET_KEY,
        "EVERYDREAM_HEARTBEAT": str(heartbeat()),
        "EVERYDREAM_ALLOWED_PRIVATE_HOSTS": ",".join(host_of(web.url()) for web in webs),
    }


async def served_end(client: Client, job: str) -> dict[str, Any]:
    return [status async for status in followed(client, job, every=0.1)][-1]


def trained_from(status: dict[str, Any]) -> int:
    """The step from which the last attempt went on."""
    warnings: list[str] = status["output"]["train"]["warnings"]
    (begun,) = (each for each in warnings if each.startswith("trained from"))
    return int(begun.rpartition(" ")[2])


async def served_step(client: Client, job: str, step: int) -> None:
    async for status in followed(client, job, every=0.05):
        assert status["status"] not in ENDS, status
        if (status["output"].get("step") or 0) >= step:
            return
