"""Facts are recorded many at a time: each job's in order, nothing lost and nothing doubled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.gateway.background import consumer
from services.gateway.background.progress_writer import ProgressWriter
from services.gateway.background.recorder import Recorder
from services.gateway.background.supervisor import Supervisor
from services.gateway.database.connection import Database
from services.gateway.database.jobs import SqlJobStore
from services.gateway.jobs import transitions
from services.gateway.jobs.budgets import Budgets
from services.gateway.jobs.presenter import Presenter
from services.gateway.jobs.record import Job
from services.gateway.jobs.repository import JobRepository
from services.gateway.jobs.request_parser import parse_request
from services.gateway.jobs.rows import read, row_of
from services.gateway.ports import JobStore, Replacement, StoredJob
from services.gateway.turns.places import Places
from shared.adapters.folder import FolderStore
from shared.adapters.memory import MemoryBroker, MemoryBus
from shared.errors import Unavailable
from shared.messaging.messages import (
    AnyMessage,
    ClaimGranted,
    ClaimRefused,
    CommandIssued,
    GatewayHeartbeat,
    ResumePointSaved,
    StageFact,
    StageFailed,
    StagingStarted,
    TrainingInterrupted,
    TrainingProgressed,
    TrainingStarted,
)
from shared.messaging.topology import GATEWAY_RECORDER, Queue
from shared.ports import Delivery
from shared.service_process import closing
from tests.support.gateway_world import TRAIN_ONLY, eventually
from tests.support.migrated import new_sqlite
from tests.support.played_job import Crowd, Room
from tests.unit.gateway.test_transitions import checkpoint_final, dataset_staged

HEARTBEAT = 10.0
NOW = 1_000_000.0
CONTROL, OTHER_CONTROL = Queue("control.one", ()), Queue("control.two", ())


class WatchedJobs:
    """A job store that notes what is read and written together, and that a test can hold up."""

    def __init__(self, jobs: SqlJobStore) -> None:
        self._jobs = jobs
        self.calls: list[str] = []
        self.before_write: Callable[[], Awaitable[Any]] | None = None
        self.answer_is_lost = False
        """Of the next write, which is committed nevertheless."""

    async def replace_many(self, rows: Sequence[Any]) -> Any:
        self.calls.append(f"replace_many {len(rows)}")
        before, self.before_write = self.before_write, None
        if before:
            await before()
        written = await self._jobs.replace_many(rows)
        if self.answer_is_lost:
            self.answer_is_lost = False
            raise Unavailable("a test lost the answer")
        return written

    def __getattr__(self, name: str) -> Any:
        self.calls.append(name)
        return getattr(self._jobs, name)


@dataclass
class Recording:
    """A gateway's recorder over a database and the in-memory bus; the test plays the workers."""

    broker: MemoryBroker
    bus: MemoryBus
    workers: MemoryBus
    jobs: WatchedJobs
    repository: JobRepository
    supervisor: Supervisor
    recorder: Recorder
    ended: list[str]
    taken: list[AsyncGenerator[Sequence[Delivery], None]] = field(default_factory=list)
    """Consumers that live as long as the bus."""

    async def publish(self, *facts: StageFact, reply_to: str = CONTROL.name) -> None:
        for fact in facts:
            await self.workers.publish(fact, reply_to=reply_to, mandatory=False)

    async def batch(self) -> Sequence[Delivery]:
        """All that waits, taken at once; given back when the bus is closed."""
        self.taken.append(self.bus.consume_batches(GATEWAY_RECORDER, most=100))
        return await anext(self.taken[-1])

    async def record(self) -> None:
        """Record what waits, as one batch."""
        batches = self.bus.consume_batches(GATEWAY_RECORDER, most=100)
        await self.recorder.record_batch(await anext(batches))
        await batches.aclose()

    async def job(self, job_id: str) -> Job:
        row = await self.jobs._jobs.get(job_id)
        assert row is not None
        return read(row)

    async def version(self, job_id: str) -> int:
        return (await self.jobs._jobs.versions([job_id]))[job_id]

    async def replies(self, queue: Queue = CONTROL) -> list[AnyMessage]:
        """Since the last call, once all are sent."""
        await asyncio.gather(*self.repository._sending)
        received = []
        while await self.workers.depth(queue):
            delivery = await self.workers.get(queue)
            await delivery.ack()
            received.append(delivery.message)
        return received

    async def nothing_is_left(self) -> None:
        """Nothing waits, nothing is in hand, and nothing was given up."""
        await self.bus.close()
        assert await self.workers.depth(GATEWAY_RECORDER) == 0
        assert not self.broker.dead_letters


