"""The queue position and estimated start of a waiting job in ``/status``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from services.gateway.queue import position
from services.gateway.queue.position import Pace
from services.gateway.turns import stale_cache
from shared.adapters.memory import MemoryBus
from shared.errors import Unavailable
from shared.messaging.messages import TrainingProgressed
from shared.messaging.topology import TRAINER, Queue
from tests.support.gateway_world import OTHER_KEY, REQUEST, World, eventually, training, world

ROOT = "/v2/everydream-v1"


@pytest.fixture
async def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(stale_cache, "FRESH_SECONDS", 0.0)
    monkeypatch.setattr(stale_cache, "STALE_SECONDS", 0.0)
    async with world(tmp_path) as one:
        yield one


async def finished_after(here: World, seconds: float) -> None:
    job, trainer = await training(here)
    here.clock.ahead += seconds
    await trainer.finish_training()
    await here.status_becomes(job, "COMPLETED")


@asynccontextmanager
async def idle_trainers(here: World, number: int) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(here.bus.get(TRAINER)) for _ in range(number)]
    await asyncio.sleep(0)  # let the tasks begin to consume
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def place(here: World, job: str, **more: Any) -> Any:
    return (await here.ask("GET", f"{ROOT}/status/{job}", **more)).body.get("queue")


async def seconds_to_wait(here: World, job: str) -> float:
    start = datetime.fromisoformat((await place(here, job))["estimated_start"])
    return start.timestamp() - here.clock()


async def test_a_waiting_job_shows_its_position_among_all_jobs(here: World) -> None:
    at_work, _ = await training(here)
    first = await here.run()
    theirs = (await here.ask("POST", f"{ROOT}/run", json=REQUEST, key=OTHER_KEY)).body["id"]
    last = await here.run()

    assert await place(here, first) == {"position": 1, "estimated_start": None}
    assert (await place(here, theirs, key=OTHER_KEY))["position"] == 2
    assert (await place(here, last))["position"] == 3
    assert await place(here, at_work) is None
    await here.ask("POST", f"{ROOT}/cancel/{first}")
    assert (await place(here, last))["position"] == 2
    assert await place(here, first) is None


@pytest.mark.parametrize("counted", [1, 2, 3, 7])
async def test_a_position_is_right_however_few_jobs_are_counted_for_it(
    here: World, monkeypatch: pytest.MonkeyPatch, counted: int
) -> None:
    monkeypatch.setattr(position, "COUNTED", counted)
    jobs = [await here.run() for _ in range(7)]

    assert [(await place(here, job))["position"] for job in jobs] == [1, 2, 3, 4, 5, 6, 7]


async def test_a_wait_for_the_end_that_times_out_shows_it_too(here: World) -> None:
    job = await here.run()

    answer = await here.ask("GET", f"{ROOT}/status-sync/{job}?wait=1")

    assert answer.body["queue"] == {"position": 1, "estimated_start": None}


async def test_the_turn_comes_by_the_newest_jobs_mean_time(here: World) -> None:
    await finished_after(here, 100.0)
    await finished_after(here, 300.0)
    await training(here)  # the only trainer is busy
    first, second = await here.run(), await here.run()

    assert await seconds_to_wait(here, first) == pytest.approx(200.0, abs=5.0)
    assert await seconds_to_wait(here, second) == pytest.approx(400.0, abs=5.0)


async def test_a_trainer_that_is_idle_takes_the_first_at_once(here: World) -> None:
    await finished_after(here, 100.0)
    first, second = await here.run(), await here.run()

    async with idle_trainers(here, 1):
        assert await seconds_to_wait(here, first) == pytest.approx(0.0, abs=2.0)
        assert await seconds_to_wait(here, second) == pytest.approx(100.0, abs=5.0)


@pytest.mark.parametrize(("position", "seconds"), [(1, 0.0), (2, 0.0), (3, 30.0), (6, 120.0)])
def test_several_trainers_move_the_line_faster(position: int, seconds: float) -> None:
    assert Pace(idle=2, workers=3, seconds=90.0).wait(position) == pytest.approx(seconds)


def test_what_busy_trainers_say_that_they_still_need_counts() -> None:
    one = Pace(idle=0, workers=1, seconds=90.0, left=(500.0,))
    assert [one.wait(position) for position in (1, 2, 3)] == pytest.approx([500.0, 590.0, 680.0])
    two = Pace(idle=1, workers=2, seconds=200.0, left=(500.0,))
    assert [two.wait(position) for position in (1, 2, 3, 4, 5)] == pytest.approx(
        [0.0, 200.0, 400.0, 500.0, 600.0], abs=0.01
    )


async def test_the_first_in_line_starts_when_the_job_at_work_says_that_it_ends(
    here: World,
) -> None:
    await finished_after(here, 100.0)
    _, trainer = await training(here)
    await trainer.publish(TrainingProgressed, progress={"step": 1, "eta_seconds": 4000})
    waiting = await here.run()

    async def is_known() -> bool | None:
        return await seconds_to_wait(here, waiting) == pytest.approx(4000.0, abs=5.0) or None

    await eventually(is_known)


async def test_without_trainers_nobody_knows_when(here: World) -> None:
    await finished_after(here, 100.0)

    assert await place(here, await here.run()) == {"position": 1, "estimated_start": None}


async def hang(*_: Any) -> int:
    await asyncio.Event().wait()
    return 0


async def refuse(_bus: MemoryBus, queue: Queue) -> int:
    raise Unavailable(f"the state of {queue.name} is not known")


@pytest.mark.parametrize("broker", [hang, refuse])
async def test_without_the_broker_the_position_is_known_and_the_time_is_not(
    here: World, monkeypatch: pytest.MonkeyPatch, broker: Any
) -> None:
    await finished_after(here, 100.0)
    job = await here.run()
    monkeypatch.setattr(MemoryBus, "consumers", broker)

    assert await place(here, job) == {"position": 1, "estimated_start": None}


async def test_the_broker_is_not_asked_each_time(
    here: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stale_cache, "FRESH_SECONDS", 60.0)
    monkeypatch.setattr(stale_cache, "STALE_SECONDS", 60.0)
    asked = []

    async def count(_bus: MemoryBus, queue: Queue) -> int:
        asked.append(queue.name)
        return 0

    monkeypatch.setattr(MemoryBus, "consumers", count)
    job = await here.run()

    places = await asyncio.gather(*(place(here, job) for _ in range(10)))

    assert [each["position"] for each in places] == [1] * 10
    assert asked.count("trainer") == 1
