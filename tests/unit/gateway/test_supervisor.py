"""Claims are lost after heartbeats that came back in a row, and by nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import msgspec

from services.gateway.background.supervisor import LOST_AFTER_HEARTBEATS, Supervisor
from services.gateway.jobs import transitions
from services.gateway.jobs.record import Job, StageRecord, Step, open_stages, overdue_at
from services.gateway.jobs.request_parser import parse_request
from services.gateway.jobs.transitions import advance
from services.gateway.ports import OpenStage
from shared.errors import Unavailable
from shared.messaging.messages import GatewayHeartbeat, StagingStarted
from shared.messaging.topology import Queue

NOW = 1_000_000.0


class Records:
    """One job, as both store and repository; others may precede it."""

    def __init__(self) -> None:
        self.others: list[Job] = []
        body = {"input": {"train": {"data_url": "https://x.org/a.zip"}}}
        new = transitions.admit("job", "owner", parse_request(body), body, sealed=None, now=NOW).job
        job = transitions.release(new, NOW).job
        started = StagingStarted(job="job", stage="staging", claim="c", worker="w")
        self.job = advance(job, started, reply_queue="control", now=NOW, heartbeat=1.0).job

    def stages(self) -> list[OpenStage]:
        return [stage for job in (*self.others, self.job) for stage in open_stages(job)]

    async def claims(self) -> list[OpenStage]:
        return [stage for stage in self.stages() if stage.claim is not None]

    async def waiting(self, _now: float, limit: int) -> list[OpenStage]:
        return [stage for stage in self.stages() if stage.claim is None][:limit]

    async def overdue(self, now: float) -> AsyncIterator[str]:
        for job in (*self.others, self.job):
            if (limit := overdue_at(job)) is not None and limit < now:
                yield job.id

    async def change(self, job: str, decide: Callable[[Job], Step]) -> Job:
        for other in self.others:
            if other.id == job:
                return decide(other).job
        self.job = decide(self.job).job
        return self.job


class Silent:
    """A bus with a name and empty queues."""

    source = "gateway/test"

    async def depth(self, _queue: Queue) -> int:
        return 0


class Bench:
    def __init__(self) -> None:
        self.records = Records()
        part: Any = self.records
        self.supervisor = Supervisor(
            cast("Any", Silent()),
            part,
            part,
            clock=lambda: NOW + 1.0,
            heartbeat=1.0,
            on_judged=lambda: None,
        )

    async def heartbeats(self, *numbers: int) -> None:
        for number in numbers:
            self.supervisor.on_heartbeat(
                GatewayHeartbeat(gateway=self.supervisor._name, number=number)
            )
            await self.supervisor.judge()

    @property
    def lost(self) -> bool:
        return not self.records.job.holds("staging", "c")


async def test_a_claim_is_lost_after_six_heartbeats_in_silence() -> None:
    bench = Bench()
    await bench.heartbeats(*range(1, LOST_AFTER_HEARTBEATS + 1))
    assert not bench.lost
    await bench.heartbeats(LOST_AFTER_HEARTBEATS + 1)
    assert bench.lost


async def test_a_sign_of_life_begins_the_count_anew() -> None:
    bench = Bench()
    await bench.heartbeats(*range(1, 6))
    bench.supervisor.keepalive("c")
    await bench.heartbeats(*range(6, 11))
    assert not bench.lost
    await bench.heartbeats(11)
    assert bench.lost


async def test_redelivered_heartbeats_do_not_count() -> None:
    bench = Bench()
    await bench.heartbeats(*range(1, 6))
    for _ in range(10):
        await bench.heartbeats(3, 4, 5)
    assert not bench.lost


async def test_after_a_gap_everybody_gets_the_whole_time_again() -> None:
    """Heartbeats that did not come back went to another gateway, which recorded facts since."""
    bench = Bench()
    await bench.heartbeats(*range(1, 6))
    await bench.heartbeats(50, 51, 52, 53, 54, 55)
    assert not bench.lost
    await bench.heartbeats(56)
    assert bench.lost


async def test_heartbeats_of_others_do_not_count() -> None:
    bench = Bench()
    for number in range(1, 100):
        bench.supervisor.on_heartbeat(GatewayHeartbeat(gateway="gateway/other", number=number))
        await bench.supervisor.judge()
    assert not bench.lost


async def test_a_sign_of_life_while_a_claim_is_judged_saves_it() -> None:
    bench = Bench()
    await bench.heartbeats(*range(1, LOST_AFTER_HEARTBEATS + 1))
    change = bench.records.change

    async def change_after_a_fact(job: str, decide: Callable[[Job], Step]) -> Job:
        bench.supervisor.keepalive("c")
        return await change(job, decide)

    bench.records.change = change_after_a_fact  # type: ignore[method-assign]
    await bench.heartbeats(LOST_AFTER_HEARTBEATS + 1)

    assert not bench.lost


async def test_a_record_that_cannot_be_judged_leaves_the_others_judged() -> None:
    bench = Bench()
    staging = msgspec.structs.replace(bench.records.job.stages["staging"], trigger=b"?", claim=None)
    for unaskable in ("a", "b"):
        other = transitions.replace(bench.records.job, id=unaskable, stages={"staging": staging})
        bench.records.others.append(other)

    await bench.heartbeats(*range(1, LOST_AFTER_HEARTBEATS + 2))

    assert bench.lost


async def test_what_is_away_for_one_job_leaves_the_others_judged() -> None:
    """As the store, for a job with large fields."""
    bench = Bench()
    stuck = transitions.replace(bench.records.job, id="stuck", created_at=0.0)
    bench.records.others.append(stuck)
    change = bench.records.change

    async def change_unless_stuck(job: str, decide: Callable[[Job], Step]) -> Job:
        if job == "stuck":
            raise Unavailable("a test made the store unavailable")
        return await change(job, decide)

    bench.records.change = change_unless_stuck  # type: ignore[method-assign]
    await bench.heartbeats(*range(1, LOST_AFTER_HEARTBEATS + 2))

    assert bench.lost


class Asked(Records):
    """Many jobs that wait for staging, and the queue they wait in."""

    source = Silent.source

    def __init__(self) -> None:
        super().__init__()
        waiting = StageRecord(trigger=self.job.stages["staging"].trigger)
        self.others = [
            transitions.replace(self.job, id=f"job-{number}", stages={"staging": waiting})
            for number in range(50)
        ]
        self.looks: list[str] = []

    async def depth(self, queue: Queue) -> int:
        self.looks.append(queue.name)
        return 50


async def test_each_queue_is_read_once_a_heartbeat_however_many_jobs_wait_in_it() -> None:
    asked: Any = Asked()
    supervisor = Supervisor(
        asked, asked, asked, clock=lambda: NOW + 1.0, heartbeat=1.0, on_judged=lambda: None
    )
    for number in (1, 2):
        supervisor.on_heartbeat(GatewayHeartbeat(gateway=supervisor._name, number=number))
        await supervisor.judge()
    assert asked.looks == ["fetcher", "fetcher"]


async def test_what_waits_in_a_queue_that_holds_something_is_not_watched() -> None:
    asked: Any = Asked()
    supervisor = Supervisor(
        asked, asked, asked, clock=lambda: NOW + 1.0, heartbeat=1.0, on_judged=lambda: None
    )

    supervisor.on_heartbeat(GatewayHeartbeat(gateway=supervisor._name, number=1))
    await supervisor.judge()

    assert [*supervisor._since] == ["c"]
