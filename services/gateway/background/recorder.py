"""Record every fact in its job, in order."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import msgspec
import structlog

from services.gateway import metrics
from services.gateway.background.consumer import consume
from services.gateway.background.progress_writer import ProgressWriter
from services.gateway.background.supervisor import Supervisor
from services.gateway.jobs.budgets import BudgetExceeded, Budgets
from services.gateway.jobs.record import Job, Step
from services.gateway.jobs.repository import JobRepository
from services.gateway.jobs.transitions import RESULTS, advance, is_expected, refuse_unknown
from services.gateway.turns.places import Places
from shared.errors import NotFound
from shared.messaging.messages import (
    AnyMessage,
    DatasetStaged,
    GatewayHeartbeat,
    ModelStaged,
    Progressed,
    PublicationStarted,
    SamplesGenerated,
    StageFact,
    StageFailed,
    type_of,
)
from shared.messaging.topology import GATEWAY_RECORDER
from shared.ports import Bus, Delivery, ObjectStore
from shared.storage.large_fields import load_fields

PASSED_ON = ("inference", "train", "row")
"""Fields of facts that are for the next worker only."""
NOT_KEPT = (
    "the dataset is not kept to be changed or trained on, because the budget upload_bytes has not"
    " enough left: delete some uploads or checks, then check it again"
)

log = structlog.get_logger()


class Recorder:
    """The single consumer of facts; passes on signs of life and progress."""

    def __init__(
        self,
        bus: Bus,
        store: ObjectStore,
        repository: JobRepository,
        *,
        supervisor: Supervisor,
        progress: ProgressWriter,
        places: Places,
        budgets: Budgets,
        clock: Callable[[], float],
        heartbeat: float,
    ) -> None:
        self._bus = bus
        self._store = store
        self._repository = repository
        self._supervisor = supervisor
        self._progress = progress
        self._places = places
        self._budgets = budgets
        self._clock = clock
        self._heartbeat = heartbeat

    async def run(self) -> None:
        await consume(self._bus, GATEWAY_RECORDER, self._record_measured)

    async def _record_measured(self, delivery: Delivery) -> None:
        with metrics.FACTS.labels(type_of(delivery.message)).time():
            await self._record(delivery)

    async def _record(self, delivery: Delivery) -> None:
        fact, reply_queue = delivery.message, delivery.envelope.reply_to
        if isinstance(fact, GatewayHeartbeat):
            self._supervisor.on_heartbeat(fact)
            return
        fact = await self._within_budgets(await self._with_results(fact))
        claims_bucket = isinstance(fact, PublicationStarted)
        apply = partial(
            advance, fact=fact, reply_queue=reply_queue, now=self._clock(),
            heartbeat=self._heartbeat,
            crowding=await self._places.crowding() if claims_bucket else (),
        )  # fmt: skip

        tried: list[Job] = []  # the last one counts: another writer may be faster

        def noted(job: Job) -> Step:
            tried.append(job)
            return apply(job)

        job = await self._repository.change(fact.job, noted, results=needs_results(fact))
        if tried:
            _warn_if_unexpected(tried[-1], fact)
        if not isinstance(fact, StageFact):
            return
        if job is None:
            self._repository.send_replies(refuse_unknown(fact, reply_queue))
        elif job.holds(fact.stage, fact.claim):
            self._supervisor.keepalive(fact.claim)
            if isinstance(fact, Progressed):
                self._progress.note(fact, job.run)

    async def _within_budgets(self, fact: AnyMessage) -> AnyMessage:
        """The fact, or what it comes to where its owner has no room for what was staged."""
        if not isinstance(fact, DatasetStaged | ModelStaged):
            return fact
        job = await self._repository.get(fact.job)
        if job is None:
            return fact
        try:
            if fact.model_bytes:
                own = fact.base_model if isinstance(fact, DatasetStaged) else fact.model
                prefix = fact.lora_base or own
                await self._budgets.expect_room_for_model(job.owner, prefix, fact.model_bytes)
        except BudgetExceeded as exceeded:
            return _failed(fact, f"the model cannot be kept: {exceeded}")
        if isinstance(fact, DatasetStaged) and job.checks:
            size = fact.dataset_bytes + fact.pictures_bytes
            try:
                await self._budgets.expect_room_for_dataset(job.owner, size)
            except BudgetExceeded:
                return _report_alone(fact)
        return fact

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


def _report_alone(fact: DatasetStaged) -> DatasetStaged:
    """A check without its dataset, with a warning."""
    warnings = [NOT_KEPT, *fact.report.get("warnings", ())]
    count = fact.report.get("warnings_count", 0) + 1
    report = {**fact.report, "warnings": warnings, "warnings_count": count}
    return msgspec.structs.replace(fact, report=report, pictures="")


def _failed(fact: StageFact, reason: str) -> StageFailed:
    return StageFailed(
        job=fact.job, stage=fact.stage, claim=fact.claim, attempt=fact.attempt, worker=fact.worker,
        kind="refused", reason=reason,
    )  # fmt: skip


def _warn_if_unexpected(job: Job, fact: AnyMessage) -> None:
    """Name the worker to operators; users read only what it did."""
    if not isinstance(fact, StageFact) or not job.holds(fact.stage, fact.claim):
        return
    if not is_expected(job, fact):
        log.warning(
            "unexpected_result", job=job.id, stage=fact.stage, worker=fact.worker,
            type=type_of(fact),
        )  # fmt: skip


def needs_results(fact: AnyMessage) -> bool:
    """Whether the large fields of the record are needed to apply this."""
    if isinstance(fact, PublicationStarted):
        return fact.stage == "image_publication"
    return isinstance(fact, (*RESULTS, SamplesGenerated))
