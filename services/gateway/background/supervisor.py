"""Who is alive, and what was forgotten: judged by beats that come back, never by clocks.

Beats travel through the same queue as the facts. When one comes back, everything that was said
before it is on record; so neither a backlog nor a broker that stood still costs a live job.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from uuid import uuid4

import msgspec
import structlog
from msgspec import Struct

from services.gateway.jobs.record import Job, Step, overdue
from services.gateway.jobs.repository import JobRepository, read
from services.gateway.jobs.transitions import lose_claim, requeue, time_out
from services.gateway.ports import JobStore, StoredJob
from shared.errors import Unavailable, Unroutable
from shared.messaging.messages import GatewayHeartbeat, Stage
from shared.messaging.topology import GATEWAY_RECORDER, STAGE_QUEUES, Queue
from shared.ports import Bus

LOST_AFTER_HEARTBEATS = 6
"""Own beats that must come back since a sign of life before a claim counts as lost."""

log = structlog.get_logger()


class _Watch(Struct, frozen=True):
    """Something that must not be silent for long: a claim, or a stage that waits for one."""

    job: str
    stage: Stage
    claimed: bool
    key: str
    """The claim's id; for a stage that waits, its place and the moment of its last asking."""


class Supervisor:
    """Judges live jobs whenever one of its own beats comes back through the recorder's queue."""

    def __init__(
        self,
        bus: Bus,
        jobs: JobStore,
        repository: JobRepository,
        *,
        clock: Callable[[], float],
        heartbeat: float,
    ) -> None:
        self._bus = bus
        self._jobs = jobs
        self._repository = repository
        self._clock = clock
        self._heartbeat = heartbeat
        self._name = f"{bus.source}/{uuid4()}"
        self.broker_problem: str | None = "was not reached yet"
        """Why the broker did not take our last beat; None: it did."""
        self._last = 0
        self._heartbeats = 0
        self._since: dict[str, int] = {}
        """The beat of a claim's last sign of life, or of the last look that found work queued."""
        self._queued: dict[str, bool] = {}
        """By queue: what this beat's one look has found, however many jobs wait there."""

    async def run(self) -> None:
        """Publish beats, for ever."""
        for number in count(1):
            await self._publish(GatewayHeartbeat(gateway=self._name, number=number))
            await asyncio.sleep(self._heartbeat)

    def keepalive(self, claim: str) -> None:
        """A fact of a live claim was recorded."""
        self._since[claim] = self._heartbeats

    async def on_heartbeat(self, heartbeat: GatewayHeartbeat) -> None:
        """Judge every live job. Raises Unavailable."""
        if heartbeat.gateway != self._name:
            return
        self._count(heartbeat.number)
        self._queued = {}
        now = self._clock()
        jobs = [job async for row in self._jobs.live() if (job := _readable(row))]
        watched = {job.id: [*_watches(job, now)] for job in jobs}
        keys = [watch.key for watches in watched.values() for watch in watches]
        self._since = {key: self._since.get(key, self._heartbeats) for key in keys}
        for job in jobs:
            await self._judge_alone(job, watched[job.id], now)

    async def _judge_alone(self, job: Job, watches: list[_Watch], now: float) -> None:
        """Whatever is wrong with one job, the others are judged."""
        try:
            await self._judge(job, watches, now)
        except Unavailable:
            raise
        except Exception:  # a mistake of ours
            log.exception("cannot_judge", job=job.id)

    async def _judge(self, job: Job, watches: list[_Watch], now: float) -> None:
        if overdue(job, now):
            await self._repository.change(job.id, partial(_time_out, now=now))
        for watch in watches:
            if watch.claimed:
                await self._judge_claim(watch, now)
            else:
                await self._judge_asking(watch, now)

    async def _judge_claim(self, watch: _Watch, now: float) -> None:
        if self._patient(watch):
            return
        log.warning("claim_lost", job=watch.job, stage=watch.stage, claim=watch.key)
        lose = partial(
            lose_claim, stage=watch.stage, claim=watch.key, now=now, heartbeat=self._heartbeat
        )
        await self._repository.change(watch.job, lose)

    async def _judge_asking(self, watch: _Watch, now: float) -> None:
        """Work that nobody took counts as forgotten only while its queue is empty."""
        if await self._waits_in_queue(watch.stage):
            self._since[watch.key] = self._heartbeats
        elif not self._patient(watch):
            log.warning("work_requeued", job=watch.job, stage=watch.stage)
            await self._repository.change(watch.job, partial(_requeue, watch=watch, now=now))

    def _patient(self, watch: _Watch) -> bool:
        return self._heartbeats - self._since[watch.key] < LOST_AFTER_HEARTBEATS

    async def _waits_in_queue(self, stage: Stage) -> bool:
        """Whether the stage's queue holds anything, as far as the broker tells."""
        queue = STAGE_QUEUES[stage]
        if queue.name not in self._queued:
            self._queued[queue.name] = await self._holds_anything(queue)
        return self._queued[queue.name]

    async def _holds_anything(self, queue: Queue) -> bool:
        try:
            return await self._bus.depth(queue) > 0
        except Unavailable:
            return True

    async def _publish(self, heartbeat: GatewayHeartbeat) -> None:
        try:
            await self._bus.send(GATEWAY_RECORDER.name, heartbeat, mandatory=False)
        except (Unavailable, Unroutable) as error:
            self.broker_problem = "takes no messages"
            log.warning("heartbeat_lost", number=heartbeat.number, reason=str(error))
        else:
            self.broker_problem = None

    def _count(self, number: int) -> None:
        """Count each beat once. After a gap somebody else may have recorded: begin anew."""
        if number <= self._last:
            return
        if number > self._last + 1:
            self._since = {}
        self._last = number
        self._heartbeats += 1


def _readable(row: StoredJob) -> Job | None:
    try:
        return read(row)
    except msgspec.DecodeError:
        log.exception("cannot_judge", job=row.id)
        return None


def _watches(job: Job, now: float) -> Iterator[_Watch]:
    for stage, record in job.stages.items():
        if record.claim is not None:
            yield _Watch(job.id, stage, claimed=True, key=record.claim.id)
        elif record.open and record.due_at <= now:
            yield _Watch(job.id, stage, claimed=False, key=_asking(job, stage))


def _asking(job: Job, stage: Stage) -> str:
    return f"{job.id}/{stage}/{job.stages[stage].due_at}"


def _time_out(job: Job, now: float) -> Step:
    reason = overdue(job, now)
    return time_out(job, reason, now) if reason else Step(job)


def _requeue(job: Job, watch: _Watch, now: float) -> Step:
    """Only if nothing has happened since the judgement."""
    record = job.stages[watch.stage]
    idle = not job.ended and record.open and record.claim is None
    if not idle or _asking(job, watch.stage) != watch.key:
        return Step(job)
    return requeue(job, watch.stage, now=now)
