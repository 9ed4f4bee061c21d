"""Jobs are released in turns: nobody waits behind all that another has sent."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa

from services.gateway.database import tables
from services.gateway.database.connection import Database
from shared.messaging.messages import DatasetStaged, StageFailed, StagingDue, StagingStarted
from shared.messaging.topology import FETCHER, TRAINER
from shared.service_process import closing
from tests.support.gateway_world import (
    API_KEY,
    OTHER_KEY,
    TRAIN_ONLY,
    Claimed,
    World,
    eventually,
    world,
)
from tests.support.outbox import ids_in_outbox

ROOT = "/v1/everydream-v1"
HEARTBEAT = 1.0
"""Seconds; so long that no job is requested again while a test looks at the others."""
TURNS = 10
"""Of two trainers, in which each of ten owners has begun a job."""


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path, heartbeat=HEARTBEAT) as one:
        yield one


async def submit(
    here: World, number: int = 1, path: str = "/run", key: str = API_KEY, **more: Any
) -> list[str]:
    """The ids of so many jobs; ``more`` goes into their requests."""
    request = {**TRAIN_ONLY, **more}
    answers = [
        await here.ask("POST", f"{ROOT}{path}", json=request, key=key) for _ in range(number)
    ]
    assert [answer.status for answer in answers] == [200] * number
    return [answer.body["id"] for answer in answers]


async def due(here: World, number: int) -> list[StagingDue]:
    """What the fetchers get next."""
    messages = [await here.get(FETCHER) for _ in range(number)]
    return [message for message in messages if isinstance(message, StagingDue)]


async def released(here: World, number: int) -> list[str]:
    return [each.job for each in await due(here, number)]


async def nothing_is_due(here: World) -> None:
    """Until after a heartbeat, at which a gateway looks for jobs to release."""
    await asyncio.sleep(1.2 * HEARTBEAT)
    assert await here.bus.depth(FETCHER) == 0


async def positions(here: World, jobs: Iterable[str], key: str = API_KEY) -> list[int]:
    answers = [await here.ask("GET", f"{ROOT}/status/{job}", key=key) for job in jobs]
    return [answer.body["queue"]["position"] for answer in answers]


async def staged(here: World, request: StagingDue) -> None:
    await (await here.claim(request.job, "staging")).stage_dataset(request)
    assert isinstance(await here.get(TRAINER), DatasetStaged)


async def test_another_key_s_job_does_not_wait_behind_many(here: World) -> None:
    many = await submit(here, 20)
    (one,) = await submit(here, key=OTHER_KEY)

    assert await released(here, 4) == [*many[:3], one]
    await nothing_is_due(here)
    assert await positions(here, [one], OTHER_KEY) == [4]
    assert await positions(here, many[3:6]) == [5, 6, 7]


async def test_an_owner_s_next_job_is_released_when_one_leaves_its_place(here: World) -> None:
    jobs = await submit(here, 8)
    first, second, third = await due(here, 3)

    await staged(here, first)
    assert await released(here, 1) == [jobs[3]], "one of its downloads is done"
    await staged(here, second)
    await nothing_is_due(here)  # it has half of the places
    await here.claim(first.job, "training", gpu="card")
    assert await released(here, 1) == [jobs[4]], "one has begun"
    await here.ask("POST", f"{ROOT}/cancel/{third.job}")
    assert await released(here, 1) == [jobs[5]], "one has ended"


async def test_the_position_is_that_of_the_turns(here: World) -> None:
    ours, theirs = await submit(here, 8), await submit(here, 8, key=OTHER_KEY)
    low = await submit(here, 2, policy={"lowPriority": True})

    assert await released(here, 6) == [*ours[:3], *theirs[:3]]
    assert await positions(here, ours) == [1, 2, 3, 7, 9, 11, 13, 15]
    assert await positions(here, theirs, OTHER_KEY) == [4, 5, 6, 8, 10, 12, 14, 16]
    assert await positions(here, low) == [17, 18]


async def test_low_priority_waits_for_all_normal_jobs_of_its_line(here: World) -> None:
    await submit(here, 5)
    (low,) = await submit(here, key=OTHER_KEY, policy={"lowPriority": True})
    (check,) = await submit(here, path="/dataset/check", key=OTHER_KEY)

    assert check in await released(here, 4), "checks are another line"
    await nothing_is_due(here)
    assert (await here.ask("POST", f"{ROOT}/purge-queue")).body["removed"] == 5
    assert await released(here, 1) == [low]


async def test_a_job_that_waits_for_its_turn_is_claimed_by_nobody(here: World) -> None:
    waits = (await submit(here, 4))[3]

    claim = str(uuid4())
    await here.publish(StagingStarted(job=waits, stage="staging", claim=claim, worker="w"))

    assert (await here.refusal_of(claim)).reason == "the job waits for its turn"
    assert (await here.status(waits))["status"] == "IN_QUEUE"


async def test_what_is_tried_again_does_not_wait_but_another_run_does(here: World) -> None:
    jobs = await submit(here, 5)
    first, *_ = await due(here, 3)
    worker = await here.claim(first.job, "staging")
    await worker.publish(StageFailed, kind="passing", reason="it broke")
    assert await released(here, 1) == [first.job]

    worker = await here.claim(first.job, "staging")
    await worker.publish(StageFailed, kind="refused", reason="it is broken")
    assert await released(here, 1) == [jobs[3]]
    assert (await here.ask("POST", f"{ROOT}/retry/{first.job}")).status == 200
    await nothing_is_due(here)
    assert await positions(here, [jobs[4], first.job]) == [4, 5]
    await here.ask("POST", f"{ROOT}/cancel/{jobs[3]}")
    await here.ask("POST", f"{ROOT}/cancel/{jobs[4]}")
    assert await released(here, 1) == [first.job]


async def test_the_next_gateway_goes_on_where_a_lost_one_stopped(tmp_path: Path) -> None:
    async with world(tmp_path) as lost:
        jobs = await submit(lost, 5)
        assert await released(lost, 3) == jobs[:3]
        await eventually(lambda: nothing_waits(lost))
        database_url = lost.settings.database_url
    # The places became free in its last moment.
    async with closing(Database.open(database_url)) as database:
        gone = tables.jobs.c.id.in_(jobs[:2])
        ended = {"status": "CANCELLED", "ended_at": 1.0, "overdue_at": None}
        await database.do(sa.update(tables.jobs).where(gone).values(ended))

    async with world(tmp_path) as here:
        asked_for: set[str] = set()
        while not asked_for >= {*jobs[3:]}:
            asked_for |= {*await released(here, 1)}
    assert asked_for == {*jobs[3:]}


async def nothing_waits(here: World) -> bool:
    """In the outbox; what is published there may be published again."""
    return not await ids_in_outbox(here.settings.database_url)


# --- Ten owners and two trainers --------------------------------------------------------------


@asynccontextmanager
async def fetchers_and_two_trainers(here: World) -> AsyncIterator[list[str]]:
    """At work; yields the jobs whose training has begun, in order."""
    begun: list[str] = []

    async def fetch() -> None:
        while True:
            (request,) = await due(here, 1)
            await (await here.claim(request.job, "staging")).stage_dataset(request)

    async def train() -> None:
        while True:
            job = (await here.get(TRAINER)).job
            trainer: Claimed = await here.claim(job, "training", gpu="card")
            begun.append(job)
            await trainer.finish_training()

    tasks = [asyncio.create_task(each()) for each in (*[fetch] * 4, *[train] * 2)]
    try:
        yield begun
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


@pytest.mark.parametrize("most", [24, pytest.param(1000, marks=pytest.mark.long)])
async def test_each_of_ten_owners_begins_in_the_first_turns(tmp_path: Path, most: int) -> None:
    keys = [f"key-of-owner-{number}" for number in range(10)]
    numbers = [max(1, most >> number) for number in range(10)]

    async with world(tmp_path, api_keys=tuple(keys)) as here:
        owners = {
            job: key
            for key, number in zip(keys, numbers, strict=True)
            for job in await submit(here, number, key=key)
        }
        async with fetchers_and_two_trainers(here) as begun:

            async def all_begun() -> bool | None:
                return len({owners[job] for job in begun}) == len(keys) or None

            await eventually(all_begun)
            first_turns = [owners[job] for job in begun[: 2 * TURNS]]

    assert {*first_turns} == {*keys}
    later = first_turns[len(keys) + 2 :]  # the first owner's jobs were released before others came
    assert max(Counter(later).values()) <= len(later) / 2, "four fetchers may change their order"
