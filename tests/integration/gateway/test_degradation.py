"""Responses to clients while a server is away, hangs or has no room: clear, and in time."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import sqlalchemy as sa
from yarl import URL

from services.gateway.database.connection import Database
from shared.errors import Unavailable
from shared.messaging.messages import JobStarted
from shared.messaging.topology import FETCHER, INFERENCER_RESULTS
from shared.ports import Delivery
from shared.service_process import closing
from tests.integration.shared.test_rabbitmq_faults import hung as node_hung
from tests.integration.shared.test_rabbitmq_faults import short_of_disk as node_short_of_disk
from tests.support.alerting import expect_firing, observed
from tests.support.forms import few
from tests.support.gateway_world import (
    DEADLINE,
    LIMIT,
    TRAIN_ONLY,
    Answer,
    Claimed,
    World,
    answers_within,
    eventually,
    found,
    training,
    world,
)
from tests.support.outbox import ids_in_outbox
from tests.support.scraping import Port, Samples, port_of_this_process, value
from tests.support.servers.postgres import PostgreSQL
from tests.support.servers.process import HOST
from tests.support.servers.proxy import Proxy
from tests.support.servers.rabbitmq import RabbitMQ
from tests.support.services import services_in_a_folder

ROOT = "/v2/everydream-v1"
CLIENTS_PATIENCE = 3.0
HEARTBEAT = 1.0
LONG_AGO = 200.0
"""Seconds for which no message should be due."""
"""Slow enough for workers that send no heartbeats by themselves."""
NOBODYS = JobStarted(job="nobody's", run=1, gpu="")
Fault = Callable[["Broker"], AbstractAsyncContextManager[None]]


@dataclass(frozen=True)
class Broker:
    """A node, and the proxy in front of it."""

    node: RabbitMQ
    line: Proxy
    url: str


@pytest.fixture
async def broker(rabbitmq: RabbitMQ, amqp_url: str) -> AsyncIterator[Broker]:
    async with Proxy(HOST, rabbitmq.port) as line:
        yield Broker(rabbitmq, line, str(URL(amqp_url).with_port(line.port)))


@asynccontextmanager
async def away(broker: Broker) -> AsyncIterator[None]:
    """Look like a killed node: reset all connections, and accept none."""
    broker.line.cut()
    try:
        yield
    finally:
        broker.line.open()


@asynccontextmanager
async def hung(broker: Broker) -> AsyncIterator[None]:
    async with node_hung(broker.node):
        yield


@asynccontextmanager
async def short_of_disk(broker: Broker) -> AsyncIterator[None]:
    async with node_short_of_disk(broker.node):
        yield


FAULTS = (away, hung, short_of_disk)


@pytest.fixture
async def here(tmp_path: Path, broker: Broker) -> AsyncIterator[World]:
    async with world(tmp_path, amqp_url=broker.url, heartbeat=HEARTBEAT) as one:
        yield one


async def in_time(here: World, method: str, path: str, **more: Any) -> Answer:
    """The response, which arrived before clients time out."""
    begun = time.monotonic()
    answer = await here.ask(method, path, **more)
    took = time.monotonic() - begun
    assert took < CLIENTS_PATIENCE, f"{method} {path} after {took:.1f} s: {answer}"
    return answer


@asynccontextmanager
async def during(fault: Fault, broker: Broker, here: World) -> AsyncIterator[None]:
    """The fault, once it has an effect."""
    async with fault(broker):
        await eventually(lambda: nothing_is_taken(here))
        yield


async def nothing_is_taken(here: World) -> bool | None:
    """Whether the broker returns a mandatory message without a queue."""
    try:
        await here.bus.send("nowhere", NOBODYS, mandatory=False)
    except Unavailable:
        return True
    return None


# --- The broker


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_job_is_accepted_while_the_broker_is_away_and_asked_for_when_it_is_back(
    fault: Fault, broker: Broker, here: World
) -> None:
    async with during(fault, broker, here):
        answer = await in_time(here, "POST", f"{ROOT}/run", json=TRAIN_ONLY)
        assert (answer.status, answer.body["status"]) == (200, "IN_QUEUE")
        waiting = await ids_in_outbox(here.settings.database_url)
        assert {each.split("/")[0] for each in waiting} == {answer.body["id"]}

    asked = await asked_for(here)
    assert [each.message.job for each in asked] == [answer.body["id"]]


async def asked_for(here: World) -> list[Delivery]:
    """All deliveries to fetchers until the outbox is empty."""
    received: list[Delivery] = []

    async def listen() -> None:
        async for delivery in here.bus.consume(FETCHER):
            await delivery.ack()
            received.append(delivery)

    listening = asyncio.create_task(listen())
    await eventually(lambda: found(received))
    await eventually(lambda: nothing_to_say(here))
    last = await here.run(TRAIN_ONLY)
    await eventually(lambda: found([each for each in received if each.message.job == last]))
    listening.cancel()
    await asyncio.wait((listening,))
    return [each for each in received if each.message.job != last]


async def nothing_to_say(here: World) -> bool | None:
    return not await ids_in_outbox(here.settings.database_url) or None


@pytest.mark.parametrize("fault", few(hung, of=FAULTS))
async def test_every_other_write_is_done_in_time_while_the_broker_is_away(
    fault: Fault, broker: Broker, here: World
) -> None:
    ended, trainer = await training(here)
    await trainer.finish_training()
    await here.status_becomes(ended, "COMPLETED")
    waiting = await here.run(TRAIN_ONLY)
    at_work, _ = await training_of(here, waiting)
    queued = [await here.run(TRAIN_ONLY) for _ in range(3)]

    async with during(fault, broker, here):
        for method, path, status in (
            ("POST", f"jobs/{at_work}/save", 200),
            ("POST", f"jobs/{at_work}/stop", 200),
            ("POST", f"cancel/{at_work}", 200),
            ("POST", f"cancel/{queued[0]}", 200),
            ("POST", "purge-queue", 200),
            ("POST", f"retry/{ended}", 400),
            ("DELETE", f"jobs/{ended}", 200),
            ("GET", f"status/{queued[1]}", 200),
            ("GET", "jobs", 200),
        ):
            answer = await in_time(here, method, f"{ROOT}/{path}")
            assert answer.status == status, (path, answer)

    for job in (at_work, *queued):
        assert (await here.status(job))["status"] == "CANCELLED"
    await eventually(lambda: nothing_to_say(here))


async def training_of(here: World, job: str) -> tuple[str, Claimed]:
    """A waiting job brought to its training."""
    submitted = await here.get(FETCHER)
    assert submitted.job == job
    await (await here.claim(job, "staging")).stage_dataset(submitted)
    return job, await here.claim(job, "training", gpu="card")


@pytest.mark.parametrize("fault", few(away, of=FAULTS))
async def test_health_counts_workers_that_cannot_be_reached_as_unhealthy(
    fault: Fault, broker: Broker, here: World
) -> None:
    await training(here)
    idle = asyncio.create_task(here.bus.get(INFERENCER_RESULTS))
    before = await eventually(lambda: health_with(here, idle=1))
    assert (before["workers"]["unhealthy"], before["workers"]["ready"]) == (0, 2)

    async with fault(broker):
        health = await in_time(here, "GET", f"{ROOT}/health")
        assert health.status == 200
        assert health.body["jobs"]["inProgress"] == 1
        # Without disk space, the broker still counts consumers.
        reachable = {"idle": 1, "running": 1, "ready": 2}
        rest = {"running": 1, "ready": 1, "unhealthy": 1}
        wanted = reachable if fault is short_of_disk else rest
        await eventually(lambda: workers_are(here, wanted))
    idle.cancel()


async def workers_are(here: World, wanted: dict[str, int]) -> bool | None:
    """Idle ones are counted now and then, not for each request."""
    workers = (await in_time(here, "GET", f"{ROOT}/health")).body["workers"]
    return {name: number for name, number in workers.items() if number} == wanted or None


async def health_with(here: World, *, idle: int) -> dict[str, Any] | None:
    body: dict[str, Any] = (await here.ask("GET", f"{ROOT}/health")).body
    return body if body["workers"]["idle"] == idle else None


async def test_a_gateway_that_starts_without_its_broker_accepts_jobs(
    tmp_path: Path, broker: Broker
) -> None:
    environment = {
        "EVERYDREAM_AMQP_URL": broker.url,
        "EVERYDREAM_API_KEYS": "a-key",
        "EVERYDREAM_HEARTBEAT": "0.25",
        "EVERYDREAM_DATABASE_URL": f"sqlite:///{tmp_path}/jobs.db",
    }
    async with services_in_a_folder(environment) as services:
        async with away(broker):
            gateway = await services.start("gateway")
            job = await run_at(gateway.url)
        async with world(tmp_path / "workers", amqp_url=broker.url) as here:
            async with asyncio.timeout(DEADLINE):
                assert (await here.bus.get(FETCHER)).message.job == job
        await gateway.stop()


async def run_at(url: str) -> str:
    headers = {"Authorization": "Bearer a-key"}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.post(f"{url}{ROOT}/run", json=TRAIN_ONLY) as answer,
    ):
        assert answer.status == 200, await answer.text()
        return str((await answer.json())["id"])


# --- What /ready says


async def ready(here: World) -> dict[str, Any]:
    """What is lacking, as shown without a key: part and reason."""
    begun = time.monotonic()
    async with here.session.get(here.url("/ready")) as answer:
        body = await answer.json()
        assert time.monotonic() - begun < CLIENTS_PATIENCE
        assert (answer.status == 200) == (body["status"] == "ready") == (not body["lacking"])
        assert ("Retry-After" in answer.headers) == (answer.status == 503)
    return {each["part"]: each for each in body["lacking"]}


async def lacking(here: World, *parts: str) -> dict[str, Any] | None:
    told = await ready(here)
    return told if set(told) == set(parts) else None


async def all_is_there(here: World) -> bool | None:
    return not await ready(here) or None


@pytest.mark.parametrize("fault", few(short_of_disk, of=FAULTS))
async def test_ready_says_since_when_the_broker_takes_nothing(
    fault: Fault, broker: Broker, here: World
) -> None:
    await eventually(lambda: all_is_there(here))

    async with port_of_this_process(here.settings) as port:
        before = await observed(port)
        async with fault(broker):
            told = await eventually(lambda: lacking(here, "broker"))
            assert told["broker"]["reason"] == "takes no messages"
            assert (await ready(here))["broker"]["since"] == told["broker"]["since"]
            for path in ("/healthz", "/livez"):
                async with here.session.get(here.url(path)) as answer:
                    assert answer.status == 200
            await here.run(TRAIN_ONLY)
            here.clock.ahead += LONG_AGO
            seen = await observed(port)
        expected = ["EveryDreamNotReady", "EveryDreamBrokerAway", "EveryDreamOutboxStuck"]
        expect_firing(without(before, "recorder"), without(seen, "recorder"), expected)

    await eventually(lambda: all_is_there(here))


def without(samples: Samples, part: str) -> Samples:
    """Without the metrics of this part, which notices the fault sooner or later."""
    return {key: each for key, each in samples.items() if part not in key[0]}


# --- The database


@asynccontextmanager
async def stopped(server: PostgreSQL) -> AsyncIterator[None]:
    server.pause()
    try:
        yield
    finally:
        server.resume()


@asynccontextmanager
async def gone(server: PostgreSQL) -> AsyncIterator[None]:
    await asyncio.to_thread(server.end_processes)
    try:
        yield
    finally:
        await asyncio.to_thread(server.start)


@asynccontextmanager
async def locked(file: Path) -> AsyncIterator[None]:
    """Another connection holds SQLite's write lock."""
    holder = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    await asyncio.to_thread(holder.execute, "BEGIN IMMEDIATE")  # waits for the gateway's writers
    try:
        yield
    finally:
        holder.execute("ROLLBACK")
        holder.close()