@pytest.fixture(params=["sqlite", "postgresql"])
async def recording(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Recording]:
    if request.param == "postgresql":
        url = str(request.getfixturevalue("postgres_url"))
    else:
        url = new_sqlite(tmp_path / "everydream.db")
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(closing(Database.open(url)))
        await database.migrate()
        broker = MemoryBroker()
        broker.declare(CONTROL)
        broker.declare(OTHER_CONTROL)
        yield recording_in(broker, WatchedJobs(SqlJobStore(database)), tmp_path)


def recording_in(broker: MemoryBroker, watched: WatchedJobs, folder: Path) -> Recording:
    """One gateway's recorder; several may share a broker and a database."""
    bus, workers = broker.bus("gateway/test"), broker.bus("workers/test")
    store = FolderStore(folder / "store", public_url="http://gateway", key="k" * 48)
    jobs, ended = cast("JobStore", watched), list[str]()
    repository = JobRepository(
        bus, store, jobs, Presenter(store, clock), clock=clock,
        on_due=lambda: None, on_turn=lambda: None, on_end=lambda job: ended.append(job.id),
        on_replaced=lambda _: None, on_uncertain=lambda _: None,
    )  # fmt: skip
    supervisor = Supervisor(
        bus, jobs, repository, clock=clock, heartbeat=HEARTBEAT, on_judged=lambda: None
    )
    recorder = Recorder(
        bus, store, repository, supervisor=supervisor, progress=ProgressWriter(repository),
        places=cast("Places", Crowd()), budgets=cast("Budgets", Room()), clock=clock,
        heartbeat=HEARTBEAT,
    )  # fmt: skip
    return Recording(broker, bus, workers, watched, repository, supervisor, recorder, ended)


def clock() -> float:
    return NOW


async def in_training(recording: Recording, *job_ids: str) -> None:
    """Jobs whose training is claimed, under a claim named like the job."""
    for job_id in job_ids:
        assert await recording.jobs._jobs.insert(row_of(training(job_id), 1), [])


def training(job_id: str) -> Job:
    new = transitions.admit(job_id, "owner", parse_request(TRAIN_ONLY), {}, sealed=None, now=NOW)
    job = transitions.release(new.job, NOW).job
    for fact in (
        StagingStarted(job=job_id, stage="staging", claim="s"),
        msgspec.structs.replace(dataset_staged("s"), job=job_id),
        TrainingStarted(job=job_id, stage="training", claim=job_id, gpu="card"),
    ):
        job = transitions.advance(
            job, fact, reply_queue=CONTROL.name, now=NOW, heartbeat=HEARTBEAT
        ).job
    return job


def heartbeat(job: str, step: int = 1, claim: str = "") -> TrainingProgressed:
    return TrainingProgressed(
        job=job, stage="training", claim=claim or job, progress={"step": step}
    )


def saved(job: str, step: int) -> ResumePointSaved:
    return ResumePointSaved(
        job=job, stage="training", claim=job, prefix=f"{job}/{step}", step=step, epoch=1
    )


# --- Many at a time -----------------------------------------------------------------------------


async def test_facts_of_many_jobs_are_one_commit_and_each_jobs_stay_in_order(
    recording: Recording,
) -> None:
    names = [f"job-{number}" for number in range(10)]
    await in_training(recording, *names)
    await recording.publish(*(saved(name, step) for step in (1, 2, 3) for name in names))

    await recording.record()

    assert recording.jobs.calls.count("replace_many 10") == 3
    for name in names:
        assert (await recording.job(name)).resume_point == f"{name}/3"
        assert await recording.version(name) == 4
    await recording.nothing_is_left()


