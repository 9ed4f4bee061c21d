"""Record every fact in its job, in order."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from services.gateway.background.consumer import consume
from services.gateway.background.progress_writer import ProgressWriter
from services.gateway.background.supervisor import Supervisor
from services.gateway.jobs.repository import JobRepository
from services.gateway.jobs.transitions import advance, refuse_unknown
from shared.messaging.messages import GatewayHeartbeat, Progressed, StageFact
from shared.messaging.topology import GATEWAY_RECORDER
from shared.ports import Bus, Delivery


class Recorder:
    """The single consumer of facts; passes on signs of life and progress."""

    def __init__(
        self,
        bus: Bus,
        repository: JobRepository,
        supervisor: Supervisor,
        progress: ProgressWriter,
        *,
        clock: Callable[[], float],
        heartbeat: float,
    ) -> None:
        self._bus = bus
        self._repository = repository
        self._supervisor = supervisor
        self._progress = progress
        self._clock = clock
        self._heartbeat = heartbeat

    async def run(self) -> None:
        await consume(self._bus, GATEWAY_RECORDER, self._record)

    async def _record(self, delivery: Delivery) -> None:
        fact, reply_queue = delivery.message, delivery.envelope.reply_to
        if isinstance(fact, GatewayHeartbeat):
            self._supervisor.on_heartbeat(fact)
            return
        apply = partial(
            advance, fact=fact, reply_queue=reply_queue, now=self._clock(),
            heartbeat=self._heartbeat,
        )  # fmt: skip
        job = await self._repository.change(fact.job, apply)
        if not isinstance(fact, StageFact):
            return
        if job is None:
            self._repository.send_replies(refuse_unknown(fact, reply_queue))
        elif job.holds(fact.stage, fact.claim):
            self._supervisor.keepalive(fact.claim)
            if isinstance(fact, Progressed):
                self._progress.note(fact, job.run)
