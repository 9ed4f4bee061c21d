"""One job under the real recorder and supervisor, by heartbeats; the test plays all other parts.

Rows are kept in memory under a job store's rules, so that thousands of jobs run in seconds.
The record is always checked by :func:`validity`, each change by :func:`wrong_change`, and all
messages by :meth:`PlayedJob.contradictions`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec

from services.gateway.background.consumer import process
from services.gateway.background.progress_writer import ProgressWriter
from services.gateway.background.recorder import Recorder
from services.gateway.background.supervisor import LOST_AFTER_HEARTBEATS, Supervisor
from services.gateway.jobs import transitions
from services.gateway.jobs.budgets import Budgets
from services.gateway.jobs.presenter import Presenter
from services.gateway.jobs.record import (
    GPU_STAGES,
    PUBLICATIONS,
    Job,
    StageRecord,
    Step,
    delay_time,
    execution_time,
)
from services.gateway.jobs.repository import JobRepository
from services.gateway.jobs.rows import read
from services.gateway.jobs.transitions import RETRYABLE
from services.gateway.ports import (
    JobStore,
    OpenStage,
    Outgoing,
    StoredEvent,
    StoredJob,
    StoredProgress,
)
from services.gateway.turns.places import Places
from shared import retry
from shared.adapters.folder import FolderStore
from shared.adapters.memory import MemoryBroker
from shared.messaging.messages import (
    STAGES,
    AnyMessage,
    BucketDue,
    CheckpointFinal,
    ClaimGranted,
    ClaimRefused,
    DatasetStaged,
    GatewayHeartbeat,
    ImagesGenerated,
    Interruption,
    JobCancelled,
    JobCompleted,
    JobFailed,
    JobTimedOut,
    Message,
    ModelStaged,
    Result,
    Stage,
    StageFact,
    StageFailed,
    StagingDue,
    Started,
    WebhookDue,
    decode,
)
from shared.messaging.topology import GATEWAY_RECORDER, STAGE_QUEUES, Queue
from shared.ports import Delivery
from shared.request import Request
from tests.support.gateway_world import STARTED

HEARTBEAT = 10.0
START = 1_000_000.0
SILENCE = 5 * LOST_AFTER_HEARTBEATS
"""Heartbeats after which nothing is pending: a lost claim, its backoff, a lost trigger."""
ENDS = {
    JobCompleted: "COMPLETED", JobFailed: "FAILED",
    JobCancelled: "CANCELLED", JobTimedOut: "TIMED_OUT",
}  # fmt: skip
TRIGGERS: dict[Stage, tuple[type[AnyMessage], ...]] = {
    "staging": (StagingDue,),
    "bucket_check": (BucketDue,),
    "training": (DatasetStaged,),
    "generation": (CheckpointFinal, ModelStaged),
    "model_publication": (CheckpointFinal,),
    "image_publication": (ImagesGenerated,),
}
T = TypeVar("T")


class Rows:
    """The row of one job, and every message that its changes wrote."""

    def __init__(self) -> None:
        self.row: StoredJob | None = None
        self.stages: Sequence[OpenStage] = ()
        self.outbox: list[Outgoing] = []
        self.caused: list[AnyMessage] = []
        """Everything that was ever in the outbox."""

    async def insert(
        self,
        job: StoredJob,
        outgoing: Sequence[Outgoing],
        _happened: Sequence[StoredEvent] = (),
        stages: Sequence[OpenStage] = (),
    ) -> bool:
        self._write(job, outgoing, stages)
        return True

    async def get(self, _job: str) -> StoredJob | None:
        return self.row

    async def replace(
        self,
        job: StoredJob,
        outgoing: Sequence[Outgoing],
        _happened: Sequence[StoredEvent] = (),
        stages: Sequence[OpenStage] | None = None,
        *,
        expected_version: int,
    ) -> bool:
        if self.row is None or self.row.version != expected_version:
            return False
        self._write(job, outgoing, stages)
        return True

    async def claims(self) -> list[OpenStage]:
        return [each for each in self.stages if each.claim is not None]

    async def waiting(self, now: float, _limit: int) -> list[OpenStage]:
        return [each for each in self.stages if each.claim is None and each.due_at <= now]

    async def get_live(self, _job: str) -> tuple[StoredJob, list[StoredProgress]] | None:
        return (self.row, []) if self.row else None

    async def overdue(self, now: float) -> AsyncIterator[str]:
        if self.row is not None and self.row.overdue_at is not None and self.row.overdue_at < now:
            yield self.row.id

    async def remove(self, _job: str, at: float) -> bool:
        self.row, self.stages = None, ()
        self.outbox = [each for each in self.outbox if each.due_at <= at]
        return True

    def _write(
        self, job: StoredJob, outgoing: Sequence[Outgoing], stages: Sequence[OpenStage] | None
    ) -> None:
        self.row = job
        self.stages = self.stages if stages is None else stages
        self.outbox += outgoing
        self.caused += [decode(each.message) for each in outgoing]


@dataclass
class Crowd:
    """Whether others' uploads to buckets let none of the job's be claimed now."""

    owners: frozenset[str] = frozenset()

    async def crowding(self) -> frozenset[str]:
        return self.owners


class Room:
    """There is always room for what was staged."""

    async def expect_room_for_dataset(self, _owner: str, _size: int) -> None:
        pass

    async def expect_room_for_model(self, _owner: str, _prefix: str, _size: int) -> None:
        pass


@dataclass
class Worker:
    """One slot of a service: its delivery, its claim and what was granted."""

    stage: Stage
    name: str
    delivery: Delivery | None = None
    claim: str = ""
    granted: ClaimGranted | None = None

    @property
    def reply_queue(self) -> Queue:
        return Queue(f"control.{self.name}", ())

    @property
    def free(self) -> bool:
        return not self.claim

    def clear(self) -> None:
        self.delivery, self.claim, self.granted = None, "", None


StageClaim = tuple[Stage, str]
"""A stage and the id of a claim of it."""


@dataclass
class Answers:
    """The answers to claims."""

    attempts: dict[StageClaim, int] = field(default_factory=dict)
    """Of every granted claim."""
    refused: set[StageClaim] = field(default_factory=set)
    """Claims refused at first."""
    turned_away: set[StageClaim] = field(default_factory=set)
    """Claims granted at first, and refused when repeated."""
    wrong: list[str] = field(default_factory=list)

    def receive(self, answer: AnyMessage, to: AnyMessage | None) -> None:
        """Note an answer to a fact, or one that no fact caused."""
        if isinstance(answer, ClaimRefused) and isinstance(to, Started):
            claim = (answer.stage, answer.claim)
            (self.turned_away if claim in self.attempts else self.refused).add(claim)
        if isinstance(answer, ClaimGranted):
            self._granted((answer.stage, answer.claim), answer.attempt)

    def _granted(self, claim: StageClaim, attempt: int) -> None:
        if claim in self.refused:
            self.wrong.append(f"{claim} was refused, and is granted")
        if self.attempts.setdefault(claim, attempt) != attempt:
            self.wrong.append(f"{claim} was granted with two attempts")


class PlayedJob:
    """The job, the gateway's components, two workers for each stage, and the heartbeats."""

    def __init__(self, request: Request, *, sealed: str | None, checks: bool) -> None:
        self.loop = asyncio.new_event_loop()
        self.clock = self.latest = START
        self.broker = MemoryBroker()
        self.bus, self.workers_bus = self.broker.bus("gateway/played"), self.broker.bus("workers")
        self.rows = Rows()
        self.answers = Answers()
        self.wrong: list[str] = []
        self.published: list[tuple[StageFact, str]] = []
        """Every fact published under a claim, with its reply queue."""
        self.workers = {stage: self._two_workers(stage) for stage in STAGES}
        self.claims = 0
        self.heartbeats = 0
        self.alive: set[StageClaim] = set()
        """Claims with a sign of life since the gateway's last heartbeat."""
        clock: Callable[[], float] = lambda: self.clock  # noqa: E731 - it changes
        store, self.crowd = cast("JobStore", self.rows), Crowd()
        links = FolderStore(Path("never-written"), public_url="http://gateway", key="k" * 48)
        self.repository = JobRepository(
            self.bus, links, store, Presenter(links, clock), clock=clock,
            on_due=lambda: None, on_turn=lambda: None, on_end=lambda _: None,
            on_replaced=lambda _: None, on_uncertain=lambda _: None,
        )  # fmt: skip
        self.supervisor = Supervisor(
            self.bus,
            store,
            self.repository,
            clock=clock,
            heartbeat=HEARTBEAT,
            on_judged=lambda: None,
        )
        self.recorder = Recorder(
            self.bus, links, self.repository, supervisor=self.supervisor,
            progress=ProgressWriter(self.repository), places=cast("Places", self.crowd),
            budgets=cast("Budgets", Room()), clock=clock, heartbeat=HEARTBEAT,
        )  # fmt: skip
        step = transitions.admit(
            "job", "owner", request, {}, sealed=sealed, now=self.clock, checks=checks
        )
        self.do(self.repository.create(step, 0))
        self.do(self.repository.change("job", lambda job: transitions.release(job, self.clock)))
        self.relay()

    def _two_workers(self, stage: Stage) -> list[Worker]:
        workers = [Worker(stage, f"{stage}.{number}") for number in (1, 2)]
        for worker in workers:
            self.broker.declare(worker.reply_queue)
        return workers

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def close(self) -> None:
        self.loop.close()

    @property
    def job(self) -> Job | None:
        return read(self.rows.row) if self.rows.row else None

    @property
    def live(self) -> Job | None:
        job = self.job
        return job if job is not None and not job.ended else None

    # --- The gateway

    def change(self, decide: Callable[[Job], Step]) -> None:
        """A change that a client requests."""
        before = self.job
        self.do(self.repository.change("job", decide))
        self._note_change(before)

    def remove(self) -> None:
        """Cancel and remove, as ``DELETE`` does."""
        self.change(lambda job: transitions.cancel(job, self.clock))
        self.do(self.repository.remove("job", "owner"))

    def heartbeat(self, *, lost: bool = False) -> None:
        """Deliver the gateway's own heartbeat, after everything published before it."""
        self.pass_time(HEARTBEAT)
        self.heartbeats += 1
        self.relay()
        if not lost:
            self._deliver_heartbeat()

    def _deliver_heartbeat(self) -> None:
        heartbeat = GatewayHeartbeat(gateway=self.supervisor._name, number=self.heartbeats)
        alive, self.alive = self.alive, set()
        self.do(self.bus.send(GATEWAY_RECORDER.name, heartbeat))
        self.record()
        job = self.live
        gone = [claim for stage, claim in alive if job and not job.holds(stage, claim)]
        self.wrong += [f"{claim} showed life, and is lost" for claim in gone]

    def pass_time(self, seconds: float) -> None:
        """A negative number sets the clock back."""
        self.clock += seconds
        self.latest = max(self.latest, self.clock)

    def record(self) -> None:
        """Record every waiting fact."""
        while (delivery := self.next_of(GATEWAY_RECORDER)) is not None:
            before, message = self.job, delivery.message
            self.do(self._process(delivery))
            self._note_change(before, message)
            if isinstance(message, StageFact):
                self._note_fact(before, message)
        self.relay()

    async def _process(self, delivery: Delivery) -> None:
        await process(delivery, self.recorder.record)
        if isinstance(delivery.message, GatewayHeartbeat):
            await self.supervisor.judge()

    def relay(self) -> None:
        """Send what is due, as the relay does."""
        due = [each for each in self.rows.outbox if each.due_at <= self.clock]
        self.rows.outbox = [each for each in self.rows.outbox if each.due_at > self.clock]
        for row in due:
            message = decode(row.message)
            self.do(
                self.bus.publish(message, mandatory=False)
                if row.queue is None
                else self.bus.send(row.queue, message)
            )
        self.receive_answers()

    def _note_change(self, before: Job | None, fact: AnyMessage | None = None) -> None:
        after = self.job
        if before is not None and after is not None:
            self.wrong += wrong_change(before, after)
        self.alive = {claim for claim in self.alive if after is not None and after.holds(*claim)}
        self.receive_answers(fact)

    def _note_fact(self, before: Job | None, fact: StageFact) -> None:
        """Only facts of the live claim may change the job."""
        claim, after = (fact.stage, fact.claim), self.job
        was = before is not None and before.holds(*claim)
        still = after is not None and after.holds(*claim)
        rules = {
            "it is not of the live claim, and changed the job": (
                was or isinstance(fact, Started) or after == before
            ),
            "it was the claim's last, which lives on": not (
                still and isinstance(fact, Result | Interruption | StageFailed)
            ),
            "it was published by the live claim, which was refused": not (
                was and still and claim in self.answers.turned_away
            ),
        }
        self.wrong += [f"{type(fact).__name__}: {w}" for w, holds in rules.items() if not holds]
        self.alive = self.alive | {claim} if still else self.alive - {claim}

    # --- Workers

    def next_of(self, queue: Queue) -> Delivery | None:
        if not len(self.broker.queue(queue.name)):
            return None
        return self.do(self.workers_bus.get(queue))

    def take(self, worker: Worker) -> None:
        """Take the next trigger of the worker's stage, and claim it."""
        queue = STAGE_QUEUES[worker.stage]
        delivery = self.next_of(queue) if worker.free else None
        if delivery is None:
            return
        if not isinstance(delivery.message, TRIGGERS[worker.stage]):
            self.do(delivery.release())  # another stage's, on the same queue
            return
        self.claims += 1
        worker.delivery, worker.claim = delivery, f"claim-{self.claims}"
        self.publish_started(worker)

    def publish_started(self, worker: Worker) -> None:
        """Claim the stage, for the first time or again."""
        gpu = "card" if worker.stage in GPU_STAGES else ""
        stamp = self.stamp(worker)
        self.publish(STARTED[worker.stage](**stamp, gpu=gpu), worker.reply_queue.name)

    def stamp(self, worker: Worker) -> dict[str, Any]:
        attempt = worker.granted.attempt if worker.granted else 0
        return {
            "job": "job", "stage": worker.stage, "claim": worker.claim,
            "attempt": attempt, "worker": worker.name,
        }  # fmt: skip

    def publish(self, fact: StageFact, reply_queue: str) -> None:
        self.published.append((fact, reply_queue))
        self.deliver(fact, reply_queue)

    def deliver(self, fact: Message, reply_queue: str | None = None) -> None:
        """Publish a fact and record it."""
        self.do(self.workers_bus.publish(fact, reply_to=reply_queue, mandatory=False))
        self.record()

    def receive_answers(self, to: AnyMessage | None = None) -> None:
        """Each worker gets its answers, whether a fact or something else caused them."""
        for worker in self.every_worker():
            while (delivery := self.next_of(worker.reply_queue)) is not None:
                self.do(delivery.ack())
                self.answers.receive(delivery.message, to)
                self._receive(worker, delivery.message)

    def _receive(self, worker: Worker, answer: AnyMessage) -> None:
        if getattr(answer, "claim", None) != worker.claim:
            return
        if worker.delivery is not None and isinstance(answer, ClaimGranted | ClaimRefused):
            self.do(worker.delivery.ack())
            worker.delivery = None
        if isinstance(answer, ClaimGranted):
            worker.granted = answer
        elif isinstance(answer, ClaimRefused):
            worker.clear()

    def die(self, worker: Worker) -> None:
        """The worker crashes; what it had not acked goes back to its queue."""
        if worker.delivery is not None:
            self.do(worker.delivery.release())
        worker.clear()

    def every_worker(self) -> Iterator[Worker]:
        for both in self.workers.values():
            yield from both

    def deliver_again(self, stage: Stage) -> None:
        """Deliver the trigger of a stage again."""
        job = self.job
        if job is not None and stage in job.stages:
            trigger = decode(job.stages[stage].trigger)
            self.do(self.bus.send(STAGE_QUEUES[stage].name, trigger))

    def purge(self, queue: Queue) -> None:
        while (delivery := self.next_of(queue)) is not None:
            self.do(delivery.ack())

    # --- Checks

    def contradictions(self) -> list[str]:
        """What is wrong with the record, its changes or the messages. Empty: nothing."""
        job = self.job
        return [
            *self.wrong,
            *self.answers.wrong,
            *[f"dead-lettered: {each.reason}" for each in self.broker.dead_letters],
            *(validity(job) if job else []),
            *(_wrong_times(job, self.clock) if job else []),
            *(self._wrong_ends(job) if job else []),
            *self._wrong_webhooks(),
        ]

    def _wrong_ends(self, job: Job) -> list[str]:
        """Each run that is over has published its end once, and no other run has."""
        ends = [each for each in self.rows.caused if isinstance(each, tuple(ENDS))]
        by_run = Counter(cast("JobCompleted", each).run for each in ends)
        over = job.run if job.ended else job.run - 1
        wrong = [] if by_run == dict.fromkeys(range(1, over + 1), 1) else [f"ends by run: {by_run}"]
        if job.ended and ends and ENDS[cast("Any", type(ends[-1]))] != job.status:
            wrong.append(f"it is {job.status}, and {type(ends[-1]).__name__} was published")
        return wrong

    def _wrong_webhooks(self) -> list[str]:
        dues = [each for each in self.rows.caused if isinstance(each, WebhookDue)]
        tries = Counter((each.webhook_id, each.attempt) for each in dues)
        runs: dict[str, set[int]] = {}
        for each in dues:
            runs.setdefault(each.webhook_id, set()).add(each.run)
        return [
            *[f"webhook {each} is due {n} times" for each, n in tries.items() if n > 1],
            *[f"webhook {each} is of runs {of}" for each, of in runs.items() if len(of) > 1],
        ]

    def zombies(self) -> list[str]:
        """Open stages that no worker holds and that no trigger is queued for."""
        job = self.live
        if job is None:
            return []
        records = [(stage, record) for stage, record in job.stages.items() if record.open]
        idle = [
            f"no trigger of {stage} is queued" for stage, _ in records if not self._is_queued(stage)
        ]
        return idle if records else ["the job has nothing left to do, and has not ended"]

    def _is_queued(self, stage: Stage) -> bool:
        return len(self.broker.queue(STAGE_QUEUES[stage].name)) > 0