READS = ("status/{job}", "status-sync/{job}?wait=0", "stream/{job}", "health", "jobs",
         "events", "events/{job}", "jobs/{job}/webhooks")  # fmt: skip
WRITES = ("run", "dataset/check", "cancel/{job}", "retry/{job}", "jobs/{job}/save", "purge-queue")
MORE_THAN_THE_POOL = 20


async def all_get_retry_after(here: World, asked: Sequence[tuple[str, str]], job: str) -> None:
    """All get 503 with Retry-After, at the same time and in time."""
    answers = await asyncio.gather(
        *(
            in_time(here, method, f"{ROOT}/{path.format(job=job)}", json=TRAIN_ONLY)
            for method, path in asked
        )
    )
    assert [answer.status for answer in answers] == [503] * len(asked), asked
    assert all(answer.headers["Retry-After"] == "5" for answer in answers)
    assert all("sql" not in answer.body["error"].lower() for answer in answers)


@pytest.mark.parametrize("fault", [stopped, gone])
async def test_without_postgresql_clients_get_retry_after_and_all_goes_on_afterwards(
    fault: Callable[[PostgreSQL], AbstractAsyncContextManager[None]],
    tmp_path: Path, postgres: PostgreSQL, postgres_url: str,
) -> None:  # fmt: skip
    async with world(
        tmp_path, database_url=postgres_url, database_connections=POOL, heartbeat=HEARTBEAT
    ) as here:
        job = await here.run(TRAIN_ONLY)
        async with port_of_this_process(here.settings) as port:
            before = await observed(port)
            async with fault(postgres):
                expected = ["EveryDreamDatabaseAway", "EveryDreamNotReady"]
                expect_firing(before, await eventually(partial(lacks_database, port)), expected)
        with answers_within(LIMIT):
            async with fault(postgres):
                everything = [("GET", path) for path in READS] + [("POST", path) for path in WRITES]
                await all_get_retry_after(here, everything, job)
                await all_get_retry_after(here, [("GET", READS[0])] * MORE_THAN_THE_POOL, job)
                assert "database" in await ready(here)

        await eventually(lambda: all_is_there(here))
        assert (await here.status(job))["status"] == "IN_QUEUE"
        after = await eventually(lambda: idle_again(postgres_url))
        assert after <= POOL, "connections were left behind"