async def test_a_gateways_heartbeat_counts_once_all_before_it_is_recorded_and_nothing_after(
    recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    await in_training(recording, "a", "b")
    seen: list[list[str]] = []
    taken: list[str] = []
    monkeypatch.setattr(recording.supervisor, "on_heartbeat", lambda _: seen.append([*taken]))
    monkeypatch.setattr(recording.supervisor, "keepalive", taken.append)
    await recording.publish(saved("a", 1), heartbeat("b"))
    await recording.workers.send(GATEWAY_RECORDER.name, GatewayHeartbeat(gateway="g", number=1))
    await recording.publish(heartbeat("b"), saved("a", 2))

    await recording.record()

    (before,) = seen
    assert sorted(before) == ["a", "b"]
    assert sorted(taken) == ["a", "a", "b", "b"]
    await recording.nothing_is_left()


async def test_a_claim_is_granted_before_the_rest_of_its_batch_is_recorded(
    recording: Recording,
) -> None:
    await in_training(recording, "a", "b")
    await recording.publish(
        saved("a", 1), saved("b", 1), TrainingInterrupted(job="b", stage="training", claim="b")
    )
    await recording.record()
    assert recording.jobs.calls[-1] == "replace_many 1"
    granted: list[AnyMessage] = []

    async def look() -> None:
        recording.jobs.before_write = look_again

    async def look_again() -> None:
        granted.extend(await recording.replies())

    recording.jobs.before_write = look
    claim = TrainingStarted(job="b", stage="training", claim="second", gpu="card")
    await recording.publish(saved("a", 2), claim)
    await recording.record()

    (grant,) = granted
    assert isinstance(grant, ClaimGranted)
    assert grant.claim == "second"
    assert (await recording.job("a")).resume_point == "a/2"
    await recording.nothing_is_left()


# --- Heartbeats ---------------------------------------------------------------------------------


async def test_heartbeats_that_change_nothing_read_no_record_once_they_are_known(
    recording: Recording,
) -> None:
    names = [f"job-{number}" for number in range(10)]
    await in_training(recording, *names)
    await recording.publish(*map(heartbeat, names))
    await recording.record()
    recording.jobs.calls.clear()

    await recording.publish(*(heartbeat(name, step) for step in (2, 3) for name in names))
    await recording.record()

    assert recording.jobs.calls == ["versions"]
    assert {recording.supervisor.heard_at(name) for name in names} == {NOW}
    await recording.recorder._progress.write()
    found = await recording.jobs._jobs.progress_of(names)
    assert {each.numbers for each in found} == {b'{"step":3}'}
    assert len(found) == len(names)


async def test_a_known_heartbeat_goes_the_whole_way_when_anything_has_changed(
    recording: Recording,
) -> None:
    await in_training(recording, "a")
    await recording.publish(heartbeat("a"))
    await recording.record()

    await recording.publish(heartbeat("a"), reply_to=OTHER_CONTROL.name)
    await recording.record()
    claim = (await recording.job("a")).stages["training"].claim
    assert claim is not None
    assert claim.reply_queue == OTHER_CONTROL.name

    await recording.publish(heartbeat("a"), heartbeat("a"), reply_to=OTHER_CONTROL.name)
    await recording.record()
    await recording.repository.change("a", lambda job: transitions.issue_command(job, "stop"))
    await recording.replies(OTHER_CONTROL)
    await recording.publish(heartbeat("a"), heartbeat("a"), reply_to=OTHER_CONTROL.name)
    await recording.record()
    told = await recording.replies(OTHER_CONTROL)
    assert [type(each) for each in told] == [CommandIssued] * 2


@pytest.mark.parametrize("cause", ["another claim", "the job is cancelled", "there is no job"])
async def test_a_heartbeat_under_no_live_claim_is_refused(recording: Recording, cause: str) -> None:
    await in_training(recording, "a")
    await recording.publish(heartbeat("a"))
    await recording.record()
    if cause == "the job is cancelled":
        await recording.repository.change("a", lambda job: transitions.cancel(job, NOW))
    if cause == "there is no job":
        await recording.repository.remove("a", "owner")
    await recording.replies()

    claim = "another" if cause == "another claim" else "a"
    await recording.publish(heartbeat("a", claim=claim))
    await recording.record()

    (refusal,) = await recording.replies()
    assert isinstance(refusal, ClaimRefused)
    assert refusal.claim == claim


# --- What goes wrong ----------------------------------------------------------------------------


async def test_a_fact_that_cannot_be_recorded_is_dead_lettered_alone(recording: Recording) -> None:
    await in_training(recording, "a", "b", "broken")
    row = await recording.jobs._jobs.get("broken")
    assert row is not None
    broken = msgspec.structs.replace(row, version=2, record=b"no record")
    assert await recording.jobs._jobs.replace(broken, [], expected_version=1)
    await recording.publish(saved("a", 1), saved("broken", 1), saved("b", 1), saved("a", 2))

    await recording.record()

    assert (await recording.job("a")).resume_point == "a/2"
    assert (await recording.job("b")).resume_point == "b/1"
    (letter,) = recording.broker.dead_letters
    assert letter.queue == GATEWAY_RECORDER.name
    assert "DecodeError" in letter.reason
    await recording.bus.close()
    assert await recording.workers.depth(GATEWAY_RECORDER) == 0


async def test_of_a_batch_only_what_another_writer_outran_is_tried_again(
    recording: Recording,
) -> None:
    await in_training(recording, "a", "b", "c")

    async def cancel() -> None:
        await recording.repository.change("b", lambda job: transitions.cancel(job, NOW))

    recording.jobs.before_write = cancel
    await recording.publish(saved("a", 1), saved("b", 1), saved("c", 1))

    await recording.record()

    assert [(await recording.job(name)).resume_point for name in "abc"] == ["a/1", None, "c/1"]
    assert (await recording.job("b")).status == "CANCELLED"
    assert [await recording.version(name) for name in "abc"] == [2, 2, 2]
    assert recording.ended == ["b"]
    await recording.nothing_is_left()


async def test_what_is_written_without_an_answer_is_not_written_twice(
    recording: Recording,
) -> None:
    await in_training(recording, "a", "b")
    recording.jobs.answer_is_lost = True
    await recording.publish(saved("a", 1), saved("b", 1), saved("a", 2))

    await recording.record()

    assert await recording.version("a") == 3
    assert await recording.version("b") == 2
    assert (await recording.job("a")).resume_point == "a/2"
    await recording.nothing_is_left()


async def test_a_batch_waits_for_its_database_unacked(recording: Recording) -> None:
    await in_training(recording, "a", "b")
    waited = 0

    async def away() -> None:
        nonlocal waited
        waited += 1
        recording.jobs.before_write = away if waited < 3 else None
        raise Unavailable("a test made the database unavailable")

    async def waited_twice() -> bool:
        return waited == 2

    recording.jobs.before_write = away
    await recording.publish(saved("a", 1), saved("b", 1), saved("a", 2))
    batch = await recording.batch()

    working = asyncio.create_task(recording.recorder.record_batch(batch))
    await eventually(waited_twice)
    assert all(delivery.is_ours for delivery in batch)
    assert await recording.version("a") == 1
    await working

    assert not any(delivery.is_ours for delivery in batch)
    assert [await recording.version(name) for name in "ab"] == [3, 2]


async def test_a_gateway_that_is_stopped_in_a_batch_leaves_the_rest_to_the_next(
    recording: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer, "SHUTDOWN_SECONDS", 0.1)
    await in_training(recording, "a", "b")
    stuck = asyncio.Event()

    async def second_round() -> None:
        stuck.set()
        await asyncio.Event().wait()

    async def first_round() -> None:
        recording.jobs.before_write = second_round

    recording.jobs.before_write = first_round
    await recording.publish(saved("a", 1), saved("b", 1), saved("a", 2), saved("b", 2))
    running = asyncio.create_task(recording.recorder.run())
    await stuck.wait()
    running.cancel()
    await asyncio.wait((running,))
    assert [(await recording.job(name)).resume_point for name in "ab"] == ["a/1", "b/1"]
    assert await recording.workers.depth(GATEWAY_RECORDER) == 2

    successor = recording_in(recording.broker, WatchedJobs(recording.jobs._jobs), tmp_path)
    await successor.record()

    assert [await recording.version(name) for name in "ab"] == [3, 3]
    assert [(await recording.job(name)).resume_point for name in "ab"] == ["a/2", "b/2"]
    await successor.nothing_is_left()


async def test_what_is_not_ours_any_more_is_left_to_whom_it_is_delivered_next(
    recording: Recording,
) -> None:
    """Else an older fact would be recorded after a newer one."""
    await in_training(recording, "a")

    async def lose_the_channel() -> None:
        await recording.bus.close()

    recording.jobs.before_write = lose_the_channel
    await recording.publish(saved("a", 1), saved("a", 2))

    await recording.recorder.record_batch(await recording.batch())

    assert (await recording.job("a")).resume_point == "a/1"
    assert await recording.workers.depth(GATEWAY_RECORDER) == 2


# --- Any facts in any batches ---------------------------------------------------------------------

JOBS = ("a", "b", "c")


class Rows:
    """Rows in memory, under a job store's rules; what was written of each job, in order."""

    def __init__(self) -> None:
        self.rows: dict[str, StoredJob] = {}
        self.written: dict[str, list[object]] = {name: [] for name in JOBS}

    async def get(self, job_id: str) -> StoredJob | None:
        return self.rows.get(job_id)

    async def get_many(self, job_ids: Sequence[str]) -> list[StoredJob]:
        return [self.rows[each] for each in job_ids if each in self.rows]

    async def versions(self, job_ids: Sequence[str]) -> dict[str, int]:
        return {row.id: row.version for row in await self.get_many(job_ids)}

    async def get_live(self, job_id: str) -> tuple[StoredJob, list[Any]] | None:
        return (self.rows[job_id], []) if job_id in self.rows else None

    async def replace(self, *columns: Any, expected_version: int) -> bool:
        new = Replacement(*columns)
        if self.rows[new.job.id].version != expected_version:
            return False
        self.rows[new.job.id] = new.job
        told = [(each.type, each.data) for each in new.happened]
        messages = [(each.id, each.message, each.queue) for each in new.outgoing]
        self.written[new.job.id].append((told, messages, new.stages))
        return True

    async def replace_many(self, replacements: Sequence[Replacement]) -> set[str]:
        return {
            each.job.id
            for each in replacements
            if await self.replace(*each, expected_version=each.job.version - 1)
        }


def facts_of(job: str) -> st.SearchStrategy[StageFact]:
    """What the worker of the live claim publishes, and another one."""
    claim = st.sampled_from((job, "another"))
    stamp = {"job": st.just(job), "stage": st.just("training"), "claim": claim}
    return st.one_of(
        st.builds(TrainingProgressed, **stamp, progress=st.just({"step": 1})),
        st.builds(TrainingStarted, **stamp, worker=claim, gpu=st.just("card")),
        st.builds(TrainingInterrupted, **stamp),
        st.builds(StageFailed, **stamp, kind=st.just("passing"), reason=st.just("it broke")),
        st.integers(1, 3).map(lambda step: saved(job, step)),
        st.just(msgspec.structs.replace(checkpoint_final(job), job=job)),
    )


PUBLISHED = st.lists(
    st.tuples(
        st.sampled_from((*JOBS, "nobody")).flatmap(facts_of),
        st.sampled_from((CONTROL.name, OTHER_CONTROL.name)),
    ),
    max_size=25,
)


@given(PUBLISHED, st.lists(st.integers(0, 25), max_size=4).map(sorted))
@settings(deadline=None, max_examples=60)
def test_facts_come_to_the_same_in_any_batches_as_one_by_one(
    published: list[tuple[StageFact, str]], cuts: list[int]
) -> None:
    one_by_one = asyncio.run(recorded([[each] for each in published], alone=True))
    edges = [0, *cuts, len(published)]
    batches = [published[start:end] for start, end in pairwise(edges)]

    assert asyncio.run(recorded(batches, alone=False)) == one_by_one


async def recorded(batches: Sequence[Sequence[tuple[StageFact, str]]], *, alone: bool) -> object:
    """What was written of each job, what each worker was told of it, and who showed life."""
    broker, rows = MemoryBroker(), Rows()
    broker.declare(CONTROL)
    broker.declare(OTHER_CONTROL)
    recording = recording_in(broker, cast("Any", rows), Path("never-written"))
    rows.rows = {name: row_of(training(name), 1) for name in JOBS}
    for batch in batches:
        for fact, reply_to in batch:
            await recording.publish(fact, reply_to=reply_to)
        if not batch:
            continue
        async with aclosing(recording.bus.consume_batches(GATEWAY_RECORDER, most=100)) as taken:
            deliveries = await anext(taken)
            if alone:
                await consumer.process(deliveries[0], recording.recorder.record)
            else:
                await recording.recorder.record_batch(deliveries)
    assert not broker.dead_letters
    told = {
        (queue.name, name): [each for each in answers if each.job == name]
        for queue in (CONTROL, OTHER_CONTROL)
        for answers in [await recording.replies(queue)]
        for name in (*JOBS, "nobody")
    }
    return rows.rows, rows.written, told, recording.supervisor._heard_at
