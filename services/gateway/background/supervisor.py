"""Find lost claims and forgotten work by heartbeats that come back, never by clocks.

The gateway sends heartbeats to itself through the queue of the facts. When one comes back, every
fact published before it is recorded. So neither a backlog nor a stalled broker loses a live claim.

Judging runs beside that queue, so that no claim waits for it. It reads what can be lost, however
many jobs are live: the claims, and the oldest stages of each queue that is empty.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from itertools import count
from uuid import uuid4

import structlog

from services.gateway.jobs.record import Job, Step, open_stages, overdue
from services.gateway.jobs.repository import JobRepository
from services.gateway.jobs.transitions import lose_claim, requeue, time_out
from services.gateway.ports import JobStore, OpenStage
from shared.errors import Unavailable, Unpublishable, Unroutable
from shared.messaging.messages import GatewayHeartbeat
from shared.messaging.topology import GATEWAY_RECORDER, STAGE_QUEUES, Queue
from shared.monitoring.health import NOT_REACHED_YET
from shared.ports import Bus
from shared.telemetry import tracing

LOST_AFTER_HEARTBEATS = 6
"""Own heartbeats that must come back after a claim's last sign of life before it counts as lost."""
WATCHED = 200
"""Waiting stages of a kind that are watched at a time, if their queue is empty: those due first."""

log = structlog.get_logger()


