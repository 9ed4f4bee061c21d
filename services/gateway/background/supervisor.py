"""Find lost claims and forgotten work by heartbeats that come back, never by clocks.

The gateway sends heartbeats to itself through the queue of the facts. When one comes back, every
fact published before it is recorded. So neither a backlog nor a stalled broker loses a live claim.
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
"""Own heartbeats that must come back after a claim's last sign of life before it counts as lost."""

log = structlog.get_logger()


class _Watch(Struct, frozen=True):
    """Something that must not stay silent: a claim, or a stage that waits for one."""

    job: str
    stage: Stage
    claimed: bool
    key: str
    """The claim's id; of a waiting stage, its job and name and when it was last queued."""


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
    ) -> None:
        self._bus = bus
        self._jobs = jobs
        self._repository = repository
        self._clock = clock
        self._heartbeat = heartbeat
        self._name = f"{bus.source}/{uuid4()}"
        self.broker_problem: str | None = "was not reached yet"
        """Why the broker did not take the last heartbeat; None: it did."""
        self._last_number = 0
        self._heartbeats = 0
        """Own heartbeats that came back."""
        self._since: dict[str, int] = {}
        """By watch: the heartbeat of the last sign of life, or that last found the work queued."""
        self._queued: dict[str, bool] = {}
        """By queue: whether it holds anything; asked once in a heartbeat."""

    async def run(self) -> None:
        """Send heartbeats, until cancelled."""
        for number in count(1):
            await self._send(GatewayHeartbeat(gateway=self._name, number=number))
            await asyncio.sleep(self._heartbeat)

    async def _send(self, heartbeat: GatewayHeartbeat) -> None:
        try:
            await self._bus.send(GATEWAY_RECORDER.name, heartbeat, mandatory=False)
        except (Unavailable, Unroutable) as error:
            self.broker_problem = "takes no messages"
            log.warning("heartbeat_lost", number=heartbeat.number, reason=str(error))
        else:
            self.broker_problem = None

    def keepalive(self, claim: str) -> None:
        """A fact of a live claim was recorded."""
        self._since[claim] = self._heartbeats

    async def on_heartbeat(self, heartbeat: GatewayHeartbeat) -> None:
        """Check every live job. Raises Unavailable."""
        if heartbeat.gateway != self._name:
            return
        self._count(heartbeat.number)
        self._queued = {}
        now = self._clock()
        jobs = [job async for row in self._jobs.live() if (job := _readable(row))]
        watches = {job.id: [*_watches(job, now)] for job in jobs}
        keys = [watch.key for each in watches.values() for watch in each]
        self._since = {key: self._since.get(key, self._heartbeats) for key in keys}
        for job in jobs:
            try:
                await self._check(job, watches[job.id], now)
            except Unavailable:
                raise
            except Exception:  # a bug that one job triggers must not stop the others' supervision
                log.exception("cannot_judge", job=job.id)

    def _count(self, number: int) -> None:
        """Count each heartbeat once; after a gap, in which another gateway recorded, start anew."""
        if number <= self._last_number:
            return
        if number > self._last_number + 1:
            self._since = {}
        self._last_number = number
        self._heartbeats += 1

    async def _check(self, job: Job, watches: list[_Watch], now: float) -> None:
        if overdue(job, now):
            await self._repository.change(job.id, partial(_time_out, now=now))
        for watch in watches:
            if watch.claimed:
                await self._check_claim(watch, now)
            else:
                await self._check_waiting(watch, now)

    async def _check_claim(self, watch: _Watch, now: float) -> None:
        if not self._silent_too_long(watch):
            return
        log.warning("claim_lost", job=watch.job, stage=watch.stage, claim=watch.key)
        lose = partial(
            lose_claim, stage=watch.stage, claim=watch.key, now=now, heartbeat=self._heartbeat
        )
        await self._repository.change(watch.job, lose)

    async def _check_waiting(self, watch: _Watch, now: float) -> None:
        """Unclaimed work counts as forgotten only while its queue is empty."""
        if await self._is_queued(STAGE_QUEUES[watch.stage]):
            self._since[watch.key] = self._heartbeats
        elif self._silent_too_long(watch):
            log.warning("work_requeued", job=watch.job, stage=watch.stage)
            await self._repository.change(watch.job, partial(_requeue, watch=watch, now=now))

    def _silent_too_long(self, watch: _Watch) -> bool:
        return self._heartbeats - self._since[watch.key] >= LOST_AFTER_HEARTBEATS

    async def _is_queued(self, queue: Queue) -> bool:
        """Whether the queue holds anything; assumed while the broker does not answer."""
        if queue.name not in self._queued:
            try:
                self._queued[queue.name] = await self._bus.depth(queue) > 0
            except Unavailable:
                self._queued[queue.name] = True
        return self._queued[queue.name]


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
            yield _Watch(job.id, stage, claimed=False, key=_waiting_key(job, stage))


def _waiting_key(job: Job, stage: Stage) -> str:
    return f"{job.id}/{stage}/{job.stages[stage].due_at}"


def _time_out(job: Job, now: float) -> Step:
    reason = overdue(job, now)
    return time_out(job, reason, now) if reason else Step(job)


def _requeue(job: Job, watch: _Watch, now: float) -> Step:
    """Only if nothing has happened since the check."""
    record = job.stages[watch.stage]
    idle = not job.ended and record.open and record.claim is None
    if not idle or _waiting_key(job, watch.stage) != watch.key:
        return Step(job)
    return requeue(job, watch.stage, now=now)
