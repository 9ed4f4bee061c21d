"""The runtime over the in-memory bus; the test plays the gateway."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import msgspec
import pytest
from structlog.testing import capture_logs

from shared.adapters import memory
from shared.adapters.folder import FolderStore
from shared.adapters.memory import MemoryBroker, MemoryBus
from shared.concurrency import in_thread
from shared.errors import (
    Interrupted,
    Passing,
    Refused,
    SettingsError,
    Unavailable,
    Unroutable,
    not_for_users,
)
from shared.messaging.messages import (
    AnyMessage,
    CheckpointSampled,
    ClaimGranted,
    ClaimRefused,
    CommandIssued,
    DatasetStaged,
    JobCancelled,
    Message,
    SampleRow,
    Stage,
    StageFact,
    StageFailed,
    StagingDue,
    StagingInterrupted,
    StagingProgressed,
    StagingStarted,
)
from shared.messaging.topology import (
    DELIVERY_LIMIT,
    FETCHER,
    GATEWAY_RECORDER,
    INFERENCER_SAMPLES,
    MAX_MESSAGE_BYTES,
    Queue,
)
from shared.request import Command, Train
from shared.storage.large_fields import load_fields, store_message
from shared.worker import runtime
from shared.worker.order import BestEffortTask, Order
from shared.worker.runtime import FINAL_PUBLISH_HEARTBEATS, PATIENCE_HEARTBEATS, Worker
from tests.support.workers import folder_store

HEARTBEAT = 0.02
TRAIN = Train(data_url="https://example.org/data.zip")
F = TypeVar("F", bound=StageFact)


class ScriptedWork:
    """A fetcher that runs a function of the test as its work."""

    queue = FETCHER
    started = StagingStarted
    progressed = StagingProgressed
    interrupted = StagingInterrupted

    def __init__(
        self,
        perform: Callable[[Order], Awaitable[DatasetStaged]],
        *,
        graceful: bool = False,
        concurrency: int = 1,
    ) -> None:
        self._perform = perform
        self.graceful = graceful
        self.concurrency = concurrency
        self.ready = 0

    def stage_of(self, message: AnyMessage) -> Stage | None:
        return "staging" if isinstance(message, StagingDue) else None

    async def prepare(self) -> str:
        self.ready += 1
        return "a card"

    async def perform(self, order: Order) -> DatasetStaged:
        return await self._perform(order)

    async def close(self) -> None:
        self.ready = -1


class ScriptedTasks:
    """Best-effort tasks that run a function of the test and are recorded."""

    queue = INFERENCER_SAMPLES

    def __init__(self, run: Callable[[BestEffortTask], Awaitable[None]]) -> None:
        self._run = run
        self.begun: list[str] = []

    async def run(self, best_effort_task: BestEffortTask) -> None:
        assert isinstance(best_effort_task.message, CheckpointSampled)
        self.begun.append(best_effort_task.message.snapshot)
        await self._run(best_effort_task)


class Gateway:
    """The gateway, played by the test."""

    def __init__(self, bus: MemoryBus) -> None:
        self._bus = bus
        self._facts = bus.consume(GATEWAY_RECORDER)

    async def submit(self, job: str = "job-1") -> None:
        await self._bus.publish(StagingDue(job=job, run=1, train=TRAIN))

    async def receive(self, kind: type[F]) -> tuple[F, str]:
        """The next fact of a kind, and its reply queue; others are skipped."""
        async with asyncio.timeout(10):
            async for delivery in self._facts:
                await delivery.ack()
                if isinstance(delivery.message, kind):
                    return delivery.message, delivery.envelope.reply_to or ""
        raise AssertionError

    async def grant(self, started: StageFact, reply_queue: str, attempt: int = 1) -> None:
        answer = ClaimGranted(
            job=started.job, stage=started.stage, claim=started.claim, attempt=attempt
        )
        await self._bus.send(reply_queue, answer)

    async def issue(self, fact: StageFact, reply_queue: str, commands: dict[Command, int]) -> None:
        issued = CommandIssued(job=fact.job, stage=fact.stage, claim=fact.claim, commands=commands)
        await self._bus.send(reply_queue, issued)

    async def refuse(self, fact: StageFact, reply_queue: str) -> None:
        refusal = ClaimRefused(job=fact.job, stage=fact.stage, claim=fact.claim, reason="no")
        await self._bus.send(reply_queue, refusal)

    async def publish(self, message: Message) -> None:
        await self._bus.publish(message, mandatory=False)

    async def ends(self, job: str) -> bool:
        """Whether a worker was told."""
        try:
            await self._bus.publish(JobCancelled(job=job, run=1))
        except Unroutable:
            return False
        return True

    async def waiting(self, queue: Queue = FETCHER) -> int:
        return await self._bus.depth(queue)

    async def publish_sample_row(self, name: str, job: str = "job-1") -> None:
        row = SampleRow(step=0, epoch=0, prompts=(), seed=0, resolution=256)
        await self._bus.publish(
            CheckpointSampled(
                job=job, stage="training", claim="", snapshot=name, base_model="b", row=row
            )
        )

    async def close(self) -> None:
        await self._facts.aclose()


def staged(order: Order) -> DatasetStaged:
    return DatasetStaged(
        **order.stamp(), train=TRAIN, dataset="dataset", base_model="base", report={}
    )


async def at_once(order: Order) -> DatasetStaged:
    return staged(order)


@asynccontextmanager
async def working(
    work: ScriptedWork,
    best_effort_tasks: ScriptedTasks | None = None,
    store: FolderStore | None = None,
) -> AsyncIterator[tuple[Gateway, asyncio.Event]]:
    broker = MemoryBroker()
    gateway = Gateway(broker.bus("gateway/test"))
    stop = asyncio.Event()
    with TemporaryDirectory() as folder:
        worker = Worker(
            broker.bus("fetcher/1"),
            store or folder_store(Path(folder)),
            work,
            heartbeat=HEARTBEAT,
            best_effort_tasks=best_effort_tasks,
        )
        running = asyncio.create_task(worker.run(stop))
        try:
            yield gateway, stop
        finally:
            stop.set()
            async with asyncio.timeout(10):
                await running
            await gateway.close()


async def test_work_gets_its_message_whole_and_what_is_large_in_its_result_is_stored(
    tmp_path: Path,
) -> None:
    store, prompts = folder_store(tmp_path), ["a" * 70_000]
    train = msgspec.structs.replace(TRAIN, sample_prompts=prompts)
    small = await store_message(store, StagingDue(job="job-1", run=1, train=train))
    assert small.train
    assert small.train.sample_prompts == []

    async def stage(order: Order) -> DatasetStaged:
        assert isinstance(order.message, StagingDue)
        assert order.message.train
        return msgspec.structs.replace(staged(order), train=order.message.train)

    async with working(ScriptedWork(stage), store=store) as (gateway, _):
        await gateway.publish(small)
        started, reply_queue = await gateway.receive(StagingStarted)
        await gateway.grant(started, reply_queue)
        result, _reply = await gateway.receive(DatasetStaged)

    assert result.train.sample_prompts == []
    assert (await load_fields(store, result)).train.sample_prompts == prompts


async def test_a_granted_claim_is_worked_on_and_its_result_is_published_under_it() -> None:
    async with working(ScriptedWork(at_once)) as (gateway, _):
        await gateway.submit()
        started, reply_queue = await gateway.receive(StagingStarted)
        await gateway.grant(started, reply_queue, attempt=3)
        result, _reply = await gateway.receive(DatasetStaged)

    assert (result.job, result.claim, result.attempt) == ("job-1", started.claim, 3)
    assert (started.gpu, started.asked_by) == ("a card", "")
    assert result.worker == "fetcher/1"


async def test_a_claim_is_repeated_until_it_is_answered_and_nothing_begins_before() -> None:
    begun = asyncio.Event()

    async def perform(order: Order) -> DatasetStaged:
        begun.set()
        return staged(order)

    async with working(ScriptedWork(perform)) as (gateway, _):
        await gateway.submit()
        first, _reply_queue = await gateway.receive(StagingStarted)
        second, reply_queue = await gateway.receive(StagingStarted)
        assert first.claim == second.claim
        assert not begun.is_set()
        await gateway.grant(second, reply_queue)
        await gateway.receive(DatasetStaged)


async def test_a_refused_claim_costs_nothing_and_the_slot_takes_the_next_message() -> None:
    async with working(ScriptedWork(at_once)) as (gateway, _):
        await gateway.submit("refused")
        started, reply_queue = await gateway.receive(StagingStarted)
        await gateway.refuse(started, reply_queue)
        await gateway.submit("granted")
        while (started := (await gateway.receive(StagingStarted))[0]).job != "granted":
            pass
        await gateway.grant(started, reply_queue)
        result, _reply = await gateway.receive(DatasetStaged)

    assert result.job == "granted"


async def test_heartbeats_carry_the_latest_numbers_while_the_work_goes_on() -> None:
    finish = asyncio.Event()

    async def perform(order: Order) -> DatasetStaged:
        order.progress(phase="downloading", bytes=7)
        await finish.wait()
        return staged(order)

    async with working(ScriptedWork(perform)) as (gateway, _):
        await gateway.submit()
        started, reply_queue = await gateway.receive(StagingStarted)
        await gateway.grant(started, reply_queue)
        heartbeat, _reply = await gateway.receive(StagingProgressed)
        finish.set()
        await gateway.receive(DatasetStaged)

    assert heartbeat.progress == {"phase": "downloading", "bytes": 7}


async def test_commands_reach_the_work_and_are_no_answer_to_a_claim() -> None:
    received: list[dict[Command, int]] = []

    async def perform(order: Order) -> DatasetStaged:
        for _ in range(2):
            await order.commands_changed.wait()
            order.commands_changed.clear()
            received.append(order.commands)
            order.progress(keepalive=len(received))
        return staged(order)

    async with working(ScriptedWork(perform)) as (gateway, _):
        await gateway.submit()
        started, reply_queue = await gateway.receive(StagingStarted)
        await gateway.issue(started, reply_queue, {"save": 1})
        await gateway.receive(StagingStarted)  # it still claims
        await gateway.grant(started, reply_queue)
        while not (await gateway.receive(StagingProgressed))[0].progress:
            pass
        await gateway.issue(started, reply_queue, {"save": 1})
        await gateway.issue(started, reply_queue, {"save": 1, "stop": 1})
        await gateway.receive(DatasetStaged)

    assert received == [{"save": 1}, {"save": 1, "stop": 1}]


async def test_a_lost_claim_cancels_the_work_and_nothing_more_is_published() -> None:
    ended = asyncio.Event()

    async def perform(order: Order) -> DatasetStaged:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return staged(order)

    async with working(ScriptedWork(perform)) as (gateway, _):
        await gateway.submit()
        started, reply_queue = await gateway.receive(StagingStarted)
        await gateway.grant(started, reply_queue)
        heartbeat, reply_queue = await gateway.receive(StagingProgressed)
        await gateway.refuse(heartbeat, reply_queue)
        await asyncio.wait_for(ended.wait(), 10)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(HEARTBEAT * 5):
                await gateway.receive(StageFailed)


async def test_work_is_cancelled_once_however_often_it_is_told_to_stop() -> None:
    """The refusal of its claim answers each heartbeat, and the worker may stop as well."""
    cleaning, go_on, cleaned = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def perform(order: Order) -> DatasetStaged:
        try:
            await asyncio.Event().wait()
        finally:
            cleaning.set()
            await go_on.wait()
            cleaned.set()
        return staged(order)

    async with working(ScriptedWork(perform)) as (gateway, stop):
        await gateway.submit()
        started, reply_queue = await gateway.receive(StagingStarted)
        await gateway.grant(started, reply_queue)
        heartbeat, reply_queue = await gateway.receive(StagingProgressed)
        await gateway.refuse(heartbeat, reply_queue)
        await asyncio.wait_for(cleaning.wait(), 10)
        await gateway.refuse(heartbeat, reply_queue)
        await gateway.receive(StagingProgressed)
        await gateway.receive(StagingProgressed)
        stop.set()
        await asyncio.sleep(0)
        go_on.set()
        await asyncio.wait_for(cleaned.wait(), 10)


async def test_a_worker_stops_although_a_thread_of_its_work_runs_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runtime, "CLEAN_UP_SECONDS", 0.1)
    begun, go_on = threading.Event(), threading.Event()

    async def perform(order: Order) -> DatasetStaged:
        await in_thread(begun.set)
        await in_thread(go_on.wait, 60)
        return staged(order)

    try:
        async with working(ScriptedWork(perform)) as (gateway, stop):
            await gateway.submit()
            started, reply_queue = await gateway.receive(StagingStarted)
            await gateway.grant(started, reply_queue)
            await asyncio.to_thread(begun.wait, 10)
            stop.set()
            interrupted, _reply = await gateway.receive(StagingInterrupted)
            assert interrupted.claim == started.claim
    finally:
        go_on.set()


async def test_a_worker_stops_although_its_child_is_never_ready() -> None:
    preparing = asyncio.Event()

    class Unready(ScriptedWork):
        async def prepare(self) -> str:
            preparing.set()
            await asyncio.Event().wait()
            return ""

    async with working(Unready(at_once)) as (_gateway, stop):
        await asyncio.wait_for(preparing.wait(), 10)
        stop.set()


async def test_a_worker_ends_with_the_reason_if_the_machine_cannot_do_its_work(
    tmp_path: Path,
) -> None:
    class Unable(ScriptedWork):
        async def prepare(self) -> str:
            raise SettingsError("this machine has no card")

    bus = MemoryBroker().bus("fetcher/1")
    worker = Worker(bus, folder_store(tmp_path), Unable(at_once), heartbeat=HEARTBEAT)
    with pytest.raises(ExceptionGroup) as ended:
        async with asyncio.timeout(10):
            await worker.run(asyncio.Event())

    assert ended.group_contains(SettingsError, match="this machine has no card")


@pytest.mark.parametrize(
    ("error", "kind", "reason"),
    [
        (Refused("a.zip holds no images"), "refused", "a.zip holds no images"),
        (OSError("disk on fire"), "passing", "OSError: disk on fire"),
        (Refused("no tensor \ud800"), "refused", "no tensor ?"),
        (Refused("x" * 100_000), "refused", "x" * 1500 + " ... " + "x" * 1500),
        (
            not_for_users(Unavailable("http://10.0.0.5/b does not answer")),
            "passing",
            "the service's own store does not answer as it should",
        ),
    ],
)
async def test_the_type_of_an_error_decides_what_it_means(
    error: Exception, kind: str, reason: str
) -> None:
    async def perform(_order: Order) -> DatasetStaged:
        raise error

    async with working(ScriptedWork(perform)) as (gateway, _):
        await gateway.submit()
        started, reply_queue = await gateway.receive(StagingStarted)
        await gateway.grant(started, reply_queue)
        failed, _reply = await gateway.receive(StageFailed)

    assert (failed.kind, failed.reason) == (kind, reason)


@pytest.mark.parametrize(
    ("error", "level"),
    [
        (Passing("https://x.org/a.zip: the server answers 500"), ("warning", "work_failed")),
        (Refused("these keys may not do that"), ("warning", "work_refused")),
        (ValueError("a bug"), ("error", "work_failed")),
    ],
)
async def test_only_what_nobody_expects_is_logged_as_an_error_with_a_traceback(
    error: Exception, level: tuple[str, str]
) -> None:
    async def perform(_order: Order) -> DatasetStaged:
        raise error

    with capture_logs() as logs:
        async with working(ScriptedWork(perform)) as (gateway, _):
            await gateway.submit()
            started, reply_queue = await gateway.receive(StagingStarted)
            await gateway.grant(started, reply_queue)
            await gateway.receive(StageFailed)

    (told,) = [each for each in logs if each["log_level"] in ("warning", "error")]
    assert (told["log_level"], told["event"]) == level
    assert told.get("reason") == (str(error) if level[0] == "warning" else None)
    assert bool(told.get("exc_info")) == (level[0] == "error")


async def test_a_result_that_the_broker_refuses_for_good_ends_the_job_with_its_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "MAX_MESSAGE_BYTES", 16_000)

    async def perform(order: Order) -> DatasetStaged:
        return msgspec.structs.replace(staged(order), dataset="x" * 16_600)

    async with working(ScriptedWork(perform)) as (gateway, _):
        await gateway.submit()
        started, reply_queue = await gateway.receive(StagingStarted)
        await gateway.grant(started, reply_queue)
        failed, _reply = await gateway.receive(StageFailed)

    assert failed.kind == "refused"
    assert "refuses the message dataset.staged of 17" in failed.reason


async def test_progress_that_the_broker_refuses_for_good_ends_the_job_with_its_size() -> None:
    async def perform(order: Order) -> DatasetStaged:
        order.progress(phase="x" * MAX_MESSAGE_BYTES)
        await asyncio.Event().wait()
        return staged(order)

    async with working(ScriptedWork(perform)) as (gateway, _):
        await gateway.submit()
        started, reply_queue = await gateway.receive(StagingStarted)
        await gateway.grant(started, reply_queue)
        failed, _reply = await gateway.receive(StageFailed)

    assert failed.kind == "refused"
    assert "refuses the message staging.progressed of 167" in failed.reason


async def test_silent_work_is_given_up_after_its_patience() -> None:
    async def perform(order: Order) -> DatasetStaged:
        order.progress(phase="loading")
        await asyncio.Event().wait()
        return staged(order)

    async with working(ScriptedWork(perform)) as (gateway, _):
        await gateway.submit()
        started, reply_queue = await gateway.receive(StagingStarted)
        await gateway.grant(started, reply_queue)
        began = asyncio.get_running_loop().time()
        failed, _reply = await gateway.receive(StageFailed)

    assert failed.kind == "passing"
    assert failed.reason.startswith("stalled in loading")
    assert asyncio.get_running_loop().time() - began >= PATIENCE_HEARTBEATS * HEARTBEAT


async def test_work_that_shows_life_is_not_given_up() -> None:
    async def perform(order: Order) -> DatasetStaged:
        for _ in range(PATIENCE_HEARTBEATS * 2):
            await asyncio.sleep(HEARTBEAT)
            order.keepalive()
        return staged(order)

    async with working(ScriptedWork(perform)) as (gateway, _):
        await gateway.submit()
        started, reply_queue = await gateway.receive(StagingStarted)
        await gateway.grant(started, reply_queue)
        await gateway.receive(DatasetStaged)


async def test_a_stopped_worker_reports_that_its_work_was_interrupted() -> None:
    async def perform(order: Order) -> DatasetStaged:
        await asyncio.Event().wait()
        return staged(order)

    async with working(ScriptedWork(perform)) as (gateway, stop):
        await gateway.submit()
        started, reply_queue = await gateway.receive(StagingStarted)
        await gateway.grant(started, reply_queue)
        await gateway.receive(StagingProgressed)
        stop.set()
        interrupted, _reply = await gateway.receive(StagingInterrupted)

    assert interrupted.claim == started.claim


async def test_a_stopped_worker_does_not_wait_for_ever_for_a_broker_that_is_away(
    tmp_path: Path,
) -> None:
    broker = MemoryBroker()
    bus, gateway = broker.bus("fetcher/1"), Gateway(broker.bus("gateway/test"))
    stop = asyncio.Event()

    async def away(*_: object, **__: object) -> None:
        raise Unavailable("the broker was made unavailable by a test")

    async def perform(order: Order) -> DatasetStaged:
        bus.publish = away  # type: ignore[method-assign]
        stop.set()
        return staged(order)

    running = asyncio.create_task(
        Worker(bus, folder_store(tmp_path), ScriptedWork(perform), heartbeat=HEARTBEAT).run(stop)
    )
    await gateway.submit()
    started, reply_queue = await gateway.receive(StagingStarted)
    await gateway.grant(started, reply_queue)

    async with asyncio.timeout(2 * FINAL_PUBLISH_HEARTBEATS * HEARTBEAT + 5):
        await running
    await gateway.close()


async def test_graceful_work_saves_its_state_before_it_is_interrupted() -> None:
    saved = asyncio.Event()

    async def perform(order: Order) -> DatasetStaged:
        await order.stopping.wait()
        saved.set()
        raise Interrupted

    async with working(ScriptedWork(perform, graceful=True)) as (gateway, stop):
        await gateway.submit()
        started, reply_queue = await gateway.receive(StagingStarted)
        await gateway.grant(started, reply_queue)
        await gateway.receive(StagingProgressed)
        stop.set()
        await gateway.receive(StagingInterrupted)

    assert saved.is_set()


async def test_a_message_in_hand_goes_back_when_the_worker_stops_before_an_answer() -> None:
    work = ScriptedWork(at_once)
    async with working(work) as (gateway, stop):
        await gateway.submit()
        await gateway.receive(StagingStarted)
        stop.set()
        async with asyncio.timeout(10):
            while work.ready != -1:
                await asyncio.sleep(HEARTBEAT)
        assert await gateway.waiting() == 1


async def test_a_worker_with_two_slots_works_on_two_jobs_at_once() -> None:
    both = asyncio.Barrier(2)

    async def perform(order: Order) -> DatasetStaged:
        await both.wait()
        return staged(order)

    async with working(ScriptedWork(perform, concurrency=2)) as (gateway, _):
        await gateway.submit("job-1")
        await gateway.submit("job-2")
        granted: set[str] = set()
        while len(granted) < 2:
            started, reply_queue = await gateway.receive(StagingStarted)
            await gateway.grant(started, reply_queue)
            granted.add(started.claim)
        done = {(await gateway.receive(DatasetStaged))[0].job for _ in range(2)}

    assert done == {"job-1", "job-2"}


# --- Best-effort tasks ------------------------------------------------------------------------


async def until(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not happened():
            await asyncio.sleep(0)


async def for_ever(_task: BestEffortTask) -> None:
    await asyncio.Event().wait()


async def test_best_effort_tasks_run_one_by_one_without_a_claim_while_no_work_waits() -> None:
    async def run(_task: BestEffortTask) -> None:
        assert len(busy) == 0, "the slot runs two tasks at once"
        busy.append(1)
        await asyncio.sleep(HEARTBEAT)
        busy.pop()

    busy: list[int] = []
    best_effort_tasks = ScriptedTasks(run)
    async with working(ScriptedWork(at_once), best_effort_tasks) as (gateway, _):
        for name in "abc":
            await gateway.publish_sample_row(name)
        await until(lambda: best_effort_tasks.begun == ["a", "b", "c"])


async def test_any_amount_of_work_goes_before_a_best_effort_task_and_costs_it_no_delivery() -> None:
    jobs = DELIVERY_LIMIT + 2
    finish = asyncio.Event()
    done: list[str] = []

    async def run(_task: BestEffortTask) -> None:
        await finish.wait()

    async def perform(order: Order) -> DatasetStaged:
        done.append(f"work, after {best_effort_tasks.begun}")
        return staged(order)

    best_effort_tasks = ScriptedTasks(run)
    async with working(ScriptedWork(perform), best_effort_tasks) as (gateway, _):
        await gateway.publish_sample_row("a")
        await until(lambda: best_effort_tasks.begun == ["a"])
        await gateway.publish_sample_row("b")
        for number in range(jobs):
            await gateway.submit(f"job-{number}")
        finish.set()
        for _ in range(jobs):
            started, reply_queue = await gateway.receive(StagingStarted)
            await gateway.grant(started, reply_queue)
            await gateway.receive(DatasetStaged)
        await until(lambda: best_effort_tasks.begun == ["a", "b"])

    assert done == ["work, after ['a']"] * jobs


async def test_the_end_of_its_job_drops_a_best_effort_task_for_good() -> None:
    best_effort_tasks = ScriptedTasks(for_ever)
    async with working(ScriptedWork(at_once), best_effort_tasks) as (gateway, _):
        await gateway.publish_sample_row("a")
        await until(lambda: best_effort_tasks.begun == ["a"])
        assert not await gateway.ends("another")
        await gateway.publish_sample_row("b", job="job-2")
        assert await gateway.ends("job-1")
        await until(lambda: best_effort_tasks.begun == ["a", "b"])
        assert not await gateway.ends("job-1")


async def test_the_end_of_a_job_goes_to_no_worker_that_holds_a_claim_or_waits() -> None:
    """The refusal of its claim tells who holds one."""
    begun = asyncio.Event()

    async def perform(order: Order) -> DatasetStaged:
        begun.set()
        await asyncio.Event().wait()
        return staged(order)

    async with working(ScriptedWork(perform)) as (gateway, _):
        assert not await gateway.ends("job-1")
        await gateway.submit()
        started, reply_queue = await gateway.receive(StagingStarted)
        await gateway.grant(started, reply_queue)
        await asyncio.wait_for(begun.wait(), 10)
        assert not await gateway.ends("job-1")


async def test_a_running_best_effort_task_is_requeued_when_the_worker_stops() -> None:
    best_effort_tasks = ScriptedTasks(for_ever)
    work = ScriptedWork(at_once)
    async with working(work, best_effort_tasks) as (gateway, stop):
        await gateway.publish_sample_row("a")
        await until(lambda: best_effort_tasks.begun == ["a"])
        stop.set()
        await until(lambda: work.ready == -1)
        assert await gateway.waiting(INFERENCER_SAMPLES) == 1


async def test_a_failed_best_effort_task_is_retried_and_a_silent_one_is_given_up() -> None:
    async def run(best_effort_task: BestEffortTask) -> None:
        if len(best_effort_tasks.begun) == 1:
            raise OSError("disk on fire")
        if len(best_effort_tasks.begun) == 2:
            await for_ever(best_effort_task)

    best_effort_tasks = ScriptedTasks(run)
    async with working(ScriptedWork(at_once), best_effort_tasks) as (gateway, _):
        await gateway.publish_sample_row("a")
        await until(lambda: best_effort_tasks.begun == ["a", "a"])
        await gateway.publish_sample_row("b")
        await until(lambda: best_effort_tasks.begun == ["a", "a", "b"])


async def test_a_worker_stops_although_a_thread_of_a_best_effort_task_runs_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runtime, "CLEAN_UP_SECONDS", 0.1)
    begun, go_on = threading.Event(), threading.Event()

    async def run(_task: BestEffortTask) -> None:
        await in_thread(begun.set)
        await in_thread(go_on.wait, 60)

    best_effort_tasks = ScriptedTasks(run)
    work = ScriptedWork(at_once)
    try:
        async with working(work, best_effort_tasks) as (gateway, stop):
            await gateway.publish_sample_row("a")
            await asyncio.to_thread(begun.wait, 10)
            stop.set()
            await until(lambda: work.ready == -1)
            assert await gateway.waiting(INFERENCER_SAMPLES) == 1
    finally:
        go_on.set()
