"""Record every fact in its job, in order."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from time import monotonic

from services.gateway.background.consumer import consume
from services.gateway.background.supervisor import Supervisor
from services.gateway.jobs.record import Job, Step
from services.gateway.jobs.repository import JobRepository
from services.gateway.jobs.transitions import advance, refuse_unknown
from shared.messaging.messages import AnyMessage, GatewayHeartbeat, Progressed, StageFact
from shared.messaging.topology import GATEWAY_RECORDER
from shared.ports import Bus, Delivery

PROGRESS_SECONDS = 1.0
"""A claim's progress is written at most this often; in between it is only a keepalive."""


class Recorder:
    """The single consumer of facts; passes signs of life to the supervisor."""

    def __init__(
        self,
        bus: Bus,
        repository: JobRepository,
        supervisor: Supervisor,
        *,
        clock: Callable[[], float],
        heartbeat: float,
    ) -> None:
        self._bus = bus
        self._repository = repository
        self._supervisor = supervisor
        self._clock = clock
        self._heartbeat = heartbeat
        self._written: dict[str, float] = {}
        """By claim: when its progress was last written."""

    async def run(self) -> None:
        await consume(self._bus, GATEWAY_RECORDER, self._record)

    async def _record(self, delivery: Delivery) -> None:
        fact, reply_queue = delivery.message, delivery.envelope.reply_to
        if isinstance(fact, GatewayHeartbeat):
            self._supervisor.on_heartbeat(fact)
            return
        job = await self._repository.change(fact.job, partial(self._advance, fact, reply_queue))
        if not isinstance(fact, StageFact):
            return
        if job is None:
            self._repository.send_replies(refuse_unknown(fact, reply_queue))
        elif job.holds(fact.stage, fact.claim):
            self._supervisor.keepalive(fact.claim)

    def _advance(self, fact: AnyMessage, reply_queue: str | None, job: Job) -> Step:
        step = advance(
            job, fact, reply_queue=reply_queue, now=self._clock(), heartbeat=self._heartbeat
        )
        if isinstance(fact, Progressed) and step.job.stages == job.stages:
            return step if self._may_write(fact.claim) else Step(job, step.effects)
        return step

    def _may_write(self, claim: str) -> bool:
        now = monotonic()
        self._written = {
            each: then for each, then in self._written.items() if now - then < PROGRESS_SECONDS
        }
        return self._written.setdefault(claim, now) == now
