"""The events of each change of a job's record."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from services.gateway.jobs import transitions
from services.gateway.jobs.job_events import JobEvent, job_events
from services.gateway.jobs.outputs import without_checkpoints
from services.gateway.jobs.presenter import retries, retry_of
from services.gateway.jobs.record import Job, StageRecord
from shared.messaging.messages import (
    AnyMessage,
    CheckpointSaved,
    ResumePointSaved,
    StageFailed,
    TrainingInterrupted,
    TrainingProgressed,
    TrainingStarted,
)
from shared.words import iso
from tests.unit.gateway.test_transitions import (
    HEARTBEAT,
    JobHistory,
    artifact,
    checkpoint_final,
    dataset_staged,
    images_generated,
    sample,
    samples_generated,
)


class Followed:
    """A job, and its events since the last call."""

    def __init__(self, **commands: Any) -> None:
        self.history = JobHistory(**commands)
        self.seen: Job | None = None

    def news(self) -> list[JobEvent]:
        events = job_events(self.seen, self.history.job)
        self.seen = self.history.job
        return events

    def after(self, *facts: AnyMessage) -> list[JobEvent]:
        """The events of these facts, applied one by one, as the repository does."""
        events = self.news()
        for fact in facts:
            self.history.receive(fact)
            events += self.news()
        return events


def in_training(**commands: Any) -> Followed:
    followed = Followed(**commands)
    followed.history.stage()
    followed.history.claim("training", "t")
    followed.news()
    return followed


def test_a_new_job_waits_to_be_staged_and_then_for_a_worker() -> None:
    assert Followed().news() == [
        ("stage", {"stage": "staging", "state": "waiting", "attempt": 0}),
        ("status", {"status": "IN_QUEUE", "run": 1}),
    ]


def test_staging_reports_the_worker_then_the_dataset_and_the_next_stages() -> None:
    followed = Followed()
    followed.news()
    followed.history.claim("staging", "s")

    assert followed.news() == [("stage", {"stage": "staging", "state": "at work", "attempt": 1})]
    assert followed.after(dataset_staged("s")) == [
        ("stage", {"stage": "staging", "state": "done", "attempt": 1}),
        ("stage", {"stage": "training", "state": "waiting", "attempt": 0}),
        ("dataset", {"images": 4}),
    ]


def test_the_first_gpu_claim_starts_the_job() -> None:
    followed = Followed()
    followed.history.stage()
    followed.news()
    followed.history.claim("training", "t")

    assert followed.news() == [
        ("stage", {"stage": "training", "state": "at work", "attempt": 1}),
        ("status", {"status": "IN_PROGRESS", "run": 1}),
    ]


@pytest.mark.parametrize(
    "fact",
    [
        TrainingProgressed(job="job", stage="training", claim="t", progress={"step": 3}),
        TrainingStarted(job="job", stage="training", claim="t"),
        StageFailed(job="job", stage="training", claim="old", kind="passing", reason="r"),
    ],
    ids=lambda fact: type(fact).__name__,
)
def test_progress_repeats_and_strangers_are_no_news(fact: AnyMessage) -> None:
    assert in_training().after(fact) == []


def test_a_worker_that_is_interrupted_or_fails_gives_the_stage_back() -> None:
    followed = in_training()
    waits = ("stage", {"stage": "training", "state": "waiting", "attempt": 1})

    assert followed.after(TrainingInterrupted(job="job", stage="training", claim="t")) == [waits]
    followed.history.claim("training", "t2")
    assert followed.news() == [("stage", {"stage": "training", "state": "at work", "attempt": 2})]


def test_a_stage_that_failed_says_which_try_is_next_when_and_why() -> None:
    followed = in_training()
    failed = StageFailed(job="job", stage="training", claim="t", kind="passing", reason="it broke")
    due = followed.history.now + 1 + HEARTBEAT
    again = {"stage": "training", "number": 2, "tries": 3, "reason": "it broke"}

    (waits,) = followed.after(failed)
    assert waits[1]["retry"] == {**again, "next_at": iso(due)}
    assert retries(followed.history.job) == [waits[1]["retry"]]

    followed.history.claim("training", "t2")
    (at_work,) = followed.news()
    assert at_work[1]["retry"] == {**again, "next_at": None}
    resume = ResumePointSaved(job="job", stage="training", claim="t2", prefix="r", step=1, epoch=0)
    followed.after(resume)
    assert retries(followed.history.job) == []


def test_a_record_of_before_counts_its_failures_without_their_reason() -> None:
    record = StageRecord(trigger=b"{}", failures=2, due_at=0.0)

    again = retry_of("staging", record)
    assert again is not None
    assert (again["number"], again["reason"]) == (3, None)


def test_the_twelfth_attempt_is_at_work_like_any_other() -> None:
    followed = in_training()
    for attempt in range(2, 13):
        claim = f"t{attempt}"
        followed.history.receive(
            TrainingInterrupted(job="job", stage="training", claim=held(followed.history.job))
        )
        followed.news()
        followed.history.claim("training", claim)
        assert followed.news() == [
            ("stage", {"stage": "training", "state": "at work", "attempt": attempt})
        ]


def held(job: Job) -> str:
    claim = job.stages["training"].claim
    assert claim is not None
    return claim.id


def test_a_stage_that_is_given_up_says_why_before_the_job_does() -> None:
    followed = in_training()
    fails = StageFailed(job="job", stage="training", claim="t", kind="refused", reason="no card")

    assert followed.after(fails) == [
        (
            "stage",
            {"stage": "training", "state": "failed", "attempt": 1, "reason": "no card"},
        ),
        ("status", {"status": "FAILED", "run": 1, "error": "no card"}),
    ]


def saved(name: str, step: int, **more: Any) -> CheckpointSaved:
    return CheckpointSaved(
        job="job", stage="training", claim="t", artifact=artifact(name), step=step, epoch=1, **more
    )


def test_each_checkpoint_is_reported_once_and_the_last_one_at_the_end_of_training() -> None:
    followed = in_training()
    one, two = saved("one", 4), saved("two", 8, replaced=(artifact("one").key,))

    events = followed.after(one, one, two)

    names = [(kind, data["step"], data["name"]) for kind, data in events]
    assert names == [
        ("checkpoint", 4, artifact("one").name),
        ("checkpoint_deleted", 4, artifact("one").name),
        ("checkpoint", 8, artifact("two").name),
    ]
    final = [data for kind, data in followed.after(checkpoint_final("t")) if kind == "checkpoint"]
    job = followed.history.job
    assert job.checkpoint is not None
    assert final[-1] == {
        "step": job.summary["steps"], "epoch": job.summary.get("epochs"), "final": True,
        "name": job.checkpoint.name, "key": job.checkpoint.key,
    }  # fmt: skip


def test_a_checkpoint_is_reported_as_deleted_once_and_not_if_a_later_attempt_replaces_it() -> None:
    followed = in_training()
    one, two = saved("one", 4), saved("two", 8)
    followed.after(one, two)
    again = msgspec.structs.replace(artifact("two"), key="another/attempt")

    events = followed.after(msgspec.structs.replace(two, artifact=again))
    assert [kind for kind, _ in events] == ["checkpoint"]
    followed.history.job = without_checkpoints(followed.history.job, [one.artifact.key])
    deleted = {"step": 4, "epoch": 1, "name": artifact("one").name}
    assert followed.news() == [("checkpoint_deleted", deleted)]
    assert followed.after(one) == []


def test_only_the_new_samples_of_a_row_are_reported() -> None:
    followed = in_training()

    events = followed.after(
        samples_generated(sample(0, 0)), samples_generated(sample(0, 0), sample(0, 1))
    )

    assert [(kind, data["step"], data["prompt"], data["key"]) for kind, data in events] == [
        ("sample", 0, each.prompt, each.artifact.key) for each in (sample(0, 0), sample(0, 1))
    ]


def test_the_images_come_before_the_end_that_they_bring() -> None:
    followed = in_training()
    followed.history.receive(checkpoint_final("t"))
    followed.history.claim("generation", "g")
    followed.news()

    events = followed.after(images_generated("g"))

    assert "thumbnail" not in events[1][1], "earlier versions have drawn none"
    assert [kind for kind, _ in events] == ["stage", "image", "status"]
    assert events[-1] == ("status", {"status": "COMPLETED", "run": 1})


def test_an_image_that_could_not_be_drawn_says_why() -> None:
    followed = in_training()
    (drawn,) = images_generated("g").images
    failed = msgspec.structs.replace(drawn, artifact=None, error="the prompt is too long")
    followed.history.job = transitions.replace(followed.history.job, images=(failed,))

    assert followed.news() == [
        (
            "image",
            {"prompt": drawn.prompt, "seed": drawn.seed, "error": "the prompt is too long"},
        )
    ]


def test_another_run_is_a_status_and_its_images_are_reported_again() -> None:
    followed = in_training(draws=True)
    followed.history.receive(checkpoint_final("t"))
    followed.history.claim("generation", "g")
    followed.history.fail("generation", "g", kind="refused")
    followed.news()

    followed.history.apply(transitions.rerun(followed.history.job, followed.history.now))

    assert followed.news() == [
        ("stage", {"stage": "generation", "state": "waiting", "attempt": 1}),
        ("status", {"status": "IN_QUEUE", "run": 2}),
    ]
    followed.history.apply(transitions.release(followed.history.job, followed.history.now))
    followed.history.claim("generation", "g2")
    kinds = [kind for kind, _ in followed.after(images_generated("g2"))]
    assert kinds == ["stage", "status", "stage", "image", "status"]


def test_events_can_be_stored_as_json() -> None:
    followed = Followed()
    followed.history.stage()
    followed.history.train()
    followed.history.draw()

    events = followed.news()

    assert {kind for kind, _ in events} >= {"stage", "dataset", "checkpoint", "image", "status"}
    assert msgspec.json.decode(msgspec.json.encode(events)) == [list(each) for each in events]