# --- A record ---------------------------------------------------------------------------------


def validity(job: Job) -> list[str]:
    """Everything that is wrong with a record. Empty: nothing."""
    wrong = [
        *(text for text, holds in _of_the_job(job).items() if not holds),
        *(wrong for stage in job.stages for wrong in _wrong_stage(job, stage)),
    ]
    return [f"{job.status}: {each}" for each in wrong]


def _of_the_job(job: Job) -> dict[str, bool]:
    still_open = [stage for stage, record in job.stages.items() if record.open]
    given_up = {
        record.failed
        for stage, record in job.stages.items()
        if record.failed is not None and stage not in PUBLICATIONS
    }
    return {
        "the record survives its encoding": (
            msgspec.json.decode(msgspec.json.encode(job), type=Job) == job
        ),
        "an ended job has a time of its end": job.ended == (job.ended_at is not None),
        "only a failed job has an error": (job.error is not None) == (job.status in RETRYABLE),
        "a queued job has not started": job.status != "IN_QUEUE" or job.started_at is None,
        "a job in progress has started": job.status != "IN_PROGRESS" or job.started_at is not None,
        "a live job has something left to do": job.ended or bool(still_open),
        "a stage that was given up ends the job": (
            job.ended or not given_up or "model_publication" in still_open
        ),
        "a model is published before its job fails": (
            job.status != "FAILED" or "model_publication" not in still_open
        ),
        "a failed job has the error of a stage": job.status != "FAILED" or job.error in given_up,
        "a completed job has no work left": job.status != "COMPLETED" or _is_complete(job),
        "secrets are dropped when no longer needed": (
            job.status not in ("COMPLETED", "CANCELLED") or job.s3 is None
        ),
    }


