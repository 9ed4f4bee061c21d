"""A job's transitions: the record and the messages after each fact."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from msgspec.structs import replace

from services.gateway.jobs import outputs, transitions, webhook_schedule
from services.gateway.jobs.outputs import without_checkpoints
from services.gateway.jobs.presenter import artifacts, progress, results
from services.gateway.jobs.record import (
    NOT_DRAWN,
    Effect,
    Job,
    StageRecord,
    Step,
    clip_skip_of,
    delay_time,
    execution_time,
    files_due_at,
    needed_model,
    overdue,
    unfulfilled,
    unpublished,
    why_no_command,
)
from services.gateway.jobs.request_parser import parse_request
from services.gateway.jobs.transitions import advance
from services.gateway.ports import END_STATUSES
from shared import retry
from shared.messaging.messages import (
    STAGES,
    AnyMessage,
    Artifact,
    ArtifactsPublished,
    BucketChecked,
    BucketDue,
    CheckpointFinal,
    CheckpointSampled,
    CheckpointSaved,
    ClaimGranted,
    ClaimRefused,
    CommandIssued,
    DatasetStaged,
    DrawnImage,
    DrawnSample,
    GenerationInterrupted,
    GenerationStarted,
    ImagesGenerated,
    JobCancelled,
    JobCompleted,
    JobFailed,
    JobStarted,
    JobSubmitted,
    JobTimedOut,
    Message,
    ModelStaged,
    PublicationStarted,
    ResumePointSaved,
    SampleRow,
    SamplesGenerated,
    SavedCheckpoint,
    Stage,
    StageFact,
    StageFailed,
    StagingDue,
    StagingInterrupted,
    StagingProgressed,
    StagingStarted,
    TrainingInterrupted,
    TrainingProgressed,
    TrainingStarted,
    WebhookDelivered,
    WebhookDue,
    WebhookFailed,
    decode,
    stable_id,
)
from shared.request import Command, Inference, ModelSource, Train

HEARTBEAT = 10.0
ENDED: list[type[Message]] = [JobCompleted, WebhookDue]
START = 1_000_000.0
HOOK = "https://example.com/hook"
END_HOOK = stable_id("job", 1, "completed", 0)
STARTED: dict[Stage, Any] = {
    "staging": StagingStarted,
    "bucket_check": PublicationStarted,
    "training": TrainingStarted,
    "generation": GenerationStarted,
    "model_publication": PublicationStarted,
    "image_publication": PublicationStarted,
}


class JobHistory:
    """A job that receives one fact after another."""

    def __init__(
        self,
        *,
        trains: bool = True,
        draws: bool = True,
        bucket: bool = False,
        webhook: str | None = HOOK,
        released: bool = True,
        **train: Any,
    ) -> None:
        entry = {"inference": {"prompt": "a cat"}} if draws else {}
        training = {"train": {"data_url": "https://x.org/a.zip", **train}}
        body = {"input": {**(training if trains else {"model": "org/name"}), **entry}}
        request = msgspec.structs.replace(parse_request(body), webhook=webhook)
        sealed = "sealed" if bucket else None
        self.now = START
        step = transitions.admit("job", "owner", request, body["input"], sealed=sealed, now=START)
        self.effects: list[Effect] = []
        self.apply(step)
        if released:
            self.apply(transitions.release(self.job, START))

    def apply(self, step: Step) -> list[Message]:
        """Apply a step, and return its messages."""
        self.job = step.job
        self.effects += step.effects
        return [effect.message for effect in step.effects]

    def receive(self, fact: AnyMessage, *, reply_queue: str | None = "control") -> list[Message]:
        self.now += 1.0
        return self.apply(
            advance(self.job, fact, reply_queue=reply_queue, now=self.now, heartbeat=HEARTBEAT)
        )

    def claim(
        self, stage: Stage, claim: str, gpu: str = "H100", asked_by: str | None = None
    ) -> ClaimGranted | ClaimRefused:
        fact = STARTED[stage](
            job="job", stage=stage, claim=claim, worker="w", gpu=gpu, asked_by=asked_by
        )
        answers = [
            each for each in self.receive(fact) if isinstance(each, ClaimGranted | ClaimRefused)
        ]
        assert len(answers) == 1
        return answers[0]

    def stage(self, claim: str = "s") -> list[Message]:
        if "bucket_check" in self.job.stages:
            self.check_bucket()
        assert isinstance(self.claim("staging", claim), ClaimGranted)
        return self.receive(dataset_staged(claim) if self.job.trains else model_staged(claim))

    def check_bucket(self, warning: str | None = None) -> list[Message]:
        assert isinstance(self.claim("bucket_check", "b"), ClaimGranted)
        return self.receive(bucket_checked("b", warning))

    def train(self, claim: str = "t") -> list[Message]:
        assert isinstance(self.claim("training", claim), ClaimGranted)
        return self.receive(checkpoint_final(claim))

    def draw(self, claim: str = "g") -> list[Message]:
        assert isinstance(self.claim("generation", claim), ClaimGranted)
        return self.receive(images_generated(claim))

    def publish(self, stage: Stage, claim: str) -> list[Message]:
        assert isinstance(self.claim(stage, claim), ClaimGranted)
        urls = {f"key-of-{stage}": f"https://bucket/{stage}"}
        return self.receive(ArtifactsPublished(job="job", stage=stage, claim=claim, urls=urls))

    def fail(self, stage: Stage, claim: str, kind: Any = "passing") -> list[Message]:
        return self.receive(
            StageFailed(job="job", stage=stage, claim=claim, kind=kind, reason="it broke")
        )

    def command(self, kind: Command) -> list[Message]:
        return self.apply(transitions.issue_command(self.job, kind))

    @property
    def retries(self) -> list[Effect]:
        return [effect for effect in self.effects if effect.durable and effect.queue]


def bucket_checked(claim: str, warning: str | None = None) -> BucketChecked:
    return BucketChecked(job="job", stage="bucket_check", claim=claim, warning=warning)


def dataset_staged(claim: str) -> DatasetStaged:
    return DatasetStaged(
        job="job", stage="staging", claim=claim, train=Train(data_url="https://x.org/a.zip"),
        inference=(Inference(prompt="a cat"),), dataset="d/", base_model="b/",
        report={"images": 4},
    )  # fmt: skip


def model_staged(claim: str) -> ModelStaged:
    return ModelStaged(
        job="job", stage="staging", claim=claim, inference=(Inference(prompt="a cat"),), model="m/"
    )


def checkpoint_final(claim: str) -> CheckpointFinal:
    return CheckpointFinal(
        job="job", stage="training", claim=claim, model="m/", checkpoint=artifact("last"),
        summary={"steps": 8},
    )  # fmt: skip


def images_generated(claim: str) -> ImagesGenerated:
    image = DrawnImage(
        artifact=artifact("0.png"), prompt="a cat", width=512, height=512, seed=1,
        num_inference_steps=50, guidance_scale=7.5, scheduler="K-LMS",
    )  # fmt: skip
    return ImagesGenerated(job="job", stage="generation", claim=claim, images=(image,))


def artifact(name: str) -> Artifact:
    return Artifact(name=name, kind="checkpoint", key=f"k/{name}", bytes=1, sha256="0")


def kinds(messages: list[Message]) -> list[type[Message]]:
    return [type(message) for message in messages]


# --- The whole path ---------------------------------------------------------------------------


def test_a_job_is_admitted_staged_trained_drawn_and_completed() -> None:
    history = JobHistory()
    assert kinds([each.message for each in history.effects]) == [JobSubmitted, StagingDue]
    assert history.job.status == "IN_QUEUE"

    assert isinstance(history.claim("staging", "s"), ClaimGranted)
    assert history.job.status == "IN_QUEUE"
    assert history.receive(dataset_staged("s")) == []
    assert history.job.report == {"images": 4}

    history.now = START + 59.0
    grant = history.claim("training", "t", gpu="H100")
    assert grant == ClaimGranted(
        job="job", stage="training", claim="t", attempt=1,
        submitted_at=START, started_at=START + 60.0,
    )  # fmt: skip
    assert (history.job.status, history.job.gpu) == ("IN_PROGRESS", "H100")
    assert JobStarted(job="job", run=1, gpu="H100") in [each.message for each in history.effects]
    assert history.receive(checkpoint_final("t")) == []

    history.now = START + 99.0
    sent = history.draw()
    assert kinds(sent) == [JobCompleted, WebhookDue]
    assert sent[0] == JobCompleted(job="job", run=1, output={"steps": 8})
    assert (history.job.status, history.job.error) == ("COMPLETED", None)
    assert delay_time(history.job, history.now + 1000) == 60_000
    assert execution_time(history.job, history.now + 1000) == 41_000


def test_the_report_of_the_images_takes_the_place_of_the_trainings() -> None:
    history = JobHistory()
    history.stage()
    history.receive(samples_generated(sample(1, 0)))
    history.claim("training", "t")
    first, second = artifact("report.html"), replace(artifact("report.html"), key="k/second")
    history.receive(replace(checkpoint_final("t"), html_report=first))
    assert history.job.html_report == first

    grant = history.claim("generation", "g")
    assert isinstance(grant, ClaimGranted)
    assert (grant.submitted_at, grant.drawn) == (START, (sample(1, 0),))
    history.receive(replace(images_generated("g"), html_report=second))

    reports = [each for each in artifacts(history.job) if each.name == "report.html"]
    assert reports == [second]


def test_without_images_the_model_is_the_end() -> None:
    history = JobHistory(draws=False, webhook=None)
    history.stage()
    assert kinds(history.train()) == [JobCompleted]


def test_with_a_bucket_the_job_waits_for_both_publications_in_any_order() -> None:
    history = JobHistory(bucket=True)
    history.stage()
    history.train()
    history.draw()
    assert history.job.status == "IN_PROGRESS"
    history.publish("image_publication", "i")
    assert history.job.status == "IN_PROGRESS"
    assert kinds(history.publish("model_publication", "p")) == [JobCompleted, WebhookDue]
    assert len(history.job.urls) == 2


def test_secrets_go_to_publishers_only_and_are_wiped_at_the_end() -> None:
    history = JobHistory(bucket=True)
    history.stage()
    history.train()
    history.draw()
    history.publish("image_publication", "i")
    history.publish("model_publication", "p")
    grants = [each.message for each in history.effects if isinstance(each.message, ClaimGranted)]
    assert {grant.stage: grant.s3 for grant in grants} == {
        "staging": None, "bucket_check": "sealed", "training": None, "generation": None,
        "model_publication": "sealed", "image_publication": "sealed",
    }  # fmt: skip
    assert history.job.s3 is None


def test_the_time_so_far_is_shown_while_a_job_waits_and_runs() -> None:
    history = JobHistory()
    assert delay_time(history.job, START + 2.5) == 2500
    assert execution_time(history.job, START + 2.5) == 0
    history.stage()
    history.claim("training", "t")
    assert execution_time(history.job, history.now + 3.0) == 3000
    assert delay_time(history.job, START - 5.0) >= 0  # the clock was set back


def test_a_worker_downstream_needs_no_other_queue() -> None:
    """The fact that requests the next stage is routed by itself; no other message is sent."""
    history = JobHistory()
    history.stage()
    history.train()
    assert history.retries == []


# --- The user's bucket is tried first ---------------------------------------------------------


def test_only_a_job_with_a_bucket_has_it_tried() -> None:
    assert BucketDue(job="job", run=1) in [each.message for each in JobHistory(bucket=True).effects]
    assert kinds([each.message for each in JobHistory().effects]) == [JobSubmitted, StagingDue]


def test_a_bucket_that_refuses_ends_the_job_while_it_is_staged() -> None:
    history = JobHistory(bucket=True)
    history.claim("staging", "s")
    history.claim("bucket_check", "b")

    sent = history.fail("bucket_check", "b", kind="refused")

    assert kinds(sent) == [JobFailed, ClaimRefused, WebhookDue]
    assert isinstance(history.claim("training", "t"), ClaimRefused)


def test_no_gpu_works_before_the_bucket_was_tried_and_then_it_is_asked_again() -> None:
    history = JobHistory(bucket=True)
    assert isinstance(history.claim("staging", "s"), ClaimGranted)
    history.receive(dataset_staged("s"))
    refusal = history.claim("training", "early")
    assert isinstance(refusal, ClaimRefused)
    assert "bucket is being tried" in refusal.reason

    assert history.check_bucket() == [dataset_staged("s")]

    assert isinstance(history.claim("training", "t"), ClaimGranted)


def test_what_could_not_be_found_out_about_the_bucket_is_a_warning() -> None:
    history = JobHistory(bucket=True)

    history.check_bucket(warning="it did not answer")

    assert history.job.warnings == ("it did not answer",)


# --- Owners share the uploads to buckets -------------------------------------------------------


def test_an_upload_of_an_owner_who_has_enough_is_put_off_by_a_heartbeat() -> None:
    history = JobHistory(bucket=True)
    history.stage()
    history.train()
    started = PublicationStarted(job="job", stage="model_publication", claim="p", worker="w")
    crowded = partial(
        advance, history.job, started, reply_queue="control", now=history.now, heartbeat=HEARTBEAT
    )

    (requested, refusal) = crowded(crowding={"owner"}).effects

    assert (requested.queue, requested.delay) == ("notifier.publish", HEARTBEAT)
    assert requested.message == checkpoint_final("t")
    assert isinstance(refusal.message, ClaimRefused)
    assert isinstance(crowded(crowding={"somebody else"}).effects[0].message, ClaimGranted)


def test_an_upload_that_is_under_way_is_granted_again_however_many_there_are() -> None:
    history = JobHistory(bucket=True)
    history.stage()
    history.train()
    assert isinstance(history.claim("model_publication", "p"), ClaimGranted)

    again = PublicationStarted(job="job", stage="model_publication", claim="p", worker="w")
    step = advance(
        history.job, again, reply_queue="control", now=history.now, heartbeat=HEARTBEAT,
        crowding={"owner"},
    )  # fmt: skip

    assert isinstance(step.effects[0].message, ClaimGranted)


# --- Drawing with a finished model ------------------------------------------------------------


def test_a_job_that_trains_nothing_is_staged_drawn_and_completed() -> None:
    history = JobHistory(trains=False)
    asked = history.effects[-1].message
    assert isinstance(asked, StagingDue)
    assert (asked.train, asked.model) == (None, ModelSource(source="org/name"))
    assert history.stage() == []
    assert history.job.status == "IN_QUEUE"

    history.claim("generation", "g", gpu="H100")
    assert (history.job.status, history.job.gpu) == ("IN_PROGRESS", "H100")
    assert kinds(history.receive(images_generated("g"))) == [JobCompleted, WebhookDue]
    assert list(history.job.stages) == ["staging", "generation"]
    assert history.retries == []


def test_its_images_go_to_the_users_bucket_before_it_is_complete() -> None:
    history = JobHistory(trains=False, bucket=True)
    history.claim("staging", "s")
    history.receive(model_staged("s"))
    assert isinstance(history.claim("generation", "early"), ClaimRefused)
    assert history.check_bucket() == [model_staged("s")]
    assert history.draw() == []
    assert isinstance(history.claim("model_publication", "p"), ClaimRefused)
    assert kinds(history.publish("image_publication", "i")) == [JobCompleted, WebhookDue]


def test_what_the_fetcher_warns_of_a_model_is_among_the_jobs_warnings() -> None:
    history = JobHistory(trains=False)
    history.claim("staging", "s")

    staged = msgspec.structs.replace(model_staged("s"), warnings=("the model: ignored: extra",))
    history.receive(staged)

    assert history.job.warnings == ("the model: ignored: extra",)


def test_no_trainer_is_let_in() -> None:
    history = JobHistory(trains=False)
    history.stage()
    assert isinstance(history.claim("training", "t"), ClaimRefused)


def test_a_model_that_is_refused_or_an_inferencer_that_is_ends_the_job() -> None:
    history = JobHistory(trains=False)
    history.claim("staging", "s")
    assert kinds(history.fail("staging", "s", kind="refused")) == [JobFailed, WebhookDue]

    history = JobHistory(trains=False, bucket=True)
    history.stage()
    history.claim("generation", "g")
    assert kinds(history.fail("generation", "g", kind="refused")) == [JobFailed, WebhookDue]
    assert history.job.error == "it broke"


def test_a_drawing_that_was_lost_is_asked_for_again_from_the_inferencer() -> None:
    history = JobHistory(trains=False)
    history.stage()
    history.claim("generation", "g")
    history.apply(
        transitions.lose_claim(history.job, "generation", "g", now=history.now, heartbeat=HEARTBEAT)
    )
    (again,) = history.retries
    assert (again.queue, again.message) == ("inferencer.results", model_staged("s"))


def test_a_model_that_is_staged_after_the_end_or_twice_changes_nothing() -> None:
    history = JobHistory(trains=False)
    history.claim("staging", "s")
    history.apply(transitions.cancel(history.job, history.now))
    before = history.job
    assert kinds(history.receive(model_staged("s"))) == [ClaimRefused]
    assert history.job == before

    history = JobHistory(trains=False)
    history.stage()
    before = history.job
    assert kinds(history.receive(model_staged("s"))) == [ClaimRefused]
    assert history.job == before


def test_what_a_model_was_trained_with_is_on_record() -> None:
    assert clip_skip_of(JobHistory(clip_skip=2).job) == 2
    assert clip_skip_of(JobHistory(trains=False).job) == 0


def test_a_loras_base_model_is_needed_as_long_as_its_job_is_there_and_no_other_is() -> None:
    def ended(**fields: Any) -> JobHistory:
        history = JobHistory(draws=False)
        history.stage()
        history.claim("training", "t")
        history.receive(msgspec.structs.replace(checkpoint_final("t"), **fields))
        return history

    assert ended().job.status == "COMPLETED"
    assert needed_model(ended().job) is None
    base = needed_model(ended(lora_base="cache/b").job)
    assert base is not None
    assert base.prefix == "cache/b"


def test_while_a_trained_lora_is_drawn_its_base_model_is_what_is_needed() -> None:
    history = JobHistory()
    history.stage()
    history.claim("training", "t")
    history.receive(msgspec.structs.replace(checkpoint_final("t"), lora_base="cache/b"))

    assert history.job.staged_model is not None
    assert history.job.staged_model.prefix != "cache/b"
    assert not history.job.ended
    needed = needed_model(history.job)
    assert needed is not None
    assert needed.prefix == "cache/b"


# --- Claims and fences ------------------------------------------------------------------------


def test_the_same_claim_gets_the_same_answer_and_costs_no_attempt() -> None:
    history = JobHistory()
    first = history.claim("staging", "s")
    assert history.claim("staging", "s") == first
    assert history.job.stages["staging"].attempts == 1


def test_a_second_claim_is_refused_while_one_lives() -> None:
    history = JobHistory()
    history.claim("staging", "s")
    answer = history.claim("staging", "other")
    assert isinstance(answer, ClaimRefused)
    assert answer.claim == "other"


def test_nothing_is_granted_that_was_not_asked_for() -> None:
    history = JobHistory()
    for stage in STAGES[1:]:
        assert isinstance(history.claim(stage, "c"), ClaimRefused)
    history.stage()
    assert isinstance(history.claim("staging", "again"), ClaimRefused)
    history.train()
    assert isinstance(history.claim("model_publication", "c"), ClaimRefused)


def test_a_spent_claim_is_never_granted_again() -> None:
    history = JobHistory()
    history.claim("staging", "s")
    history.fail("staging", "s")
    answer = history.claim("staging", "s")
    assert isinstance(answer, ClaimRefused)
    assert isinstance(history.claim("staging", "fresh"), ClaimGranted)


def test_a_refused_claim_is_refused_again_even_when_its_stage_is_free_by_then() -> None:
    """A worker repeats its claim each heartbeat; the repetition may arrive after it gave up."""
    history = JobHistory()
    history.claim("staging", "s")
    history.claim("staging", "other")
    history.fail("staging", "s")

    answer = history.claim("staging", "other")

    assert isinstance(answer, ClaimRefused)
    assert history.job.stages["staging"].claim is None
    assert isinstance(history.claim("staging", "fresh"), ClaimGranted)


def test_a_claim_that_was_refused_at_the_end_of_a_run_gets_nothing_of_the_next() -> None:
    history = JobHistory()
    history.apply(transitions.time_out(history.job, "late", history.now))
    history.claim("staging", "s")
    retried(history)

    assert isinstance(history.claim("staging", "s"), ClaimRefused)


def test_of_refused_claims_a_job_remembers_the_newest() -> None:
    history = JobHistory()
    for number in range(transitions.REFUSED_KEPT + 2):
        for _ in range(2):
            history.claim("training", f"t{number}")

    assert history.job.refused_claims[0] == "t2"
    assert len(history.job.refused_claims) == transitions.REFUSED_KEPT


def test_facts_that_are_not_from_the_live_claim_change_nothing() -> None:
    history = JobHistory()
    history.claim("staging", "s")
    history.fail("staging", "s")
    history.claim("staging", "second")
    before = history.job
    facts = (
        dataset_staged("s"),
        StagingProgressed(job="job", stage="staging", claim="s", progress={"step": 1}),
        StagingInterrupted(job="job", stage="staging", claim="s"),
        StageFailed(job="job", stage="staging", claim="s", kind="refused", reason="x"),
    )
    for fact in facts:
        (answer,) = history.receive(fact)
        assert isinstance(answer, ClaimRefused)
        assert history.job == before


def test_what_an_ended_attempt_has_made_is_neither_published_nor_drawn_with() -> None:
    history = JobHistory(bucket=True)
    assert isinstance(history.claim("staging", "s", asked_by=""), ClaimGranted)
    history.receive(dataset_staged("s"))
    history.check_bucket()
    assert isinstance(history.claim("training", "t1", asked_by="s"), ClaimGranted)
    history.apply(
        transitions.lose_claim(history.job, "training", "t1", now=history.now, heartbeat=HEARTBEAT)
    )
    history.train("t2")

    for stage in ("generation", "model_publication"):
        refused = history.claim(stage, f"{stage} of the first", asked_by="t1")
        assert isinstance(refused, ClaimRefused)
        assert refused.reason == "it was asked for by an attempt that has ended"
        assert isinstance(history.claim(stage, stage, asked_by="t2"), ClaimGranted)


def test_answers_go_once_to_the_workers_newest_address() -> None:
    history = JobHistory()
    history.claim("staging", "s")
    heartbeat = StagingProgressed(job="job", stage="staging", claim="s")
    history.receive(heartbeat, reply_queue="control-2")
    history.apply(transitions.cancel(history.job, history.now))
    stop = [each for each in history.effects if isinstance(each.message, ClaimRefused)]
    assert [(each.queue, each.durable) for each in stop] == [("control-2", False)]


def test_facts_of_a_worker_without_an_address_count_but_are_not_answered() -> None:
    history = JobHistory()
    fact = StagingStarted(job="job", stage="staging", claim="s")
    assert history.receive(fact, reply_queue=None) == []
    assert history.job.holds("staging", "s")


# --- Failures ---------------------------------------------------------------------------------


def test_a_passing_failure_asks_again_after_a_backoff() -> None:
    history = JobHistory()
    for failures in (1, 2):
        history.claim("staging", f"s{failures}")
        history.fail("staging", f"s{failures}")
        again = history.retries[-1]
        assert again.message == decode(history.job.stages["staging"].trigger)
        assert (again.queue, again.delay) == ("fetcher", retry.delay(failures, HEARTBEAT))
        assert history.job.stages["staging"].due_at == history.now + again.delay
    assert history.job.status == "IN_QUEUE"


def test_the_third_failure_in_a_row_ends_the_job() -> None:
    history = JobHistory()
    for number in range(2):
        history.claim("staging", f"s{number}")
        history.fail("staging", f"s{number}")
    history.claim("staging", "last")
    assert kinds(history.fail("staging", "last")) == [JobFailed, WebhookDue]
    assert history.job.error == "staging failed 3 times in a row: it broke"


def test_a_new_resume_point_sets_the_count_to_zero_and_travels_with_the_next_grant() -> None:
    history = JobHistory()
    history.stage()
    for number in range(5):
        grant = history.claim("training", f"t{number}")
        assert isinstance(grant, ClaimGranted)
        assert grant.resume_point == (f"r/{number - 1}/" if number else None)
        assert grant.attempt == number + 1
        saved = ResumePointSaved(
            job="job", stage="training", claim=f"t{number}", prefix=f"r/{number}/", step=1, epoch=0
        )
        history.receive(saved)
        history.fail("training", f"t{number}")
    assert history.job.status == "IN_PROGRESS"


def test_an_interruption_counts_no_failure_and_asks_again_at_once() -> None:
    history = JobHistory()
    history.stage()
    for number in range(5):
        history.claim("training", f"t{number}")
        history.receive(TrainingInterrupted(job="job", stage="training", claim=f"t{number}"))
        assert (history.retries[-1].queue, history.retries[-1].delay) == ("trainer", 0.0)
    assert history.job.stages["training"].failures == 0


def test_a_lost_worker_counts_one_failure() -> None:
    history = JobHistory()
    history.claim("staging", "s")
    history.apply(
        transitions.lose_claim(history.job, "staging", "s", now=history.now, heartbeat=HEARTBEAT)
    )
    assert history.job.stages["staging"].failures == 1
    assert history.retries[-1].queue == "fetcher"
    before = history.job
    history.apply(
        transitions.lose_claim(history.job, "staging", "s", now=history.now, heartbeat=HEARTBEAT)
    )
    assert history.job == before


def test_what_is_refused_ends_the_job_at_once() -> None:
    history = JobHistory()
    history.claim("staging", "s")
    sent = history.fail("staging", "s", kind="refused")
    assert kinds(sent) == [JobFailed, WebhookDue]
    assert history.job.error == "it broke"


def test_a_failed_generation_lets_the_model_reach_the_bucket() -> None:
    history = JobHistory(bucket=True)
    history.stage()
    history.train()
    history.claim("generation", "g")
    assert history.fail("generation", "g", kind="refused") == []
    assert history.job.status == "IN_PROGRESS"
    assert isinstance(history.claim("generation", "g2"), ClaimRefused)
    assert kinds(history.publish("model_publication", "p")) == [JobFailed, WebhookDue]
    assert history.job.error == "it broke"
    assert history.job.checkpoint is not None
    assert history.job.s3 == "sealed"  # a retry needs it


@pytest.mark.parametrize("kind", ["refused", "passing"])
@pytest.mark.parametrize("moment", ["while drawing", "after drawing", "at the images too"])
def test_a_trained_model_is_never_lost_to_a_bucket_that_refuses_it(moment: str, kind: Any) -> None:
    history = JobHistory(bucket=True)
    history.stage()
    history.train()
    if moment == "while drawing":
        history.claim("generation", "g")
    else:
        history.draw()
    tries = 1 if kind == "refused" else 3
    for number in range(tries):
        history.claim("model_publication", f"p{number}")
        assert history.fail("model_publication", f"p{number}", kind=kind)[1:] == []
        assert history.job.status == "IN_PROGRESS"
    if moment == "while drawing":
        history.receive(images_generated("g"))
    if moment == "at the images too":
        history.claim("image_publication", "i")
        assert kinds(history.fail("image_publication", "i", kind="refused")) == ENDED
    else:
        assert kinds(history.publish("image_publication", "i")) == ENDED

    assert history.job.status == "COMPLETED"
    assert history.job.error is None
    assert history.job.checkpoint is not None
    lost = ["the model and its checkpoints", "the images and samples"]
    told = unpublished(history.job)
    assert len(told) == 1 + (moment == "at the images too")
    for warning, files in zip(told, lost, strict=False):
        assert f"your bucket does not have {files}: " in warning
        assert "it broke" in warning


def test_a_retry_that_uploads_the_model_after_all_takes_the_warning_back() -> None:
    history = JobHistory(bucket=True)
    history.stage()
    history.train()
    history.claim("model_publication", "p")
    history.fail("model_publication", "p", kind="refused")
    history.claim("generation", "g")
    history.fail("generation", "g", kind="refused")
    assert history.job.status == "FAILED"
    assert len(unpublished(history.job)) == 1

    retried(history)

    assert unpublished(history.job) == []


@pytest.mark.parametrize("trains", [True, False])
def test_what_does_not_fit_its_stage_is_a_failure_and_leaves_no_job_without_work(
    trains: bool,  # noqa: FBT001
) -> None:
    unfit = model_staged if trains else dataset_staged
    for make in (bucket_checked, images_generated, unfit):
        history = JobHistory(trains=trains)
        for claim in ("a", "b", "c"):
            assert not history.job.ended
            history.claim("staging", claim)
            history.receive(msgspec.structs.replace(make(claim), stage="staging", worker="w"))
        assert history.job.status == "FAILED"
        assert history.job.error is not None
        assert history.job.error.startswith("staging failed 3 times in a row: its worker gave ")


def test_checkpoints_on_the_way_are_kept_once_each() -> None:
    history = JobHistory()
    history.stage()
    history.claim("training", "t")
    saved = CheckpointSaved(
        job="job", stage="training", claim="t", artifact=artifact("e1"), step=4, epoch=1
    )
    history.receive(saved)
    history.receive(saved)
    assert history.job.checkpoints == (SavedCheckpoint(artifact=artifact("e1"), step=4, epoch=1),)
    history.fail("training", "t", kind="refused")
    assert history.job.checkpoints


def test_a_checkpoint_that_a_later_attempt_saves_again_replaces_that_of_the_lost_one() -> None:
    history = JobHistory()
    history.stage()
    for attempt in (1, 2):
        history.claim("training", f"t{attempt}")
        file = msgspec.structs.replace(artifact("step-5"), key=f"k/{attempt}/step-5")
        history.receive(
            CheckpointSaved(
                job="job", stage="training", claim=f"t{attempt}", artifact=file, step=5, epoch=1
            )
        )
        if attempt == 1:
            history.fail("training", "t1", kind="passing")

    assert [each.artifact.key for each in history.job.checkpoints] == ["k/2/step-5"]


def test_a_checkpoint_that_was_replaced_is_never_shown_again() -> None:
    history = JobHistory()
    history.stage()
    history.claim("training", "t")
    for number in (1, 2, 3):
        history.receive(
            CheckpointSaved(
                job="job", stage="training", claim="t", artifact=artifact(f"e{number}"),
                step=number, epoch=number, validation_loss=0.5, replaced=("k/e1",) * (number == 3),
            )
        )  # fmt: skip
    best = SavedCheckpoint(artifact=artifact("e2"), step=2, epoch=2, validation_loss=0.5, best=True)

    history.receive(msgspec.structs.replace(checkpoint_final("t"), checkpoints=(best,)))

    assert [(each.step, each.best) for each in history.job.checkpoints] == [(2, True), (3, False)]


def test_a_checkpoint_that_was_deleted_is_not_listed_again_whatever_the_trainer_still_says() -> (
    None
):
    history = JobHistory()
    history.stage()
    history.claim("training", "t")
    one, two = (saved_at(number) for number in (1, 2))
    history.receive(one)
    history.receive(two)

    history.apply(Step(without_checkpoints(history.job, [one.artifact.key, "not/there"])))
    assert [each.step for each in history.job.checkpoints] == [2]
    assert history.job.files_to_delete == ("k/e1.",), "and what lies beside it"

    history.receive(one)
    final = [
        SavedCheckpoint(artifact=each.artifact, step=each.step, epoch=1) for each in (one, two)
    ]
    history.receive(msgspec.structs.replace(checkpoint_final("t"), checkpoints=tuple(final)))
    assert [each.step for each in history.job.checkpoints] == [2]
    assert history.job.files_to_delete == ("k/e1.",)


def saved_at(step: int) -> CheckpointSaved:
    file = msgspec.structs.replace(artifact(f"e{step}"), key=f"k/e{step}.safetensors")
    return CheckpointSaved(
        job="job", stage="training", claim="t", artifact=file, step=step, epoch=1
    )


def test_files_are_due_until_they_are_known_to_be_deleted_and_others_stay_due() -> None:
    job = transitions.replace(JobHistory().job, files_to_delete=("a.", "b."))
    assert files_due_at(job) == 0.0

    job = outputs.forget_deleted(job, ["a."]).job
    assert (job.files_to_delete, files_due_at(job)) == (("b.",), 0.0)
    job = outputs.forget_deleted(job, ["b."]).job
    assert (job.files_to_delete, files_due_at(job)) == ((), None)


# --- Samples ----------------------------------------------------------------------------------

ROW = SampleRow(step=8, epoch=2, prompts=("a cat",), seed=5, resolution=256)


def sample(step: int, index: int, *, sha256: str = "0") -> DrawnSample:
    key = f"k/{step}-{index}"
    file = Artifact(name=key, kind="sample", key=key, bytes=1, sha256=sha256)
    return DrawnSample(
        artifact=file, step=step, epoch=0, index=index, prompt="a cat", seed=5 + index
    )


def samples_generated(*samples: DrawnSample) -> SamplesGenerated:
    return SamplesGenerated(job="job", samples=samples)


def places(job: Job) -> list[tuple[int, int]]:
    return [(each.step, each.index) for each in job.samples]


def test_samples_stand_by_step_and_prompt_once_each_whenever_they_come() -> None:
    history = JobHistory()
    history.stage()
    history.claim("training", "t")
    history.receive(samples_generated(sample(500, 0), sample(500, 1)))
    history.receive(samples_generated(sample(250, 1), sample(250, 0)))
    assert history.receive(samples_generated(sample(500, 0, sha256="drawn again"))) == []
    assert places(history.job) == [(250, 0), (250, 1), (500, 0), (500, 1)]
    assert history.job.samples[2].artifact.sha256 == "drawn again"


def test_what_rows_are_warned_of_is_among_the_job_s_warnings_once() -> None:
    history = JobHistory()
    history.stage()
    history.claim("training", "t")
    for step in (250, 500):
        row = samples_generated(sample(step, 0))
        history.receive(msgspec.structs.replace(row, warnings=("drawn slowly",)))

    assert history.job.warnings == ("drawn slowly",)


def test_of_samples_without_number_the_newest_are_listed_and_a_warning_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(outputs, "MAX_SAMPLES_BYTES", 3 * (outputs.SAMPLE_BYTES + len("a cat")))
    history = JobHistory()
    history.stage()
    history.claim("training", "t")
    history.receive(samples_generated(sample(250, 0), sample(250, 1)))
    assert outputs.LEFT_OUT not in history.job.warnings

    for step in (500, 750):
        history.receive(samples_generated(sample(step, 0), sample(step, 1)))

    assert places(history.job) == [(500, 1), (750, 0), (750, 1)]
    assert history.job.warnings.count(outputs.LEFT_OUT) == 1


def test_a_snapshot_is_only_a_sign_of_life_and_one_of_a_lost_trainer_is_refused() -> None:
    history = JobHistory()
    history.stage()
    history.claim("training", "t")
    before = history.job
    snapshot = CheckpointSampled(
        job="job", stage="training", claim="t", snapshot="s", base_model="b", row=ROW
    )
    assert history.receive(snapshot) == []
    assert kinds(history.receive(msgspec.structs.replace(snapshot, claim="lost"))) == [ClaimRefused]
    assert history.job == before


def test_the_last_row_alone_asks_for_a_generation_and_ends_the_job() -> None:
    history = JobHistory(draws=False, webhook=None)
    history.stage()
    history.claim("training", "t")
    assert history.receive(msgspec.structs.replace(checkpoint_final("t"), row=ROW)) == []
    assert isinstance(history.claim("generation", "g"), ClaimGranted)
    drawn = ImagesGenerated(
        job="job", stage="generation", claim="g", images=(), samples=(sample(8, 0),)
    )
    assert kinds(history.receive(drawn)) == [JobCompleted]
    assert places(history.job) == [(8, 0)]


def test_samples_are_welcome_until_the_images_are_there_and_are_published_with_them() -> None:
    history = JobHistory(bucket=True)
    history.stage()
    history.train()
    history.receive(samples_generated(sample(0, 0)))
    history.claim("generation", "g")
    history.receive(msgspec.structs.replace(images_generated("g"), samples=(sample(8, 0),)))
    history.receive(samples_generated(sample(4, 0)))
    assert places(history.job) == [(0, 0), (8, 0)]
    grant = history.claim("image_publication", "i")
    assert isinstance(grant, ClaimGranted)
    assert [each.key for each in grant.samples] == ["k/0-0", "k/8-0"]
    other = history.claim("model_publication", "p")
    assert isinstance(other, ClaimGranted)
    assert other.samples == ()


def test_what_went_wrong_with_the_last_row_is_among_the_warnings() -> None:
    history = JobHistory(webhook=None)
    history.stage()
    history.train()
    history.claim("generation", "g")
    drawn = msgspec.structs.replace(images_generated("g"), warnings=("no row",))
    (done,) = history.receive(drawn)
    assert done == JobCompleted(job="job", run=1, output={"steps": 8, "warnings": ["no row"]})


def test_what_is_said_of_the_dataset_is_among_the_job_s_warnings_from_staging_to_the_end() -> None:
    history = JobHistory(webhook=None)
    history.stage()
    said = ["readme.txt: no image uses it"]
    job = msgspec.structs.replace(history.job, report={"warnings": said}, warnings=("before",))

    assert progress(job, {})["warnings"] == ["before", *said]
    trained: Any = results(job, {}).get("train")
    assert trained["warnings"] == ["before", *said]


def test_samples_of_a_job_that_has_ended_change_nothing() -> None:
    history = JobHistory()
    history.apply(transitions.cancel(history.job, history.now))
    before = history.job
    assert history.receive(samples_generated(sample(0, 0))) == []
    assert history.job == before


# --- Ends -------------------------------------------------------------------------------------


def test_cancelling_stops_the_worker_and_calls_no_webhook() -> None:
    history = JobHistory(bucket=True)
    history.claim("staging", "s")
    sent = history.apply(transitions.cancel(history.job, history.now))
    assert kinds(sent) == [JobCancelled, ClaimRefused]
    assert (history.job.status, history.job.s3, history.job.error) == ("CANCELLED", None, None)


def test_a_worker_that_asks_after_the_end_is_refused_even_if_it_was_granted() -> None:
    history = JobHistory()
    history.claim("staging", "s")
    history.apply(transitions.cancel(history.job, history.now))
    answer = history.claim("staging", "s")
    assert isinstance(answer, ClaimRefused)
    assert answer.reason == "the job has ended"


def test_the_first_end_wins() -> None:
    history = JobHistory()
    history.stage()
    history.claim("training", "t")
    history.apply(transitions.cancel(history.job, history.now))
    ended = history.job
    assert kinds(history.receive(checkpoint_final("t"))) == [ClaimRefused]
    history.apply(transitions.time_out(history.job, "late", history.now))
    history.apply(transitions.cancel(history.job, history.now))
    assert history.job == ended


MORE = ": a request with a larger policy."
MOST = " gets more time, at most 604800000 ms"


@pytest.mark.parametrize(
    ("policy", "after", "reason"),
    [
        (
            {"executionTimeout": 60_000},
            61.0,
            f"executionTimeout of 60000 ms has passed{MORE}executionTimeout{MOST}",
        ),
        ({"ttl": 60_000}, 61.0, f"ttl of 60000 ms has passed{MORE}ttl{MOST}"),
        (
            {},
            24 * 3600.0 + 1,
            f"executionTimeout of 86400000 ms has passed{MORE}executionTimeout{MOST}",
        ),
    ],
)
def test_a_job_is_out_of_time(policy: dict[str, int], after: float, reason: str) -> None:
    history = JobHistory()
    history.stage()
    history.claim("training", "t")
    history.job = transitions.replace(
        history.job, policy=msgspec.convert(policy, type(history.job.policy))
    )
    assert overdue(history.job, START + 50.0) is None
    assert overdue(history.job, history.now + after) == reason
    sent = history.apply(transitions.time_out(history.job, reason, history.now + after))
    assert kinds(sent) == [JobTimedOut, ClaimRefused, WebhookDue]
    assert (history.job.status, history.job.error) == ("TIMED_OUT", reason)


def test_waiting_for_a_worker_does_not_count_as_running() -> None:
    history = JobHistory()
    history.stage()
    assert overdue(history.job, START + 6 * 24 * 3600.0) is None
    assert overdue(history.job, START + 7 * 24 * 3600.0 + 1) == (
        "ttl of 604800000 ms has passed: no job gets more time: request fewer epochs"
    )


# --- The webhook ------------------------------------------------------------------------------


def ended() -> JobHistory:
    history = JobHistory(draws=False)
    history.stage()
    history.train()
    return history


def failed(attempt: int, **more: Any) -> WebhookFailed:
    return WebhookFailed(
        job="job", run=1, attempt=attempt, webhook_id=END_HOOK, reason="HTTP 500", **more
    )


def test_the_webhook_is_tried_by_its_schedule_and_then_given_up() -> None:
    history = ended()
    for attempt in range(1, 5):
        history.receive(failed(attempt))
    dues = [each for each in history.effects if isinstance(each.message, WebhookDue)]
    assert [each.delay for each in dues] == [0.0, 10.0, 60.0, 600.0, 3600.0]
    messages = [cast("WebhookDue", each.message) for each in dues]
    assert [each.attempt for each in messages] == [1, 2, 3, 4, 5]
    assert len({each.webhook_id for each in messages}) == 1
    assert history.receive(failed(5)) == []
    assert history.job.webhook_settled


def test_a_delivered_or_forbidden_webhook_is_settled() -> None:
    history = ended()
    assert history.receive(failed(1, permanent=True)) == []
    assert history.job.webhook_settled
    history = ended()
    history.receive(WebhookDelivered(job="job", run=1, attempt=1, webhook_id=END_HOOK, status=200))
    assert history.job.webhook_settled
    assert history.receive(failed(1)) == []


def test_the_receiver_may_ask_for_more_time_and_old_answers_say_nothing() -> None:
    history = ended()
    history.receive(failed(1, retry_after=120.0))
    assert history.effects[-1].delay == 120.0
    before = history.job
    assert history.receive(failed(1)) == []
    assert history.job == before


def test_an_answer_to_a_webhook_that_was_never_due_says_nothing() -> None:
    history = JobHistory()
    before = history.job
    assert history.receive(failed(1)) == []
    assert history.job == before


# --- Another run ------------------------------------------------------------------------------


def retried(history: JobHistory) -> list[Message]:
    history.now += 1.0
    history.apply(transitions.rerun(history.job, history.now))
    return history.apply(transitions.release(history.job, history.now))


def test_a_failed_job_is_run_again_from_the_stage_that_failed() -> None:
    history = JobHistory()
    history.stage()
    history.train()
    history.claim("generation", "g")
    history.fail("generation", "g", kind="refused")
    assert history.job.status == "FAILED"

    (asked,) = retried(history)

    assert asked == checkpoint_final("t")
    assert (history.job.status, history.job.run, history.job.error) == ("IN_QUEUE", 2, None)
    assert (delay_time(history.job, history.now), execution_time(history.job, history.now)) == (
        0,
        0,
    )
    assert isinstance(history.claim("training", "t2"), ClaimRefused)
    grant = history.claim("generation", "g2")
    assert isinstance(grant, ClaimGranted)
    assert grant.attempt == 2
    assert kinds(history.receive(images_generated("g2"))) == [JobCompleted, WebhookDue]


def test_each_run_has_a_webhook_of_its_own() -> None:
    history = JobHistory(draws=False)
    history.stage()
    for claim in ("a", "b"):
        history.claim("training", claim)
        history.fail("training", claim, kind="refused")
        retried(history)

    due = [each.message for each in history.effects if isinstance(each.message, WebhookDue)]
    assert [each.run for each in due] == [1, 2]
    assert len({each.webhook_id for each in due}) == 2


def test_a_webhook_of_an_earlier_run_is_sent_again_as_that_runs() -> None:
    history = JobHistory(draws=False)
    history.stage()
    history.claim("training", "a")
    history.fail("training", "a", kind="refused")
    retried(history)

    (again,) = history.apply(webhook_schedule.resend_webhook(history.job, END_HOOK, history.now))

    assert isinstance(again, WebhookDue)
    assert (again.run, again.webhook_id, again.attempt) == (1, END_HOOK, 2)
    assert history.job.run == 2


def test_an_outcome_of_an_earlier_runs_webhook_does_not_settle_this_ones() -> None:
    history = JobHistory(draws=False)
    history.stage()
    for claim in ("a", "b"):
        history.claim("training", claim)
        history.fail("training", claim, kind="refused")
        retried(history)
    history.claim("training", "c")
    history.fail("training", "c", kind="refused")

    late = WebhookDelivered(job="job", run=1, attempt=1, webhook_id=END_HOOK, status=200)

    assert history.receive(late) == []
    assert not history.job.webhook_settled
    assert history.receive(failed(1)) == []


def test_a_run_that_timed_out_goes_on_from_its_resume_point_and_ignores_old_workers() -> None:
    history = JobHistory(draws=False, bucket=True)
    history.stage()
    history.claim("training", "t")
    point = ResumePointSaved(
        job="job", stage="training", claim="t", prefix="resume/", step=3, epoch=0
    )
    history.receive(point)
    history.apply(transitions.time_out(history.job, "late", history.now))

    retried(history)

    (refusal,) = history.receive(checkpoint_final("t"))
    assert isinstance(refusal, ClaimRefused)
    assert isinstance(history.claim("training", "t"), ClaimRefused)
    grant = history.claim("training", "t2")
    assert isinstance(grant, ClaimGranted)
    assert grant.resume_point == "resume/"
    history.receive(checkpoint_final("t2"))
    assert kinds(history.publish("model_publication", "p")) == [JobCompleted, WebhookDue]


@pytest.mark.parametrize("trains", [True, False])
def test_images_that_were_drawn_are_kept_when_a_bucket_refuses_them(
    trains: bool,  # noqa: FBT001
) -> None:
    history = JobHistory(trains=trains, bucket=True)
    history.stage()
    if trains:
        history.train()
        history.publish("model_publication", "p")
    history.draw()
    history.claim("image_publication", "i")

    assert kinds(history.fail("image_publication", "i", kind="refused")) == ENDED
    assert history.job.status == "COMPLETED"
    assert history.job.images != ()


def test_failures_are_counted_anew_in_another_run() -> None:
    history = JobHistory()
    for claim in ("a", "b", "c"):
        history.claim("staging", claim)
        history.fail("staging", claim)
    assert history.job.ended
    retried(history)
    for claim in ("d", "e"):
        history.claim("staging", claim)
        history.fail("staging", claim)
    assert not history.job.ended
    history.claim("staging", "f")
    history.fail("staging", "f")
    assert history.job.ended


def test_a_job_that_lives_or_ended_well_is_not_run_again() -> None:
    history = JobHistory()
    assert retried(history) == []
    assert history.job.run == 1
    history.apply(transitions.cancel(history.job, history.now))
    assert retried(history) == []
    assert history.job.status == "CANCELLED"


# --- What the user wants on the way ---------------------------------------------------------


def asked(claim: str, **commands: int) -> CommandIssued:
    return CommandIssued(job="job", stage="training", claim=claim, commands=cast("Any", commands))


def heartbeat_of(claim: str) -> TrainingProgressed:
    return TrainingProgressed(job="job", stage="training", claim=claim, progress={"step": 3})


def saved(claim: str, name: str, *, command: int) -> CheckpointSaved:
    return CheckpointSaved(
        job="job", stage="training", claim=claim, artifact=artifact(name), step=3, epoch=0,
        command=command,
    )  # fmt: skip


def sampled(claim: str, *, command: int) -> CheckpointSampled:
    row = SampleRow(step=3, epoch=0, prompts=("a",), seed=1, resolution=512)
    return CheckpointSampled(
        job="job", stage="training", claim=claim, snapshot="s/", base_model="b/", row=row,
        command=command,
    )  # fmt: skip


def in_training(**more: Any) -> JobHistory:
    history = JobHistory(**more)
    history.stage()
    history.claim("training", "t")
    return history


def test_a_command_is_sent_at_once_and_with_each_heartbeat_until_it_is_granted() -> None:
    history = in_training()

    assert history.command("save") == [asked("t", save=1)]
    assert history.receive(heartbeat_of("t")) == [asked("t", save=1)]
    assert history.command("sample") == [asked("t", save=1, sample=1)]
    assert history.receive(saved("t", "ordinary", command=0)) == []
    assert history.receive(heartbeat_of("t")) == [asked("t", save=1, sample=1)]
    history.receive(saved("t", "asked for", command=1))
    assert history.receive(heartbeat_of("t")) == [asked("t", sample=1)]
    history.receive(sampled("t", command=1))
    assert history.receive(heartbeat_of("t")) == []
    assert [each.artifact.name for each in history.job.checkpoints] == ["ordinary", "asked for"]


def test_a_repeated_command_is_the_same_one_until_it_is_granted_and_then_another() -> None:
    history = in_training()
    assert history.command("save") == history.command("save") == [asked("t", save=1)]
    history.receive(saved("t", "first", command=1))

    assert history.command("save") == [asked("t", save=2)]
    history.receive(saved("t", "late", command=1))
    assert history.receive(heartbeat_of("t")) == [asked("t", save=2)]


def test_what_a_lost_worker_left_undone_comes_with_the_next_grant() -> None:
    history = in_training()
    history.command("save")
    history.command("sample")
    history.receive(saved("t", "asked for", command=1))
    history.receive(TrainingInterrupted(job="job", stage="training", claim="t"))

    assert history.command("stop") == []  # no worker to receive it
    grant = history.claim("training", "t2")
    assert isinstance(grant, ClaimGranted)
    assert grant.commands == {"stop": 1, "sample": 1}
    history.receive(checkpoint_final("t2"))
    drawing = history.claim("generation", "g")
    assert isinstance(drawing, ClaimGranted)
    assert drawing.commands == {}


def waiting() -> JobHistory:
    history = JobHistory()
    history.stage()
    return history


def trained() -> JobHistory:
    history = in_training()
    history.receive(checkpoint_final("t"))
    return history


def drawing_only() -> JobHistory:
    history = JobHistory(trains=False)
    history.stage()
    history.claim("generation", "g")
    return history


def cancelled() -> JobHistory:
    history = in_training()
    history.apply(transitions.cancel(history.job, history.now))
    return history


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (JobHistory, "the training has not begun: the job is IN_QUEUE"),
        (waiting, "the training has not begun: the job is IN_QUEUE"),
        (trained, "the training has ended"),
        (drawing_only, "the job trains nothing"),
        (cancelled, "the job has ended: it is CANCELLED"),
    ],
)
def test_a_training_that_is_not_running_takes_no_commands(
    make: Callable[[], JobHistory], reason: str
) -> None:
    history = make()
    before = history.job

    assert why_no_command(before, "sample") == reason
    assert [history.command(kind) for kind in ("sample", "save", "stop")] == [[], [], []]
    assert history.job == before


def test_a_training_that_was_stopped_takes_no_command_that_it_would_not_carry_out() -> None:
    history = in_training()
    history.command("stop")

    for kind in ("sample", "save"):
        assert why_no_command(history.job, kind) == (
            "the training ends after its current step: it was stopped"
        )
        assert history.command(kind) == []
    assert why_no_command(history.job, "stop") is None


def test_a_command_that_the_training_ended_before_is_said_at_the_end() -> None:
    history = in_training()
    history.command("sample")
    history.command("save")
    assert unfulfilled(history.job) == []

    history.apply(transitions.cancel(history.job, history.now))

    assert unfulfilled(history.job) == [
        f"the samples that were asked for {NOT_DRAWN}",
        "the checkpoint that was asked for was not saved: the training ended before",
    ]
    output: Any = results(history.job, {})
    assert output["train"]["warnings"] == unfulfilled(history.job)


@pytest.mark.parametrize("is_drawn", [True, False])
def test_a_row_that_was_asked_for_and_not_drawn_in_time_is_said_at_the_end(
    *, is_drawn: bool
) -> None:
    history = in_training()
    history.receive(sampled("t", command=0))
    history.command("sample")
    history.receive(sampled("t", command=1))
    if is_drawn:
        history.receive(samples_generated(sample(3, 0)))

    history.apply(transitions.cancel(history.job, history.now))

    said = f"the samples that were asked for at step 3 {NOT_DRAWN}"
    assert unfulfilled(history.job) == ([] if is_drawn else [said])


def test_another_run_has_no_commands_of_the_one_before() -> None:
    history = in_training()
    history.command("stop")
    history.fail("training", "t", kind="refused")
    retried(history)

    assert why_no_command(history.job, "save") == (
        "the training has not begun: the job is IN_QUEUE"
    )
    grant = history.claim("training", "t2")
    assert isinstance(grant, ClaimGranted)
    assert grant.commands == {}
    assert history.receive(heartbeat_of("t2")) == []


# --- Whatever comes ---------------------------------------------------------------------------

CLAIMS = st.sampled_from(["a", "b", "c"])
ANY_STAGE = st.sampled_from(list(STARTED))
STAMP = {"job": st.just("job"), "stage": ANY_STAGE, "claim": CLAIMS}


def facts() -> st.SearchStrategy[Any]:
    """Any fact of any worker in any state."""
    bare = (
        StagingStarted, TrainingStarted, GenerationStarted, PublicationStarted,
        StagingProgressed, TrainingProgressed, StagingInterrupted, TrainingInterrupted,
        GenerationInterrupted,
    )  # fmt: skip
    webhook = {
        "job": st.just("job"), "run": st.integers(1, 2), "attempt": st.integers(0, 6),
        "webhook_id": st.sampled_from([END_HOOK, "w"]),
    }  # fmt: skip
    return st.one_of(
        *(st.builds(kind, **STAMP) for kind in bare),
        st.builds(
            StageFailed, **STAMP, kind=st.sampled_from(["refused", "passing"]), reason=st.just("r")
        ),
        *(
            st.builds(lambda claim, stage, make=make: _at(make(claim), stage), CLAIMS, ANY_STAGE)
            for make in (
                dataset_staged,
                model_staged,
                bucket_checked,
                checkpoint_final,
                images_generated,
            )
        ),
        st.builds(ArtifactsPublished, **STAMP, urls=st.just({})),
        st.builds(lambda step: samples_generated(sample(step, 0)), st.integers(0, 3)),
        st.builds(
            ResumePointSaved, **STAMP, prefix=st.just("r/"), step=st.just(1), epoch=st.just(0)
        ),
        st.builds(saved, CLAIMS, st.just("c"), command=st.integers(0, 3)),
        st.builds(sampled, CLAIMS, command=st.integers(0, 3)),
        st.builds(WebhookFailed, **webhook, reason=st.just("r"), permanent=st.booleans()),
        st.builds(WebhookDelivered, **webhook, status=st.just(200)),
    )


def _at(fact: StageFact, stage: Stage) -> StageFact:
    return msgspec.structs.replace(fact, stage=stage)


@settings(deadline=None)
@given(
    st.booleans(),
    st.lists(
        st.one_of(
            facts(), st.sampled_from(["cancel", "late", "lost", "retry", *get_args(Command)])
        ),
        max_size=40,
    ),
)
def test_any_facts_in_any_order_give_a_record_and_an_end_is_final(
    trains: bool,  # noqa: FBT001
    happenings: list[Any],
) -> None:
    history = JobHistory(trains=trains, bucket=True)
    for each in happenings:
        before = history.job
        happen(history, each)
        if before.ended and history.job.run == before.run:
            assert (history.job.status, history.job.error, history.job.ended_at) == (
                before.status, before.error, before.ended_at
            )  # fmt: skip
        check(history.job)


def happen(history: JobHistory, what: Any) -> None:
    match what:
        case "cancel":
            history.apply(transitions.cancel(history.job, history.now))
        case "late":
            history.apply(transitions.time_out(history.job, "late", history.now))
        case "retry":
            history.apply(transitions.rerun(history.job, history.now))
        case "sample" | "save" | "stop":
            history.command(what)
        case "lost":
            for stage, record in history.job.stages.items():
                claim = record.claim.id if record.claim else "nobody"
                step = transitions.lose_claim(
                    history.job, stage, claim, now=history.now, heartbeat=HEARTBEAT
                )
                history.apply(step)
        case fact:
            history.receive(fact)


def check(job: Job) -> None:
    """Invariants of every record."""
    assert msgspec.json.decode(msgspec.json.encode(job), type=Job) == job
    assert job.ended == (job.ended_at is not None)
    assert (job.error is not None) == (job.status in ("FAILED", "TIMED_OUT"))
    assert job.status != "COMPLETED" or job.checkpoint is not None or job.images
    for record in job.stages.values():
        check_stage(record)


def check_stage(record: StageRecord) -> None:
    assert record.claim is None or (record.open and record.claim.id not in record.ended_claims)
    assert len(set(record.ended_claims)) == len(record.ended_claims)
    assert not (record.done and record.failed)


class Workers(RuleBasedStateMachine):
    """Workers that mostly behave: every job that they may finish ends once."""

    @initialize(trains=st.booleans(), draws=st.booleans(), bucket=st.booleans())
    def submit(self, trains: bool, draws: bool, bucket: bool) -> None:  # noqa: FBT001
        self.history = JobHistory(trains=trains, draws=draws or not trains, bucket=bucket)
        self.number = 0

    @rule(stage=ANY_STAGE, outcome=st.sampled_from(["done", "passing", "refused", "lost"]))
    def work(self, stage: Stage, outcome: str) -> None:
        self.number += 1
        claim = f"c{self.number}"
        if isinstance(self.history.claim(stage, claim), ClaimRefused):
            return
        if outcome == "lost":
            happen(self.history, "lost")
        elif outcome == "done":
            self.history.receive(result_of(self.history.job, stage, claim))
        else:
            self.history.fail(stage, claim, kind=outcome)

    @rule()
    def interrupt(self) -> None:
        self.number += 1
        if isinstance(self.history.claim("training", f"c{self.number}"), ClaimGranted):
            self.history.receive(
                TrainingInterrupted(job="job", stage="training", claim=f"c{self.number}")
            )

    @invariant()
    def there_is_one_end_and_one_webhook(self) -> None:
        if not hasattr(self, "history"):
            return
        job, sent = self.history.job, [effect.message for effect in self.history.effects]
        ends = [each for each in sent if isinstance(each, JobCompleted | JobFailed)]
        assert len(ends) == int(job.ended)
        assert len([each for each in sent if isinstance(each, WebhookDue)]) == int(job.ended)

    @invariant()
    def a_job_without_training_is_complete_with_its_images_only(self) -> None:
        if hasattr(self, "history") and not self.history.job.trains:
            assert "training" not in self.history.job.stages
            assert self.history.job.images or self.history.job.status != "COMPLETED"

    @invariant()
    def a_live_job_has_something_left_to_do(self) -> None:
        if not hasattr(self, "history") or self.history.job.status in END_STATUSES:
            return
        check(self.history.job)
        assert any(record.open for record in self.history.job.stages.values())


def result_of(job: Job, stage: Stage, claim: str) -> Any:
    match stage:
        case "staging":
            return dataset_staged(claim) if job.trains else model_staged(claim)
        case "bucket_check":
            return bucket_checked(claim)
        case "training":
            return checkpoint_final(claim)
        case "generation":
            return images_generated(claim)
    return ArtifactsPublished(job="job", stage=stage, claim=claim, urls={})


TestWorkers = Workers.TestCase
TestWorkers.settings = settings(deadline=None, max_examples=50)
