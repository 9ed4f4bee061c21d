"""No zombie jobs: with any messages, losses and requests in any order, every job ends once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast, get_args

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from services.gateway.background.supervisor import LOST_AFTER_HEARTBEATS
from services.gateway.jobs import transitions, webhook_schedule
from services.gateway.jobs.record import Job
from services.gateway.jobs.request_parser import parse_request
from shared.messaging.messages import (
    STAGES,
    ArtifactsPublished,
    CheckpointSampled,
    CheckpointSaved,
    GenerationInterrupted,
    GenerationProgressed,
    PublicationInterrupted,
    PublicationProgressed,
    ResumePointSaved,
    Stage,
    StageFact,
    StageFailed,
    StagingInterrupted,
    StagingProgressed,
    TrainingInterrupted,
    TrainingProgressed,
    WebhookDelivered,
    WebhookDue,
    WebhookFailed,
)
from shared.messaging.topology import STAGE_QUEUES
from shared.request import Command
from tests.support.gateway_world import STARTED
from tests.support.played_job import HEARTBEAT, SILENCE, PlayedJob, Worker
from tests.unit.gateway.test_transitions import (
    ROW,
    artifact,
    bucket_checked,
    checkpoint_final,
    dataset_staged,
    images_generated,
    model_staged,
    sample,
    samples_generated,
)

TRAIN = {"train": {"data_url": "https://x.org/a.zip"}}
DRAW = {"inference": {"prompt": "a cat"}}
REQUESTS: dict[str, dict[str, Any]] = {
    "train": TRAIN,
    "train and draw": {**TRAIN, **DRAW},
    "draw": {"model": "org/name", **DRAW},
    "check": TRAIN,
}
POLICY = {"executionTimeout": 3_600_000, "ttl": 7_200_000}
"""Milliseconds; longer than any silence in a test, so that no zombie ends by a time limit."""
EVENTS = ("start", "output", "completed")
A_WHILE = 3
"""No job is ended before so many facts, so that most jobs get some work done."""
ROUNDS = 40
"""Rounds in which all requested work is taken; afterwards any job is done."""

Make = Callable[[dict[str, Any]], StageFact]


def made(kind: type[StageFact], /, **fields: Any) -> Make:
    return lambda stamp: kind(**stamp, **fields)


def stamped(make: Callable[[str], StageFact]) -> Make:
    """A fact that another test makes for a claim, from any worker."""
    return lambda stamp: msgspec.structs.replace(make(stamp["claim"]), **stamp)


RESULTS: dict[str, Make] = {
    "DatasetStaged": stamped(dataset_staged),
    "ModelStaged": stamped(model_staged),
    "BucketChecked": stamped(bucket_checked),
    "CheckpointFinal": stamped(checkpoint_final),
    "ImagesGenerated": stamped(images_generated),
    "ArtifactsPublished": made(ArtifactsPublished, urls={"key": "https://bucket/key"}),
}
OUTCOMES: dict[str, Make] = {
    "passing": made(StageFailed, kind="passing", reason="it broke"),
    "refused": made(StageFailed, kind="refused", reason="it is bad"),
}
KEPT: dict[str, Make] = {
    "CheckpointSaved": made(CheckpointSaved, artifact=artifact("e1"), step=1, epoch=1, command=1),
    "CheckpointSampled": made(
        CheckpointSampled, snapshot="s/", base_model="b/", row=ROW, command=1
    ),
    "ResumePointSaved": made(ResumePointSaved, prefix="r/", step=1, epoch=0),
}
PROGRESSED: dict[Stage, type[StageFact]] = {
    "staging": StagingProgressed,
    "bucket_check": PublicationProgressed,
    "training": TrainingProgressed,
    "generation": GenerationProgressed,
    "model_publication": PublicationProgressed,
    "image_publication": PublicationProgressed,
}
INTERRUPTED: dict[Stage, type[StageFact]] = {
    "staging": StagingInterrupted,
    "bucket_check": PublicationInterrupted,
    "training": TrainingInterrupted,
    "generation": GenerationInterrupted,
    "model_publication": PublicationInterrupted,
    "image_publication": PublicationInterrupted,
}
FORGED: dict[str, Make] = {
    **RESULTS,
    **OUTCOMES,
    **KEPT,
    **{
        kind.__name__: made(kind)
        for by_stage in (STARTED, PROGRESSED, INTERRUPTED)
        for kind in cast("dict[Stage, type[StageFact]]", by_stage).values()
    },
}


def result_of(job: Job, stage: Stage) -> Make:
    match stage:
        case "staging":
            return RESULTS["DatasetStaged" if job.trains else "ModelStaged"]
        case "bucket_check":
            return RESULTS["BucketChecked"]
        case "training":
            return RESULTS["CheckpointFinal"]
        case "generation":
            return RESULTS["ImagesGenerated"]
    return RESULTS["ArtifactsPublished"]


SLOT = st.sampled_from([0, 1])
OUTCOME = st.sampled_from(["done", "done", "done", "passing", "refused", "interrupted"])


LATE = st.sampled_from([False, False, True])
at_an_open_stage = precondition(lambda self: bool(self._open()))
after_a_while = precondition(lambda self: len(self.played.published) > A_WHILE)
with_a_webhook = precondition(lambda self: bool(self._dues()))


class Life(RuleBasedStateMachine):
    """All parties act at random; then all workers are gone, and the job must still end."""

    @initialize(
        kind=st.sampled_from(sorted(REQUESTS)),
        bucket=st.booleans(),
        hooked=st.booleans(),
        tried=st.booleans(),
        done=st.integers(0, 4),
    )
    def submit(
        self,
        kind: str,
        bucket: bool,  # noqa: FBT001
        hooked: bool,  # noqa: FBT001
        tried: bool,  # noqa: FBT001
        done: int,
    ) -> None:
        """Some stages are done, perhaps before the bucket check, and then the test begins."""
        request = parse_request({"input": REQUESTS[kind], "policy": POLICY})
        if hooked:
            hook = {"webhook": "https://example.com/hook", "webhook_events": EVENTS}
            request = msgspec.structs.replace(request, **hook)
        sealed = "sealed" if bucket else None
        self.played = PlayedJob(request, sealed=sealed, checks=kind == "check")
        self.late: list[tuple[StageFact, str]] = []
        for _ in range(done):
            for stage in self._open():
                if tried or stage != "bucket_check":
                    self._do(self.played.workers[stage][0], result_of)

    # --- Workers

    @at_an_open_stage
    @rule(data=st.data(), slot=SLOT)
    def a_worker_takes_work(self, data: st.DataObject, slot: int) -> None:
        self.played.take(self._worker(data, slot))

    @at_an_open_stage
    @rule(data=st.data())
    def work_is_delivered_twice(self, data: st.DataObject) -> None:
        """Deliver again, as a broker that missed an ack may; both workers take it."""
        stage = data.draw(st.sampled_from(self._open()))
        self.played.deliver_again(stage)
        for worker in self.played.workers[stage]:
            self.played.take(worker)

    @at_an_open_stage
    @rule(data=st.data(), slot=SLOT)
    def a_claim_is_repeated(self, data: st.DataObject, slot: int) -> None:
        worker = self._worker(data, slot)
        if not worker.free:
            self.played.publish_started(worker)

    @at_an_open_stage
    @rule(data=st.data(), slot=SLOT, outcome=OUTCOME, late=LATE)
    def a_worker_ends_work(
        self,
        data: st.DataObject,
        slot: int,
        outcome: str,
        late: bool,  # noqa: FBT001
    ) -> None:
        worker = self._worker(data, slot)
        self._do(worker, partial(self._outcome, outcome), late=late)

    def _open(self) -> list[Stage]:
        job = self.played.live
        return [stage for stage, record in job.stages.items() if record.open] if job else []

    def _worker(self, data: st.DataObject, slot: int) -> Worker:
        return self.played.workers[data.draw(st.sampled_from(self._open()))][slot]

    def _outcome(self, outcome: str, job: Job, stage: Stage) -> Make:
        if outcome == "done":
            return result_of(job, stage)
        return made(INTERRUPTED[stage]) if outcome == "interrupted" else OUTCOMES[outcome]

    @rule(slot=SLOT, kind=st.sampled_from(sorted(KEPT)), late=LATE)
    def the_trainer_saves_something(self, slot: int, kind: str, late: bool) -> None:  # noqa: FBT001
        worker = self.played.workers["training"][slot]
        if worker.granted is not None:
            fact = KEPT[kind](self.played.stamp(worker))
            self._publish(fact, worker.reply_queue.name, late=late)

    @at_an_open_stage
    @rule(data=st.data(), slot=SLOT)
    def a_worker_dies(self, data: st.DataObject, slot: int) -> None:
        self.played.die(self._worker(data, slot))

    @at_an_open_stage
    @rule(data=st.data(), slot=SLOT, kind=st.sampled_from(sorted(FORGED)))
    def a_worker_publishes_any_fact(self, data: st.DataObject, slot: int, kind: str) -> None:
        worker = self._worker(data, slot)
        self.played.take(worker)
        if worker.granted is not None:
            self.played.publish(FORGED[kind](self.played.stamp(worker)), worker.reply_queue.name)

    @rule(data=st.data(), kind=st.sampled_from(sorted(FORGED)))
    def any_fact_is_published(self, data: st.DataObject, kind: str) -> None:
        """With any claim, at any stage."""
        stage, claim = data.draw(st.sampled_from(self._live_claims() + self._claims()))
        stamp = {"job": "job", "stage": stage, "claim": claim, "attempt": 1, "worker": "who"}
        self.played.publish(FORGED[kind](stamp), self.played.workers[stage][0].reply_queue.name)

    def _live_claims(self) -> list[tuple[Stage, str]]:
        stages = self.played.live.stages if self.played.live else {}
        return [(stage, each.claim.id) for stage, each in stages.items() if each.claim]

    def _claims(self) -> list[tuple[Stage, str]]:
        known = [f"claim-{number}" for number in range(1, self.played.claims + 1)]
        return [(stage, claim) for claim in [*known, "foreign"] for stage in STAGES]

    @precondition(lambda self: bool(self.played.published))
    @rule(data=st.data())
    def a_fact_is_delivered_again(self, data: st.DataObject) -> None:
        fact, reply_queue = data.draw(st.sampled_from(self.played.published))
        self.played.deliver(fact, reply_queue)

    @precondition(lambda self: bool(self.late))
    @rule(data=st.data())
    def a_late_fact_is_delivered(self, data: st.DataObject) -> None:
        number = data.draw(st.integers(0, len(self.late) - 1))
        self.played.publish(*self.late.pop(number))

    def _publish(self, fact: StageFact, reply_queue: str, *, late: bool) -> None:
        if late:
            self.late.append((fact, reply_queue))
        else:
            self.played.publish(fact, reply_queue)

    @rule(step=st.integers(0, 3))
    def samples_are_drawn(self, step: int) -> None:
        self.played.deliver(samples_generated(sample(step, 0)))

    # --- The gateway and its broker

    @rule(number=st.integers(1, LOST_AFTER_HEARTBEATS + 2), working=st.booleans())
    def heartbeats_arrive(self, number: int, working: bool) -> None:  # noqa: FBT001
        for _ in range(number):
            if working:
                self._publish_progress()
            self.played.heartbeat()

    def _publish_progress(self) -> None:
        for worker in self.played.every_worker():
            if worker.granted is not None:
                fact = PROGRESSED[worker.stage](**self.played.stamp(worker))
                self.played.publish(fact, worker.reply_queue.name)

    @rule()
    def a_heartbeat_is_lost(self) -> None:
        self.played.heartbeat(lost=True)

    @precondition(lambda self: self.played.live is None)
    @rule()
    def it_times_out_when_it_has_ended(self) -> None:
        """The check was made before the end, and is recorded after it."""
        self.played.change(lambda job: transitions.time_out(job, "late", self.played.clock))

    @rule(data=st.data())
    def a_claim_is_lost(self, data: st.DataObject) -> None:
        """Of any claim, live or not."""
        stage, claim = data.draw(st.sampled_from(self._claims()))
        lose = partial(transitions.lose_claim, stage=stage, claim=claim, heartbeat=HEARTBEAT)
        self.played.change(lambda job: lose(job, now=self.played.clock))

    @at_an_open_stage
    @rule(data=st.data())
    def a_queue_is_emptied(self, data: st.DataObject) -> None:
        self.played.purge(STAGE_QUEUES[data.draw(st.sampled_from(self._open()))])

    @rule(seconds=st.sampled_from([-30.0, 30.0]))
    def the_clock_is_set(self, seconds: float) -> None:
        self.played.pass_time(seconds)

    # --- The user

    @after_a_while
    @rule()
    def it_is_cancelled(self) -> None:
        self._cancel()

    def _cancel(self) -> None:
        self.played.change(lambda job: transitions.cancel(job, self.played.clock))
        assert self.played.live is None

    @after_a_while
    @rule()
    def it_is_retried(self) -> None:
        self._retry()

    def _retry(self) -> None:
        self.played.change(lambda job: transitions.rerun(job, self.played.clock))
        self.played.change(lambda job: transitions.release(job, self.played.clock))
        self.played.relay()

    @rule(crowded=st.booleans())
    def its_owner_s_uploads_crowd_out_others(self, crowded: bool) -> None:  # noqa: FBT001
        self.played.crowd.owners = frozenset(["owner"] if crowded else [])

    @rule(kind=st.sampled_from(get_args(Command)))
    def a_command_is_issued(self, kind: Command) -> None:
        self.played.change(partial(transitions.issue_command, kind=kind))

    @after_a_while
    @rule(timeout=st.sampled_from(sorted(POLICY)), again=st.booleans())
    def it_times_out(self, timeout: str, again: bool) -> None:  # noqa: FBT001
        """During some worker's work, if possible; perhaps in another run."""
        for stage in self._open():
            self.played.take(self.played.workers[stage][0])
        job = self.played.live
        if job is None or (timeout == "executionTimeout" and job.started_at is None):
            return
        since = cast("float", job.started_at) if timeout == "executionTimeout" else job.created_at
        self.played.clock = self.played.latest = max(
            self.played.latest, since + POLICY[timeout] / 1000 + 1.0
        )
        self.played.heartbeat()
        assert self.played.live is None
        if again:
            self._retry()

    @with_a_webhook
    @rule(data=st.data(), taken=st.booleans())
    def a_webhook_is_tried(self, data: st.DataObject, taken: bool) -> None:  # noqa: FBT001
        due = self._due(data)
        webhook: dict[str, Any] = {
            "job": "job", "run": due.run, "attempt": due.attempt, "webhook_id": due.webhook_id,
        }  # fmt: skip
        failed = WebhookFailed(**webhook, reason="answered with status 500")
        self.played.deliver(WebhookDelivered(**webhook, status=200) if taken else failed)

    @with_a_webhook
    @rule(data=st.data())
    def a_webhook_is_sent_again(self, data: st.DataObject) -> None:
        due = self._due(data)
        resend = partial(
            webhook_schedule.resend_webhook, webhook=due.webhook_id, now=self.played.clock
        )
        self.played.change(resend)

    def _due(self, data: st.DataObject) -> WebhookDue:
        dues = self._dues()
        return dues[data.draw(st.integers(0, len(dues) - 1))]

    def _dues(self) -> list[WebhookDue]:
        return [each for each in self.played.rows.caused if isinstance(each, WebhookDue)]

    @precondition(lambda self: len(self.played.published) > 5 * A_WHILE)
    @rule()
    def it_is_removed(self) -> None:
        self.played.remove()

    # --- What must hold

    @invariant()
    def nothing_contradicts_itself(self) -> None:
        if hasattr(self, "played"):
            assert self.played.contradictions() == []

    def teardown(self) -> None:
        if not hasattr(self, "played"):
            return
        try:
            self._stop_all_workers()
            endings = (self._cancel, self._let_all_succeed, self._let_all_fail)
            endings[len(self.played.published) % len(endings)]()
            self.nothing_contradicts_itself()
            assert self.played.live is None
        finally:
            self.played.close()

    def _stop_all_workers(self) -> None:
        self.played.crowd.owners = frozenset()
        """No worker is left: all open work must be queued again."""
        self.played.clock = self.played.latest
        for worker in self.played.every_worker():
            self.played.die(worker)
        for _ in range(SILENCE if self.played.live else 1):
            self.played.heartbeat()
        self.nothing_contradicts_itself()
        assert self.played.zombies() == []

    def _let_all_succeed(self) -> None:
        """Every worker finishes its work, so the job must end."""
        self._work(result_of)

    def _let_all_fail(self) -> None:
        """Every worker fails its work, so the job must end."""
        self._work(lambda _job, _stage: OUTCOMES["passing"])

    def _work(self, make: Callable[[Job, Stage], Make]) -> None:
        for _ in range(ROUNDS if self.played.live else 1):
            for worker in self.played.every_worker():
                self._do(worker, make)
            self.played.heartbeat()

    def _do(
        self, worker: Worker, make: Callable[[Job, Stage], Make], *, late: bool = False
    ) -> None:
        """Take work and end it, or end the current work."""
        self.played.take(worker)
        job = self.played.job
        if job is not None and worker.granted is not None:
            fact = make(job, worker.stage)(self.played.stamp(worker))
            worker.clear()
            self._publish(fact, worker.reply_queue.name, late=late)


def of_examples(number: int) -> settings:
    return settings(
        deadline=None, max_examples=number, stateful_step_count=60,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )  # fmt: skip


class ManyLives(Life):
    """For the long form."""


TestLife = Life.TestCase
TestLife.settings = of_examples(10)
TestManyLives = pytest.mark.long(ManyLives.TestCase)
TestManyLives.settings = of_examples(100)