def _is_complete(job: Job) -> bool:
    if job.checks:
        return job.stages["staging"].done
    published = "bucket_check" in job.stages
    wanted: dict[Stage, bool] = {
        "training": job.trains,
        "generation": job.draws,
        "model_publication": job.trains and published,
        "image_publication": "generation" in job.stages and published,
    }
    left_out = [stage for stage, is_wanted in wanted.items() if is_wanted > (stage in job.stages)]
    ended = (
        record.done or (stage in PUBLICATIONS and record.failed is not None)
        for stage, record in job.stages.items()
    )
    return all(ended) and not left_out


def _wrong_stage(job: Job, stage: Stage) -> list[str]:
    record = job.stages[stage]
    rules = {
        "only open work is claimed": record.claim is None or record.open,
        "no ended claim is live": (
            record.claim is None or record.claim.id not in record.ended_claims
        ),
        "a claim ends once": len(set(record.ended_claims)) == len(record.ended_claims),
        "each attempt is one claim": record.attempts == len(_claims(record)),
        "the newest attempt is the live one": (
            record.claim is None or record.claim.attempt == record.attempts
        ),
        "done is not failed": not (record.done and record.failed is not None),
        "three failures are the end": (
            record.failures < retry.FAILURES_ALLOWED or record.failed is not None
        ),
        "its trigger is of the right type": isinstance(decode(record.trigger), TRIGGERS[stage]),
        "the stages before it are done": all(
            job.stages[each].done for each in _stages_before(job, stage) if each in job.stages
        ),
        "only requested stages are opened": job.trains or stage != "training",
        "no GPU stage starts before the bucket check": (
            stage not in GPU_STAGES or record.attempts == 0 or not _bucket_is_unchecked(job)
        ),
    }
    return [f"{stage}: {text}" for text, holds in rules.items() if not holds]


