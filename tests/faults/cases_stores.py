"""Faults of the object store and of the database."""

from __future__ import annotations

import asyncio
import sqlite3
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    closing,
    contextmanager,
)
from dataclasses import dataclass
from time import monotonic
from typing import Any

import asyncpg

from shared.messaging.messages import STAGES
from tests.end_to_end.story import API_KEY
from tests.faults.cases import Form, Outcome, again_and_again, case
from tests.faults.looks import record_of, resume_step, stage_of
from tests.faults.script import Script
from tests.faults.world import Job, World, heartbeat
from tests.support.pace import slowness
from tests.support.servers.moods import Mood

Fault = Callable[[], AbstractContextManager[None]]
"""Something is wrong with the stores meanwhile."""
Lock = Callable[[], AbstractAsyncContextManager[None]]
"""Keeps the gateway out of its database."""
PATIENCE = 3.0
"""Seconds after which clients give up."""
TEN_MINUTES = 60
"""Beats."""


# --- The object store -------------------------------------------------------------------------


@case(
    "11",
    "the stores are away for ten minutes",
    shown_by=(
        "tests/integration/trainer/test_work.py::test_a_store_that_is_away_costs_the_speed_not_the_job",
        "tests/integration/inferencer/test_sample_rows.py::test_a_snapshot_stands_while_the_store_or_the_broker_is_away",
        "tests/integration/fetcher/test_work.py::test_a_store_that_is_away_passes",
    ),
)
async def stores_away(world: World, form: Form) -> Outcome:
    @contextmanager
    def away() -> Iterator[None]:
        world.proxies.store.cut()
        world.proxies.bucket.cut()
        yield
        world.proxies.open()

    return await unwell(world, form, away, form.of(2.0, TEN_MINUTES * heartbeat()))


@case(
    "11",
    "the stores take their time",
    shown_by=(
        "tests/unit/shared/test_retrying.py::test_what_fails_for_a_while_is_done_in_the_end",
        "tests/integration/shared/test_s3_errors.py::test_a_server_that_is_away_is_waited_for",
    ),
)
async def stores_slow(world: World, form: Form) -> Outcome:
    @contextmanager
    def slow() -> Iterator[None]:
        world.proxies.store.latency(0.2)
        world.proxies.bucket.latency(0.2)
        yield
        world.proxies.open()

    return await unwell(world, form, slow, form.of(1.0, TEN_MINUTES * heartbeat()))


@case(
    "11",
    "the stores answer 503",
    shown_by=(
        "tests/unit/shared/test_retrying.py::test_what_fails_for_a_while_is_done_in_the_end",
        "tests/integration/shared/test_s3_errors.py::test_a_server_in_trouble_is_waited_for",
    ),
)
async def stores_overloaded(world: World, form: Form) -> Outcome:
    return await unwell(
        world, form, moody(world, "overloaded"), form.of(1.5, TEN_MINUTES * heartbeat())
    )


@case(
    "11",
    "the stores' answers break off in the middle",
    shown_by=(
        "tests/integration/shared/test_s3_errors.py::test_an_object_cut_short_on_its_way_is_no_object",
        "tests/unit/shared/test_retrying.py::test_a_listing_that_breaks_off_gives_nothing_twice",
    ),
)
async def stores_short(world: World, form: Form) -> Outcome:
    return await unwell(world, form, moody(world, "short"), form.of(1.5, TEN_MINUTES * heartbeat()))


def moody(world: World, mood: Mood) -> Fault:
    """Both stores are on one server."""

    @contextmanager
    def in_a_mood() -> Iterator[None]:
        world.s3.mood(mood)
        try:
            yield
        finally:
            world.s3.mood("well")

    return in_a_mood


async def unwell(world: World, form: Form, fault: Fault, lasting: float) -> Outcome:
    """Jobs at every stage wait for the stores, and go on where they were: no claim is lost.

    Workers wait for 50 beats under the claim that they have; ten minutes are 60, and cost one.
    """

    async def once() -> list[str]:
        at_work = await world.submit(Script(steps=20, step_seconds=0.1, resume_every=5))
        await world.reaches(at_work, step=2)
        waiting = [await world.submit(Script(steps=2)) for _ in range(form.of(1, 3))]
        with fault():
            await asyncio.sleep(lasting)
        return [at_work, *waiting]

    outcome = await again_and_again(world, form.of(1, 3), once)
    for job in outcome.jobs:
        stages = (await record_of(world, job)).stages
        assert set(stages) == set(STAGES)
        for each in stages.values():
            assert each.attempts <= form.of(1, 2), stages
            assert each.failures <= form.of(0, 1), stages
    assert await resume_step(world, outcome.jobs[0]) == 20
    return outcome


# --- The database -----------------------------------------------------------------------------


@case(
    "17",
    "the database is locked while jobs run and are submitted",
    database="sqlite",
    shown_by=(
        "tests/integration/gateway/test_degradation.py::test_while_sqlite_is_locked_writes_get_retry_after_and_reads_go_on",
    ),
)
async def sqlite_locked(world: World, form: Form) -> Outcome:
    url = world.services.environment["EVERYDREAM_DATABASE_URL"]
    return await locked_out(world, form, lambda: sqlite_lock(url.removeprefix("sqlite:///")))


@case(
    "17", "PostgreSQL's tables are locked while jobs run and are submitted", database="postgresql"
)
async def postgresql_locked(world: World, form: Form) -> Outcome:
    url = world.services.environment["EVERYDREAM_DATABASE_URL"]
    return await locked_out(world, form, lambda: postgresql_lock(url))


async def locked_out(world: World, form: Form, lock: Lock) -> Outcome:
    """A request is refused in time; sent again it is one job, and a job at work loses nothing."""
    times, seconds = form.of(1, 5), 0.0
    jobs = []
    for _ in range(times):
        running = await world.submit(Script(steps=60, step_seconds=0.05))
        await world.reaches(running, step=2)
        body, once = world.body(Script(steps=2)), str(uuid.uuid4())
        async with lock():
            refused = await post(world, body, once)
        assert (refused.status, bool(refused.retry_after)) == (503, True), refused
        assert refused.seconds < PATIENCE * slowness(), refused
        job = await world.client.run(body, once=once)
        world.jobs[job] = Job(job, webhook=True, s3=True)
        jobs += [running, job]
        seconds = await world.recovered([running, job])
        assert (await stage_of(world, running, "training")).attempts == 1
    return Outcome(times, tuple(jobs), seconds)


@dataclass(frozen=True)
class Answered:
    """What a request got, and after how many seconds."""

    status: int
    retry_after: str | None
    seconds: float


async def post(world: World, body: Mapping[str, Any], once: str) -> Answered:
    """Submit once, whatever the answer."""
    headers = {"Authorization": f"Bearer {API_KEY}", "Idempotency-Key": once}
    began = monotonic()
    url = f"{world.client.endpoint}/run"
    async with world.session.post(url, json=body, headers=headers) as response:
        return Answered(response.status, response.headers.get("Retry-After"), monotonic() - began)


@asynccontextmanager
async def sqlite_lock(path: str) -> AsyncIterator[None]:
    """Nobody else writes."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=20)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield
        connection.execute("ROLLBACK")


@asynccontextmanager
async def postgresql_lock(url: str) -> AsyncIterator[None]:
    """Nobody else reads or writes jobs."""
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    try:
        async with connection.transaction():
            await connection.execute("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE")
            yield
    finally:
        await connection.close()