async def lacks_database(port: Port) -> Samples | None:
    seen = await observed(port)
    return None if value(seen, "everydream_database_up") else seen


POOL = 5
"""Few connections, so that one that is left behind is seen."""


async def idle_again(url: str) -> int | None:
    """The number of connections, once all are idle."""
    async with closing(Database.open(url)) as database:
        (row,) = await database.all(
            sa.text(f"{COUNT} and state <> 'idle' and pid <> pg_backend_pid()")
        )
    return None if row[0] else await connections(url)


COUNT = "select count(*) from pg_stat_activity where datname = current_database()"


async def connections(url: str) -> int:
    async with closing(Database.open(url)) as database:
        (row,) = await database.all(sa.text(f"{COUNT} and pid <> pg_backend_pid()"))
    return int(row[0])


async def test_while_sqlite_is_locked_writes_get_retry_after_and_reads_go_on(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, heartbeat=HEARTBEAT) as here:
        job = await here.run(TRAIN_ONLY)
        with answers_within(LIMIT):
            async with locked(tmp_path / "everydream.db"):
                refused = [("POST", path) for path in ("run", "dataset/check", "cancel/{job}")]
                await all_get_retry_after(here, refused * 3, job)
                for path in ("status/{job}", "health", "jobs"):
                    answer = await in_time(here, "GET", f"{ROOT}/{path.format(job=job)}")
                    assert answer.status == 200

        assert (await in_time(here, "POST", f"{ROOT}/run", json=TRAIN_ONLY)).status == 200
        assert (await in_time(here, "POST", f"{ROOT}/cancel/{job}")).status == 200