def _claims(record: StageRecord) -> list[str]:
    return [*record.ended_claims, *([record.claim.id] if record.claim else [])]


def _stages_before(job: Job, stage: Stage) -> tuple[Stage, ...]:
    first: tuple[Stage, ...] = ("training",) if job.trains else ("staging",)
    before: dict[Stage, tuple[Stage, ...]] = {
        "training": ("staging",),
        "generation": first,
        "model_publication": ("training",),
        "image_publication": ("generation",),
    }
    return before.get(stage, ())


def _bucket_is_unchecked(job: Job) -> bool:
    record = job.stages.get("bucket_check")
    return record is not None and not record.done


def _wrong_times(job: Job, now: float) -> list[str]:
    times = (delay_time(job, now), execution_time(job, now))
    return [f"times below zero: {times}"] if min(times) < 0 else []


# --- A change ---------------------------------------------------------------------------------


def wrong_change(before: Job, after: Job) -> list[str]:
    """Everything that is wrong with a change of the record. Empty: nothing."""
    rules = {
        "runs follow one another": after.run in (before.run, before.run + 1),
        "no claim is live when a run begins": (
            after.run == before.run or not any(each.claim for each in after.stages.values())
        ),
        "only what failed runs again": after.run == before.run or before.status in RETRYABLE,
        "an end is final for its run": (
            not before.ended or after.run != before.run or _essence(after) == _essence(before)
        ),
        "no job goes back into the queue": (
            (before.status, after.status) != ("IN_PROGRESS", "IN_QUEUE")
        ),
        "no stage is removed": before.stages.keys() <= after.stages.keys(),
        "the model is never lost": before.checkpoint is None or after.checkpoint is not None,
    }
    known = before.stages.keys() & after.stages.keys()
    return [
        *(text for text, holds in rules.items() if not holds),
        *(
            w
            for stage in known
            for w in _wrong_stage_change(before.stages[stage], after.stages[stage])
        ),
    ]


def _essence(job: Job) -> Job:
    """Without what may still change after the end: webhook outcomes, refused claims."""
    return transitions.replace(
        job, refused_claims=(), webhook_attempts=0, webhook_awaited=0, webhook_settled=False,
        webhook_tries=(),
    )  # fmt: skip


def _wrong_stage_change(before: StageRecord, after: StageRecord) -> list[str]:
    rules = {
        "attempts only grow": before.attempts <= after.attempts,
        "ended claims stay ended": after.ended_claims[: len(before.ended_claims)]
        == before.ended_claims,
        "a claim that is dropped has ended": {*_claims(before)} <= {*_claims(after)},
        "what is done stays done": not before.done or after.done,
    }
    return [text for text, holds in rules.items() if not holds]
