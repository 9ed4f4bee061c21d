"""Record every fact in its job, in order."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from services.gateway.background.consumer import consume
from services.gateway.background.progress_writer import ProgressWriter
from services.gateway.background.supervisor import Supervisor
from services.gateway.jobs.repository import JobRepository
from services.gateway.jobs.transitions import RESULTS, advance, refuse_unknown
from shared.errors import NotFound
from shared.messaging.messages import (
    AnyMessage,
    GatewayHeartbeat,
    Progressed,
    PublicationStarted,
    SamplesGenerated,
    StageFact,
)
from shared.messaging.topology import GATEWAY_RECORDER
from shared.ports import Bus, Delivery, ObjectStore
from shared.storage.large_fields import load_fields

PASSED_ON = ("inference", "train", "row")
"""Fields of facts that are for the next worker only."""


class Recorder:
    """The single consumer of facts; passes on signs of life and progress."""

    def __init__(
        self,
        bus: Bus,
        store: ObjectStore,
        repository: JobRepository,
        supervisor: Supervisor,
        progress: ProgressWriter,
        *,
        clock: Callable[[], float],
        heartbeat: float,
    ) -> None:
        self._bus = bus
        self._store = store
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
        fact = await self._with_results(fact)
        apply = partial(
            advance, fact=fact, reply_queue=reply_queue, now=self._clock(),
            heartbeat=self._heartbeat,
        )  # fmt: skip
        job = await self._repository.change(fact.job, apply, results=needs_results(fact))
        if not isinstance(fact, StageFact):
            return
        if job is None:
            self._repository.send_replies(refuse_unknown(fact, reply_queue))
        elif job.holds(fact.stage, fact.claim):
            self._supervisor.keepalive(fact.claim)
            if isinstance(fact, Progressed):
                self._progress.note(fact, job.run)

    async def _with_results(self, fact: AnyMessage) -> AnyMessage:
        """The fact with what goes into the record; what it only passes on stays in the store."""
        stored: dict[str, str] = getattr(fact, "stored", {})
        results = [place for place in stored if place.partition(".")[0] not in PASSED_ON]
        try:
            return await load_fields(self._store, fact, results)
        except NotFound:
            if await self._repository.get(fact.job) is not None:
                raise
            return fact  # it is answered as a fact of no job


def needs_results(fact: AnyMessage) -> bool:
    """Whether the large fields of the record are needed to apply this."""
    if isinstance(fact, PublicationStarted):
        return fact.stage == "image_publication"
    return isinstance(fact, (*RESULTS, SamplesGenerated))
