"""Faults of users who cancel what they can, at once and again."""

from __future__ import annotations

import asyncio
import random
import uuid
from typing import Any

import psutil

from tests.faults.cases import Form, Outcome, case
from tests.faults.leftovers import left_over
from tests.faults.script import Script
from tests.faults.storms import storm
from tests.faults.world import PATIENCE, World
from tests.support.servers.web import Page
from tests.support.services import ServiceProcess

SEED = 48
STORM_SECONDS = 1.0
LONG = 100.0
"""Seconds that a stage would take that is cancelled: far longer than the storm."""
SLOW_BUCKET = 50_000
"""Bytes a second, of which the model has twenty times as many."""


@case(
    "+",
    "storms of cancellations meet jobs in every stage, and a worker is killed in each",
    shown_by=(
        "tests/integration/gateway/test_cancel_race.py::test_of_a_cancel_and_the_end_of_the_work_one_wins_and_both_are_answered",
        "tests/integration/trainer/test_work.py::test_a_cancelled_job_leaves_no_child_and_no_file",
        "tests/integration/fetcher/test_work.py::test_a_cancelled_staging_leaves_nothing_running_and_nothing_lying",
        "tests/integration/gateway/test_story.py::test_a_cancelled_job_keeps_nothing_that_was_not_finished",
    ),
)
async def cancellation_storms(world: World, form: Form) -> Outcome:
    dice = random.Random(SEED)
    killed = form.of(("fetcher",), ("fetcher", "trainer", "inferencer", "notifier") * 2)
    jobs, slowest = list[str](), 0.0
    for name in killed:
        stormed = await jobs_in_every_stage(world)
        beside = await world.submit(Script(steps=2))
        working = children_of(world, "trainer", "inferencer")
        wrong, _ = await asyncio.gather(
            storm(world, stormed, STORM_SECONDS, dice),
            killed_amid(world, name, dice.uniform(0, STORM_SECONDS / 2)),
        )
        assert wrong == 0, f"{wrong} cancellations were not answered"
        world.proxies.bucket.open()
        slowest = max(slowest, await world.recovered([*stormed, beside]))
        await gone(working)
        assert await left_over(world) == ()
        jobs += [*stormed, beside]
    return Outcome(len(killed), tuple(jobs), slowest)


async def jobs_in_every_stage(world: World) -> list[str]:
    """Four jobs: one is published, one's images are generated, one trains, one's data comes in."""
    world.proxies.bucket.throttle(SLOW_BUCKET)
    published = await cancelled_at(world, Script(steps=1, bytes=20 * SLOW_BUCKET))
    await works_on(world, "notifier", published, "model_publication")
    generated = await cancelled_at(world, Script(steps=1, image_seconds=LONG), s3=False)
    await works_on(world, "inferencer", generated, "generation")
    trained = await cancelled_at(
        world, Script(steps=1000, step_seconds=LONG / 1000, resume_every=3)
    )
    await world.reaches(trained, step=4)
    path = f"/data/{uuid.uuid4()}.zip"
    slow = Page(bytes(10_000), piece=100, pause=LONG / 100)
    staged = await cancelled_at(world, Script(), data_url=world.web.serve(path, slow))
    await asked_for(world, path)
    return [published, generated, trained, staged]


async def cancelled_at(world: World, script: Script, **others: Any) -> str:
    return await world.submit(script, wanted="CANCELLED", **others)


async def works_on(world: World, name: str, job: str, stage: str) -> None:
    await world.says(name, '"working"', job, f'"{stage}"')


async def asked_for(world: World, path: str) -> None:
    """Wait until the fetcher downloads it."""

    async def seen() -> bool | None:
        return any(each.path == path for each in world.web.seen) or None

    await world.until(seen)


async def killed_amid(world: World, name: str, after: float) -> ServiceProcess:
    """Kill a worker after so many seconds, and start it again on the same disk."""
    await asyncio.sleep(after)
    worker = world.services.first(name)
    await worker.kill()
    again = world.services.begin_again(worker)
    await again.wait_until_ready()
    return again


def children_of(world: World, *names: str) -> list[psutil.Process]:
    return [child for name in names for child in world.services.first(name).children]


async def gone(processes: list[psutil.Process]) -> None:
    """Wait until none of them runs."""
    async with asyncio.timeout(PATIENCE):
        while any(each.is_running() for each in processes):
            await asyncio.sleep(0.05)
