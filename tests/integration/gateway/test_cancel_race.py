"""A cancellation and the end of the work at the same moment: one wins, and both sides learn it.

Requests come by HTTP, facts by the recorder, and both write one database. Reads and writes are
ordered by a seed, so that a failing race can be repeated.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any, cast

import aiohttp
import msgspec
import pytest

from services.gateway.app import Gateway
from services.gateway.background.consumer import process
from services.gateway.database.connection import Database
from services.gateway.database.jobs import SqlJobStore
from services.gateway.database.stores import stores_in
from services.gateway.jobs import transitions
from services.gateway.jobs.record import Job
from services.gateway.jobs.request_parser import parse_request
from services.gateway.jobs.rows import read, row_of
from services.gateway.jobs.transitions import advance
from services.gateway.ports import JobStore
from services.gateway.turns import places
from services.gateway.web import application
from services.gateway.web.authentication import digest_of
from shared import retry
from shared.adapters.folder import FolderStore
from shared.adapters.memory import MemoryBroker, MemoryBus
from shared.messaging.messages import (
    AnyMessage,
    ClaimRefused,
    DatasetStaged,
    JobCancelled,
    JobCompleted,
    JobFailed,
    JobTimedOut,
    ResumePointSaved,
    StageFact,
    StageFailed,
    StagingStarted,
    TrainingStarted,
    WebhookDue,
    decode,
)
from shared.messaging.topology import GATEWAY_RECORDER, Queue
from shared.service_process import closing
from tests.support.gateway_world import KEY, TRAIN_ONLY, settings_for
from tests.support.migrated import new_sqlite
from tests.support.taking_turns import TurnTakingJobs
from tests.unit.gateway.test_transitions import checkpoint_final, dataset_staged

SEED = 20_260
HEARTBEAT = 10.0
API_KEYS = tuple(f"a-key-of-owner-{number}" for number in range(32))
"""Enough to stay below the rate limits."""
REQUEST = msgspec.structs.replace(
    parse_request(TRAIN_ONLY), webhook="https://example.com/hook", webhook_events=("completed",)
)
CONTROL = Queue("control.trainer", ())
ENDS = {
    JobCompleted: "COMPLETED",
    JobFailed: "FAILED",
    JobCancelled: "CANCELLED",
    JobTimedOut: "TIMED_OUT",
}
REFUSALS = {"CANCELLED": 2}
"""One at the cancellation, and one when the worker's last fact comes too late."""
MANY = pytest.mark.parametrize(
    ("database_url", "races"),
    [("sqlite", 50), ("postgresql", 15), pytest.param("sqlite", 1000, marks=pytest.mark.long)],
    indirect=["database_url"],
)
FEWER = pytest.mark.parametrize(
    ("database_url", "races"),
    [("sqlite", 15), ("postgresql", 8), pytest.param("sqlite", 300, marks=pytest.mark.long)],
    indirect=["database_url"],
)


@pytest.fixture
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return new_sqlite(tmp_path / "transitions.db")
    return str(request.getfixturevalue("postgres_url"))


@dataclass
class RaceTrack:
    """A gateway that serves HTTP and records facts, without its outbox relay."""

    gateway: Gateway
    store: TurnTakingJobs
    gateway_bus: MemoryBus
    workers: MemoryBus
    session: aiohttp.ClientSession

    async def line_up(self, job: Job) -> None:
        """Insert the job as it is."""
        assert await self.store.insert(row_of(job, 1), [])

    async def ask(self, method: str, path: str, job_id: str) -> tuple[int, Any]:
        """Send a request of the job's owner."""
        url = f"http://127.0.0.1:{self.gateway.port}/v2/everydream-v1{path}/{job_id}"
        headers = {"Authorization": f"Bearer {key_of(job_id)}"}
        async with self.session.request(method, url, headers=headers) as answer:
            return answer.status, await answer.json()

    async def publish(self, fact: StageFact) -> None:
        """Publish a worker's fact, and let the recorder handle it."""
        await self.workers.publish(fact, reply_to=CONTROL.name)
        delivery = await self.gateway_bus.get(GATEWAY_RECORDER)
        await process(delivery, self.gateway._recorder.record)

    async def replies(self) -> list[AnyMessage]:
        """The replies to the trainer since the last call."""
        received = []
        while await self.workers.depth(CONTROL):
            delivery = await self.workers.get(CONTROL)
            await delivery.ack()
            received.append(delivery.message)
        return received

    async def job(self, job_id: str) -> Job | None:
        row = await self.store.get(job_id)
        return read(row) if row else None

    async def all_jobs(self) -> dict[str, Job]:
        rows = await self.store.newest(limit=1_000_000)
        return {row.id: read(row) for row in rows}

    async def published(self) -> dict[str, list[AnyMessage]]:
        """All outgoing messages, by job."""
        by_job = defaultdict(list)
        webhooks = await self.store.take_webhooks(2**40, 0.0, limit=1_000_000)
        for row in (*await self.store.take_due(2**40, 2**41, limit=1_000_000), *webhooks):
            by_job[row.job].append(decode(row.message))
        return by_job


