"""Workers that take a number of jobs, and workers that may finish what they have when stopped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from structlog.testing import capture_logs

from shared.adapters.memory import MemoryBroker
from shared.errors import Passing
from shared.messaging.messages import (
    DatasetStaged,
    StageFailed,
    StagingInterrupted,
    StagingStarted,
)
from shared.retry import FAILURES_ALLOWED
from shared.worker.order import BestEffortTask, Order
from shared.worker.runtime import IDLE_HEARTBEATS, PATIENCE_HEARTBEATS, Worker
from tests.support.workers import folder_store
from tests.unit.shared.test_runtime import (
    HEARTBEAT,
    Gateway,
    ScriptedTasks,
    ScriptedWork,
    at_once,
    staged,
)

IDLE_SECONDS = IDLE_HEARTBEATS * HEARTBEAT


@asynccontextmanager
async def a_worker(
    work: ScriptedWork,
    *,
    jobs: int | None = None,
    drain: float = 0.0,
    tasks: ScriptedTasks | None = None,
) -> AsyncIterator[tuple[Gateway, asyncio.Event, asyncio.Task[None]]]:
    """Its gateway, what stops it, and its run."""
    broker, stop = MemoryBroker(), asyncio.Event()
    gateway = Gateway(broker.bus("gateway/test"))
    with TemporaryDirectory() as folder:
        worker = Worker(
            broker.bus("fetcher/1"),
            folder_store(Path(folder)),
            work,
            heartbeat=HEARTBEAT,
            best_effort_tasks=tasks,
            drain=drain,
            jobs=jobs,
        )
        running = asyncio.create_task(worker.run(stop))
        try:
            yield gateway, stop, running
        finally:
            stop.set()
            async with asyncio.timeout(10):
                await asyncio.wait((running,))
            await gateway.close()


async def grant_next(gateway: Gateway) -> StagingStarted:
    started, reply_queue = await gateway.receive(StagingStarted)
    await gateway.grant(started, reply_queue)
    return started


# --- A number of jobs


async def test_a_worker_for_one_job_does_it_and_leaves_the_next_to_others() -> None:
    async with a_worker(ScriptedWork(at_once), jobs=1) as (gateway, _, running):
        await gateway.submit("job-1")
        await gateway.submit("job-2")
        await grant_next(gateway)
        result, _reply = await gateway.receive(DatasetStaged)
        await asyncio.wait_for(running, 10)

        assert result.job == "job-1"
        assert await gateway.waiting() == 1


async def test_slots_that_work_side_by_side_take_no_more_than_all_together_may() -> None:
    begun: list[str] = []
    finish = asyncio.Event()

    async def perform(order: Order) -> DatasetStaged:
        begun.append(order.job)
        await finish.wait()
        return staged(order)

    work = ScriptedWork(perform, concurrency=4)
    async with a_worker(work, jobs=3) as (gateway, _, running):
        for number in range(5):
            await gateway.submit(f"job-{number}")
        for _ in range(3):
            await grant_next(gateway)
        await asyncio.sleep(HEARTBEAT * 3)
        assert (len(begun), await gateway.waiting()) == (3, 2)
        finish.set()
        await asyncio.wait_for(running, 10)

        assert await gateway.waiting() == 2


async def test_a_refused_claim_is_no_job_and_the_worker_takes_the_next() -> None:
    async with a_worker(ScriptedWork(at_once), jobs=1) as (gateway, _, running):
        await gateway.submit("refused")
        started, reply_queue = await gateway.receive(StagingStarted)
        await gateway.refuse(started, reply_queue)
        await gateway.submit("granted")
        while (started := (await gateway.receive(StagingStarted))[0]).job != "granted":
            pass
        await gateway.grant(started, reply_queue)
        result, _reply = await gateway.receive(DatasetStaged)
        await asyncio.wait_for(running, 10)

    assert result.job == "granted"


async def test_a_job_that_fails_is_one_job_and_is_reported_before_the_worker_ends() -> None:
    async def fail(_: Order) -> DatasetStaged:
        raise Passing("the server answers 500")

    async with a_worker(ScriptedWork(fail), jobs=1) as (gateway, _, running):
        await gateway.submit()
        await grant_next(gateway)
        await asyncio.wait_for(running, 10)
        failed, _reply = await gateway.receive(StageFailed)

    assert failed.kind == "passing"


async def test_a_worker_for_one_job_ends_when_none_comes() -> None:
    began = asyncio.get_running_loop().time()
    async with a_worker(ScriptedWork(at_once), jobs=1) as (gateway, _, running):
        await asyncio.wait_for(running, 10)
        await gateway.submit()

        assert asyncio.get_running_loop().time() - began >= IDLE_SECONDS
        assert await gateway.waiting() == 1


async def test_samples_keep_no_worker_that_waits_for_a_job() -> None:
    async def draw(_: BestEffortTask) -> None:
        await asyncio.sleep(IDLE_SECONDS / 4)

    tasks = ScriptedTasks(draw)
    async with a_worker(ScriptedWork(at_once), jobs=1, tasks=tasks) as (gateway, _, running):
        for number in range(20):
            await gateway.publish_sample_row(f"row-{number}")
        await asyncio.wait_for(running, 10)

        assert 0 < len(tasks.begun) < 20


async def test_a_worker_whose_child_never_starts_ends_with_the_reason() -> None:
    class Broken(ScriptedWork):
        async def prepare(self) -> str:
            raise Passing("the child died")

    broken = Broken(at_once)
    async with a_worker(broken, jobs=1) as (_, _stop, running):
        with capture_logs() as logs, pytest.raises(ExceptionGroup, match="TaskGroup") as caught:
            await asyncio.wait_for(running, 10)

    assert str(caught.value.exceptions[0]) == "the child died"
    assert [line["event"] for line in logs].count("slot_failed") == FAILURES_ALLOWED


# --- A drain


async def test_a_worker_that_drains_finishes_its_job_and_takes_no_other() -> None:
    finish = asyncio.Event()

    async def perform(order: Order) -> DatasetStaged:
        await finish.wait()
        assert not order.stopping.is_set()
        return staged(order)

    work = ScriptedWork(perform, graceful=True)
    async with a_worker(work, drain=60.0) as (gateway, stop, running):
        await gateway.submit("job-1")
        await grant_next(gateway)
        await gateway.submit("job-2")
        stop.set()
        await asyncio.sleep(HEARTBEAT * 3)
        assert not running.done()
        finish.set()
        result, _reply = await gateway.receive(DatasetStaged)
        await asyncio.wait_for(running, 10)

        assert result.job == "job-1"
        assert await gateway.waiting() == 1


async def test_a_worker_without_a_job_drains_at_once() -> None:
    work = ScriptedWork(at_once)
    async with a_worker(work, drain=60.0) as (_, stop, running):
        await asyncio.sleep(0)
        stop.set()
        await asyncio.wait_for(running, 10)


async def test_what_a_drain_leaves_undone_is_handed_over() -> None:
    async def perform(_: Order) -> DatasetStaged:
        await asyncio.Event().wait()
        raise AssertionError

    work = ScriptedWork(perform)
    async with a_worker(work, drain=HEARTBEAT * 5) as (gateway, stop, running):
        await gateway.submit()
        await grant_next(gateway)
        await asyncio.sleep(HEARTBEAT)
        stop.set()
        interrupted, _reply = await gateway.receive(StagingInterrupted)
        await asyncio.wait_for(running, 10)

    assert interrupted.job == "job-1"


async def test_work_that_stalls_in_a_drain_has_failed() -> None:
    async def perform(_: Order) -> DatasetStaged:
        await asyncio.Event().wait()
        raise AssertionError

    work = ScriptedWork(perform)
    async with a_worker(work, drain=60.0) as (gateway, stop, running):
        await gateway.submit()
        await grant_next(gateway)
        stop.set()
        failed, _reply = await gateway.receive(StageFailed)
        await asyncio.wait_for(running, 10)

    assert "no sign of life" in failed.reason
    assert PATIENCE_HEARTBEATS * HEARTBEAT < 60.0
