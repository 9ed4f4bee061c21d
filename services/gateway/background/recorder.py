"""Record every fact in its job, in order; of many jobs in one commit."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack
from contextvars import Context
from functools import partial
from itertools import groupby
from time import perf_counter
from typing import NamedTuple

import msgspec
import structlog

from services.gateway import metrics
from services.gateway.background.consumer import (
    consume_batches,
    handling_apart,
    process,
    until_available,
)
from services.gateway.background.idle_heartbeats import IdleHeartbeats
from services.gateway.background.progress_writer import ProgressWriter
from services.gateway.background.supervisor import Supervisor
from services.gateway.jobs.budgets import BudgetExceeded, Budgets
from services.gateway.jobs.record import Job, Step
from services.gateway.jobs.repository import Change, JobRepository, JobVersion
from services.gateway.jobs.transitions import RESULTS, advance, is_expected, refuse_unknown
from services.gateway.turns.places import Places
from shared.errors import NotFound, Unavailable
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
    Started,
    type_of,
)
from shared.messaging.topology import GATEWAY_RECORDER
from shared.ports import Bus, Delivery, ObjectStore
from shared.storage.large_fields import load_fields

BATCH = 100
"""Facts that are taken at a time at most, so that a claim does not wait for more."""
ALONE = (PublicationStarted, DatasetStaged, ModelStaged)
"""Facts that are judged by what other jobs have taken, also by the fact before."""
PASSED_ON = ("inference", "train", "row")
"""Fields of facts that are for the next worker only."""
NOT_KEPT = (
    "the dataset is not kept to be changed or trained on, because the budget upload_bytes has not"
    " enough left: delete some uploads or checks, then check it again"
)

log = structlog.get_logger()


Waiting = dict[str, deque[Delivery]]
"""By job: its facts, in order; of each job at least one."""


class _Attempt(NamedTuple):
    """A fact, and how it is recorded."""

    delivery: Delivery
    fact: AnyMessage
    change: Change
    tried: list[tuple[Job, Step]]
    """Records that it was applied to, and what came of it; the last one counts."""


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
        self._idle = IdleHeartbeats()

    async def run(self) -> None:
        await consume_batches(self._bus, GATEWAY_RECORDER, self.record_batch, most=BATCH)

    async def record_batch(self, batch: Sequence[Delivery]) -> None:
        """Record facts, and settle each once its effect is committed.

        The facts of a job are recorded in order. A gateway's own heartbeat counts once all that
        came before it is recorded.
        """
        taken_at = perf_counter()
        for is_own, part in groupby(batch, lambda each: isinstance(each.message, GatewayHeartbeat)):
            if not is_own:
                await self._record_facts(part, taken_at)
                continue
            for delivery in part:
                await process(delivery, self.record)
                _measure(delivery, taken_at)

    async def record(self, delivery: Delivery) -> None:
        """Record a fact, or count a gateway's own heartbeat; the caller settles the delivery.

        Raises:
            Unavailable: the database or the store does not answer; nothing is written.
        """
        if isinstance(delivery.message, GatewayHeartbeat):
            self._supervisor.on_heartbeat(delivery.message)
            return
        attempt = await self._attempt(delivery)
        job_id, decide, results, _ = attempt.change
        self._conclude(attempt, await self._repository.change(job_id, decide, results=results))

    async def _record_facts(self, deliveries: Iterable[Delivery], taken_at: float) -> None:
        by_job: defaultdict[str, deque[Delivery]] = defaultdict(deque)
        for delivery in deliveries:
            by_job[delivery.message.job].append(delivery)
        waiting: Waiting = dict(by_job)
        while waiting:
            facts = sum(map(len, waiting.values()))
            await until_available(partial(self._record_round, waiting, taken_at), facts=facts)

    async def _record_round(self, waiting: Waiting, taken_at: float) -> None:
        """Record of each job the heartbeats that change nothing, and then one fact.

        Claims come first, in a commit of their own: somebody waits for them.

        Raises:
            Unavailable: a server does not answer; what is not recorded still waits.
        """
        _drop_lost(waiting)
        claims = [each[0] for each in waiting.values() if isinstance(each[0].message, Started)]
        await self._record_first(waiting, claims, taken_at)
        await self._record_idle(waiting, taken_at)
        first = [deliveries[0] for deliveries in waiting.values()]
        await self._record_first(waiting, first, taken_at)

    async def _record_first(
        self, waiting: Waiting, first: Sequence[Delivery], taken_at: float
    ) -> None:
        """Record the first facts of some jobs, together where they may be."""
        together = [each for each in first if not isinstance(each.message, ALONE)]
        recorded = await self._record_together(together) if together else ()
        for delivery in recorded:
            await _settle(waiting, delivery, taken_at)
        for delivery in first:
            if delivery not in recorded:
                await process(delivery, self.record)
                await _settle(waiting, delivery, taken_at)

    async def _record_idle(self, waiting: Waiting, taken_at: float) -> None:
        known = [job for job, facts in waiting.items() if self._idle.knows(facts[0].message)]
        versions = await self._repository.row_versions(known) if known else {}
        for job, version in versions.items():
            while facts := waiting.get(job):
                fact, reply_queue = facts[0].message, facts[0].envelope.reply_to
                run = self._idle.run_of(fact, reply_queue, version)
                if run is None or not isinstance(fact, Progressed):
                    break
                self._show_life(fact, run)
                await _settle(waiting, facts[0], taken_at)

    async def _record_together(self, deliveries: Sequence[Delivery]) -> Collection[Delivery]:
        """Record facts of different jobs in one commit; those that were. Raises Unavailable."""
        try:
            with ExitStack() as handled:
                attempts = [
                    await self._attempt(each, handled.enter_context(handling_apart(each)))
                    for each in deliveries
                ]
                changed = await self._repository.change_many([each.change for each in attempts])
                recorded = [each for each in attempts if each.fact.job not in changed.outrun]
                for attempt in recorded:
                    self._conclude_and_learn(attempt, changed.jobs.get(attempt.fact.job))
        except Unavailable:
            raise
        except Exception:  # one of them is at fault: recorded each by itself, it is found
            log.exception("facts_not_recorded_together", facts=len(deliveries))
            return ()
        return [each.delivery for each in recorded]

    async def _attempt(self, delivery: Delivery, context: Context | None = None) -> _Attempt:
        fact, reply_queue = delivery.message, delivery.envelope.reply_to
        fact = await self._within_budgets(await self._with_results(fact))
        claims_bucket = isinstance(fact, PublicationStarted)
        apply = partial(
            advance, fact=fact, reply_queue=reply_queue, now=self._clock(),
            heartbeat=self._heartbeat,
            crowding=await self._places.crowding() if claims_bucket else (),
        )  # fmt: skip
        tried: list[tuple[Job, Step]] = []

        def noted(job: Job) -> Step:
            tried.append((job, step := apply(job)))
            return step

        return _Attempt(
            delivery, fact, Change(fact.job, noted, needs_results(fact), context), tried
        )

    def _conclude(self, attempt: _Attempt, job: Job | None) -> None:
        """Tell whom it concerns that a fact is recorded; without a job that there is none."""
        fact = attempt.fact
        if attempt.tried:
            _warn_if_unexpected(attempt.tried[-1][0], fact)
        if not isinstance(fact, StageFact):
            return
        if job is None:
            refusal = refuse_unknown(fact, attempt.delivery.envelope.reply_to)
            self._repository.send_replies(refusal)
        elif job.holds(fact.stage, fact.claim):
            self._show_life(fact, job.run)

    def _show_life(self, fact: StageFact, run: int) -> None:
        self._supervisor.keepalive(fact.claim)
        if isinstance(fact, Progressed):
            self._progress.note(fact, run)

    def _conclude_and_learn(self, attempt: _Attempt, after: JobVersion | None) -> None:
        self._conclude(attempt, after.job if after else None)
        if after is None:
            return
        fact, (before, step) = attempt.fact, attempt.tried[-1]
        is_idle = step.job == before and not step.effects
        if isinstance(fact, Progressed) and is_idle and before.holds(fact.stage, fact.claim):
            self._idle.learn(fact, attempt.delivery.envelope.reply_to, after)

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


def _drop_lost(waiting: Waiting) -> None:
    """Another gateway may have recorded these by now, and what follows them."""
    for job, deliveries in [*waiting.items()]:
        if left := deque(each for each in deliveries if each.is_ours):
            waiting[job] = left
        else:
            del waiting[job]


async def _settle(waiting: Waiting, delivery: Delivery, taken_at: float) -> None:
    """The first of its job is done with."""
    job = delivery.message.job
    waiting[job].popleft()
    if not waiting[job]:
        del waiting[job]
    await delivery.ack()
    _measure(delivery, taken_at)


def _measure(delivery: Delivery, taken_at: float) -> None:
    metrics.FACTS.labels(type_of(delivery.message)).observe(perf_counter() - taken_at)


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