@pytest.fixture
async def race_track(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[RaceTrack]:
    # A request waits for its rival's disk, too: a slow one must not make it give up.
    monkeypatch.setattr(application, "ANSWER_SECONDS", 60.0)
    monkeypatch.setattr(places, "MIN_PLACES", 10_000)  # for the next runs of all jobs
    settings = replace(settings_for(tmp_path), api_keys=API_KEYS)
    broker = MemoryBroker()
    broker.declare(CONTROL)
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(closing(Database.open(database_url)))
        await database.migrate()
        jobs_kept = TurnTakingJobs(SqlJobStore(database))
        record = stores_in(database)._replace(jobs=cast("JobStore", jobs_kept))
        store = FolderStore(tmp_path / "store", public_url=settings.public_url, key=KEY)
        bus, workers = broker.bus("gateway/test"), broker.bus("workers/test")
        gateway = Gateway(settings, KEY, bus, store, record)
        await stack.enter_async_context(gateway._serving())
        session = await stack.enter_async_context(aiohttp.ClientSession())
        yield RaceTrack(gateway, jobs_kept, bus, workers, session)


def key_of(job_id: str) -> str:
    return API_KEYS[int(job_id.rpartition("-")[2]) % len(API_KEYS)]


def in_training(job_id: str) -> Job:
    """A job at its last stage: any result of its worker ends it."""
    owner, now = digest_of(key_of(job_id)), time.time()
    new = transitions.admit(job_id, owner, REQUEST, TRAIN_ONLY["input"], sealed=None, now=now).job
    job = transitions.release(new, now).job
    staged = msgspec.structs.replace(dataset_staged("s"), job=job_id)
    for fact in (
        StagingStarted(job=job_id, stage="staging", claim="s"),
        staged,
        TrainingStarted(job=job_id, stage="training", claim="t", gpu="card"),
    ):
        job = advance(job, fact, reply_queue=CONTROL.name, now=now, heartbeat=HEARTBEAT).job
    return with_failures(job, retry.FAILURES_ALLOWED - 1)


def with_failures(job: Job, failures: int) -> Job:
    training = msgspec.structs.replace(job.stages["training"], failures=failures)
    return transitions.replace(job, stages={**job.stages, "training": training})


def last_words(job_id: str, kind: str) -> StageFact:
    if kind == "done":
        return msgspec.structs.replace(checkpoint_final("t"), job=job_id)
    return StageFailed(
        job=job_id, stage="training", claim="t", kind=cast("Any", kind), reason="it broke"
    )


# --- The end of a run -------------------------------------------------------------------------


@MANY
async def test_of_a_cancel_and_the_end_of_the_work_one_wins_and_both_are_answered(
    race_track: RaceTrack, races: int
) -> None:
    answers = {
        job_id: await raced_to_the_end(race_track, job_id, Random(f"{SEED} {job_id}"))
        for job_id in (f"job-{number}" for number in range(races))
    }

    assert race_track.store.conflicts > races / 10
    ended = await race_track.all_jobs()
    winners = Counter(job.status for job in ended.values())
    assert min(winners[status] for status in ("CANCELLED", "COMPLETED", "FAILED")) > races / 20
    published = await race_track.published()
    for job_id, (answer, refusals) in answers.items():
        status = ended[job_id].status
        assert answer == (200, {"id": job_id, "status": status})
        assert refusals == [refused(job_id)] * REFUSALS.get(status, 0)
        assert wrong_end(published[job_id]) is None


async def raced_to_the_end(
    race_track: RaceTrack, job_id: str, random: Random
) -> tuple[tuple[int, Any], list[AnyMessage]]:
    """The response to the cancellation, and the replies to the worker."""
    await race_track.line_up(in_training(job_id))
    fact = last_words(job_id, random.choice(("done", "refused", "passing")))
    cancelling = race_track.ask("POST", "/cancel", job_id)
    _, answer = await race_track.store.race(
        random.getrandbits(32), (race_track.publish(fact), cancelling)
    )
    return answer, await race_track.replies()


def refused(job_id: str) -> ClaimRefused:
    return ClaimRefused(job=job_id, stage="training", claim="t", reason="the job has ended")


def wrong_end(published: list[AnyMessage], run: int = 1) -> str | None:
    """Errors in the messages of a run's end, which must be published once and posted once."""
    ends = [each for each in published if isinstance(each, tuple(ENDS)) and run_of(each) == run]
    dues = [each for each in published if isinstance(each, WebhookDue) and each.run == run]
    if len(ends) != 1 or len(dues) != 1:
        return f"{len(ends)} ends and {len(dues)} webhooks of run {run}"
    posted = msgspec.json.decode(dues[0].body)["status"]
    status = ENDS[cast("Any", type(ends[0]))]
    return None if posted == status else f"{status} was published, and {posted} is posted"


def run_of(end: AnyMessage) -> int:
    return cast("JobCompleted", end).run


@FEWER
async def test_a_fact_that_two_recorders_receive_at_once_counts_once(
    race_track: RaceTrack, races: int
) -> None:
    """Deliver again, as when the active gateway hangs and the next takes over its delivery."""
    for number in range(races):
        job_id = f"job-{number}"
        await race_track.line_up(in_training(job_id))
        fact = last_words(job_id, ("done", "refused", "passing")[number % 3])

        await race_track.store.race(
            SEED + number, [race_track.publish(fact), race_track.publish(fact)]
        )

        job = await race_track.job(job_id)
        assert job is not None
        assert job.status == ("FAILED" if number % 3 else "COMPLETED")
        assert await race_track.replies() == [refused(job_id)]
    published = await race_track.published()
    assert [wrong_end(published[f"job-{number}"]) for number in range(races)] == [None] * races


@FEWER
async def test_a_job_that_is_removed_while_it_ends_is_gone_and_has_ended_once(
    race_track: RaceTrack, races: int
) -> None:
    for number in range(races):
        job_id = f"job-{number}"
        await race_track.line_up(in_training(job_id))
        entries = (
            race_track.publish(last_words(job_id, "done")),
            race_track.ask("DELETE", "/jobs", job_id),
            race_track.ask("DELETE", "/jobs", job_id),
            race_track.ask("POST", "/cancel", job_id),
        )

        _, *removals, _ = await race_track.store.race(SEED + number, entries)

        assert sorted(status for status, _ in removals) == [200, 404]
        assert await race_track.job(job_id) is None
    published = await race_track.published()
    assert [wrong_end(published[f"job-{number}"]) for number in range(races)] == [None] * races


# --- The next run -----------------------------------------------------------------------------


def timed_out(job_id: str) -> Job:
    """An ended job whose worker does not know it yet."""
    return transitions.time_out(in_training(job_id), "late", time.time()).job


@FEWER
async def test_a_retry_ignores_facts_of_the_run_before(race_track: RaceTrack, races: int) -> None:
    for number in range(races):
        job_id = f"job-{number}"
        await race_track.line_up(timed_out(job_id))
        point = ResumePointSaved(
            job=job_id, stage="training", claim="t", prefix="late/", step=9, epoch=1
        )
        late = (point, last_words(job_id, "done"), last_words(job_id, "refused"))[number % 3]
        entries = (race_track.ask("POST", "/retry", job_id), race_track.publish(late))

        answer, _ = await race_track.store.race(SEED + number, entries)

        assert answer == (200, {"id": job_id, "status": "IN_QUEUE"})
        assert [type(each) for each in await race_track.replies()] == [ClaimRefused]
        job = await race_track.job(job_id)
        assert job is not None
        assert (job.run, job.status, job.resume_point, job.checkpoint) == (
            2,
            "IN_QUEUE",
            None,
            None,
        )
        assert job.stages["training"].open
    published = await race_track.published()
    for number in range(races):
        assert [type(each) for each in published[f"job-{number}"]] == [DatasetStaged]


@FEWER
async def test_a_job_that_is_retried_twice_and_cancelled_at_once_has_two_runs(
    race_track: RaceTrack, races: int
) -> None:
    statuses: Counter[str] = Counter()
    for number in range(races):
        job_id = f"job-{number}"
        await race_track.line_up(timed_out(job_id))
        entries = (
            race_track.ask("POST", "/retry", job_id),
            race_track.ask("POST", "/retry", job_id),
            race_track.ask("POST", "/cancel", job_id),
        )

        answers = await race_track.store.race(SEED + number, entries)

        job = await race_track.job(job_id)
        assert job is not None
        assert job.run == 2
        assert answers[2] == (200, {"id": job_id, "status": cancelled_or(job)})
        statuses[job.status] += 1
    assert min(statuses["IN_QUEUE"], statuses["CANCELLED"]) > races / 20
    published = await race_track.published()
    for number in range(races):
        kinds = [type(each) for each in published[f"job-{number}"]]
        assert kinds in ([DatasetStaged], [DatasetStaged, JobCancelled, WebhookDue])


def cancelled_or(job: Job) -> str:
    """The possible responses to a cancellation: cancelled, or the end of the run before."""
    return "CANCELLED" if job.status == "CANCELLED" else "TIMED_OUT"