class Supervisor:
    """Checks all live jobs each time one of its heartbeats comes back."""

    def __init__(
        self,
        bus: Bus,
        jobs: JobStore,
        repository: JobRepository,
        *,
        clock: Callable[[], float],
        heartbeat: float,
        on_judged: Callable[[], None],
    ) -> None:
        """Connect the parts.

        Args:
            bus: takes the heartbeats.
            jobs: what is waited for.
            repository: the jobs.
            clock: seconds since the epoch.
            heartbeat: seconds between heartbeats.
            on_judged: called each time that an own heartbeat came back and was judged.
        """
        self._bus = bus
        self._jobs = jobs
        self._repository = repository
        self._clock = clock
        self._heartbeat = heartbeat
        self._on_judged = on_judged
        self._name = f"{bus.source}/{uuid4()}"
        self._broker_problem: str | None = NOT_REACHED_YET
        self._last_number = 0
        self._heartbeats = 0
        """Own heartbeats that came back."""
        self._sent_at: dict[int, float] = {}
        """By number, of own heartbeats that have not come back."""
        self._lag: float | None = None
        """Seconds that the last own heartbeat took to come back; None: others record."""
        self._came_back = asyncio.Event()
        self._since: dict[str, int] = {}
        """By watch: the heartbeat of the last sign of life, or that first found it waiting."""
        self._heard_at: dict[str, float] = {}
        """By claim: when its last sign of life was recorded here; seconds since the epoch."""
        self._queued: dict[str, bool] = {}
        """By queue: whether it holds anything; asked once in a heartbeat."""

    async def run(self) -> None:
        """Send heartbeats and judge those that come back, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._send_heartbeats())
            group.create_task(self._judge_heartbeats())

    async def _send_heartbeats(self) -> None:
        for number in count(1):
            await self._send(GatewayHeartbeat(gateway=self._name, number=number))
            await asyncio.sleep(self._heartbeat)

    async def _judge_heartbeats(self) -> None:
        while True:
            await self._came_back.wait()
            self._came_back.clear()
            try:
                await self.judge()
                self._on_judged()
            except Unavailable as error:  # the next heartbeat is judged instead
                log.warning("not_judged", reason=str(error))

    async def _send(self, heartbeat: GatewayHeartbeat) -> None:
        self._sent_at[heartbeat.number] = self._clock()
        if len(self._sent_at) > LOST_AFTER_HEARTBEATS:
            del self._sent_at[min(self._sent_at)]
            self._lag = None
        try:
            await self._bus.send(GATEWAY_RECORDER.name, heartbeat, mandatory=False)
        except (Unavailable, Unroutable, Unpublishable) as error:
            self._broker_problem = "takes no messages"
            log.warning("heartbeat_lost", number=heartbeat.number, reason=str(error))
        else:
            self._broker_problem = None

    async def broker_check(self) -> str | None:
        """Why the broker did not take the last heartbeat; None: it did."""
        return self._broker_problem

    def keepalive(self, claim: str) -> None:
        """A fact of a live claim was recorded."""
        self._since[claim] = self._heartbeats
        self._heard_at[claim] = self._clock()

    def heard_at(self, claim: str) -> float | None:
        """When a claim's last sign of life came; None: not yet, or another gateway records them."""
        return self._heard_at.get(claim)

    def longest_silence(self) -> float:
        """Seconds since the last sign of life of the claim that is silent longest; 0: none is."""
        return max((self._clock() - at for at in self._heard_at.values()), default=0.0)

    def lag(self) -> float | None:
        """How many seconds a fact waits until it is recorded here; None: it is not.

        None, too, once so many own heartbeats have not come back as a lost claim has missed.
        """
        if self._lag is None:
            return None
        awaited = self._clock() - min(self._sent_at.values(), default=self._clock())
        return max(self._lag, awaited)

    def on_heartbeat(self, heartbeat: GatewayHeartbeat) -> None:
        """Count a heartbeat that came back, once; after a gap, start anew.

        In a gap another gateway recorded.
        """
        if heartbeat.gateway != self._name or heartbeat.number <= self._last_number:
            return
        sent_at = self._sent_at.get(heartbeat.number, self._clock())
        self._lag = self._clock() - sent_at
        self._sent_at = {n: at for n, at in self._sent_at.items() if n > heartbeat.number}
        if heartbeat.number > self._last_number + 1:
            self._since = {}
        self._last_number = heartbeat.number
        self._heartbeats += 1
        self._came_back.set()

    async def judge(self) -> None:
        """End what is overdue, and ask again for what is lost.

        Raises:
            Unavailable: the database does not answer.
        """
        now = self._clock()
        async for job_id in self._jobs.overdue(now):
            await self._change(job_id, partial(_time_out, now=now))
        claimed = await self._jobs.claims()
        waiting = await self._in_empty_queues(now)
        watched = [_watch_of(stage) for stage in (*claimed, *waiting)]
        self._since = {watch: self._since.get(watch, self._heartbeats) for watch in watched}
        claims = {stage.claim for stage in claimed}
        self._heard_at = {claim: at for claim, at in self._heard_at.items() if claim in claims}
        for stage in claimed:
            if self._silent_too_long(stage):
                await self._change(stage.job, partial(self._lose, stage=stage, now=now))
        for stage in waiting:
            if self._silent_too_long(stage):
                log.warning("work_requeued", job=stage.job, stage=stage.stage)
                await self._change(stage.job, partial(_requeue, waiting=stage, now=now))

    async def _in_empty_queues(self, now: float) -> list[OpenStage]:
        """Unclaimed work counts as forgotten only while its queue is empty."""
        self._queued = {}
        return [
            stage
            for stage in await self._jobs.waiting(now, WATCHED)
            if not await self._is_queued(STAGE_QUEUES[stage.stage])
        ]

    async def _is_queued(self, queue: Queue) -> bool:
        """Whether the queue holds anything; assumed while the broker does not answer."""
        if queue.name not in self._queued:
            try:
                self._queued[queue.name] = await self._bus.depth(queue) > 0
            except Unavailable:
                self._queued[queue.name] = True
        return self._queued[queue.name]

    def _silent_too_long(self, stage: OpenStage) -> bool:
        since = self._since.get(_watch_of(stage), self._heartbeats)
        return self._heartbeats - since >= LOST_AFTER_HEARTBEATS

    def _lose(self, job: Job, stage: OpenStage, now: float) -> Step:
        """Unless it showed a sign of life since the check."""
        if stage.claim is None or not self._silent_too_long(stage):
            return Step(job)
        if job.holds(stage.stage, stage.claim) and (claim := job.stages[stage.stage].claim):
            log.warning("claim_lost", job=job.id, stage=stage.stage, worker=claim.worker)
            with tracing.span(
                "claim lost", parent=tracing.context_of(job), everydream__job=job.id,
                everydream__stage=stage.stage, everydream__worker=claim.worker,
            ) as lost:  # fmt: skip
                lost.fail("no heartbeat")
        return lose_claim(job, stage.stage, stage.claim, now=now, heartbeat=self._heartbeat)

    async def _change(self, job_id: str, decide: Callable[[Job], Step]) -> None:
        """What one job lacks, or triggers, must not stop the others' supervision."""
        try:
            await self._repository.change(job_id, decide)
        except Unavailable as error:
            log.warning("not_judged", job=job_id, reason=str(error))
        except Exception:
            log.exception("cannot_judge", job=job_id)


def _watch_of(stage: OpenStage) -> str:
    """The claim's id; of a waiting stage, its job and name and when it was last queued."""
    return stage.claim or f"{stage.job}/{stage.stage}/{stage.due_at}"


def _time_out(job: Job, now: float) -> Step:
    reason = overdue(job, now)
    return time_out(job, reason, now) if reason else Step(job)


def _requeue(job: Job, waiting: OpenStage, now: float) -> Step:
    """Only if nothing has happened since the check."""
    return requeue(job, waiting.stage, now=now) if waiting in open_stages(job) else Step(job)
