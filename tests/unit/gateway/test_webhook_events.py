"""The webhooks of a job, and the record of their deliveries."""

from __future__ import annotations

from typing import Any

import pytest

from services.gateway.jobs import transitions
from services.gateway.jobs.record import WebhookTry
from services.gateway.jobs.transitions import OUTPUT_SECONDS, TRIES_KEPT
from shared.messaging.messages import (
    CheckpointSaved,
    Message,
    TrainingProgressed,
    WebhookDelivered,
    WebhookDue,
    WebhookFailed,
)
from shared.request import WEBHOOK_EVENTS, WebhookEvent
from tests.unit.gateway.test_transitions import (
    END_HOOK,
    HEARTBEAT,
    HOOK,
    Tale,
    artifact,
    checkpoint_final,
    sample,
    samples_generated,
)


def tale(*events: WebhookEvent, webhook: str | None = HOOK) -> Tale:
    """A job whose webhook wants these events and whose training waits for a worker."""
    told = Tale(draws=False, webhook=webhook)
    told.job = transitions.replace(told.job, webhook_events=events)
    told.stage()
    return told


def dues(messages: list[Message]) -> list[WebhookDue]:
    return [each for each in messages if isinstance(each, WebhookDue)]


def events(messages: list[Message]) -> list[str]:
    return [each.event for each in dues(messages)]


def all_said(told: Tale) -> list[WebhookDue]:
    return dues([effect.message for effect in told.said])


def saved(name: str) -> CheckpointSaved:
    return CheckpointSaved(
        job="job", stage="training", claim="t", artifact=artifact(name), step=4, epoch=1
    )


def answers(due: WebhookDue, status: int | None = None) -> WebhookDelivered | WebhookFailed:
    """The notifier's report on a delivery; without a status it failed."""
    stamp: dict[str, Any] = {
        "job": due.job, "run": due.run, "attempt": due.attempt, "webhook_id": due.webhook_id,
    }  # fmt: skip
    if status is None:
        return WebhookFailed(**stamp, reason="answered with status 500")
    return WebhookDelivered(**stamp, status=status)


# --- Which


def test_a_job_may_send_its_start_its_outputs_and_its_end() -> None:
    told = tale(*WEBHOOK_EVENTS)

    told.claim("training", "t")
    told.now += OUTPUT_SECONDS
    told.tell(samples_generated(sample(0, 0)))
    told.now += OUTPUT_SECONDS
    told.tell(saved("one"))
    told.tell(checkpoint_final("t"))

    said = all_said(told)
    assert [each.event for each in said] == ["start", "output", "output", "completed"]
    assert len({each.webhook_id for each in said}) == 4
    assert {(each.url, each.attempt, each.run) for each in said} == {(HOOK, 1, 1)}


@pytest.mark.parametrize("event", WEBHOOK_EVENTS)
def test_an_event_that_was_not_requested_is_not_sent(event: WebhookEvent) -> None:
    told = tale(event)
    told.claim("training", "t")
    told.now += OUTPUT_SECONDS
    told.tell(saved("one"))
    told.tell(checkpoint_final("t"))

    assert [each.event for each in all_said(told)] == [event]
    assert told.job.webhook_settled == (event != "completed")


def test_without_a_webhook_no_event_is_sent() -> None:
    told = tale(*WEBHOOK_EVENTS, webhook=None)
    told.train()

    assert all_said(told) == []


def test_outputs_that_come_soon_after_another_are_in_the_next() -> None:
    told = tale("output")
    told.claim("training", "t")

    assert events(told.tell(saved("one"))) == ["output"]
    assert events(told.tell(saved("two"))) == []
    told.now += OUTPUT_SECONDS
    assert events(told.tell(TrainingProgressed(job="job", stage="training", claim="t"))) == []
    assert events(told.tell(saved("two"))) == []
    assert events(told.tell(saved("three"))) == ["output"]


@pytest.mark.parametrize(
    ("named", "told"), [((), []), (("completed",), ["completed"]), (("start",), [])]
)
def test_a_cancelled_job_is_sent_to_those_who_requested_every_end(
    named: tuple[WebhookEvent, ...], told: list[str]
) -> None:
    waiting = tale(*named)

    assert events(waiting.hear(transitions.cancel(waiting.job, waiting.now))) == told


def test_another_run_has_webhooks_of_its_own() -> None:
    told = tale("start", "output", "completed")
    for claim in ("a", "b"):
        told.now += OUTPUT_SECONDS
        told.claim("training", claim)
        told.tell(CheckpointSaved(
            job="job", stage="training", claim=claim, artifact=artifact(claim), step=4, epoch=1
        ))  # fmt: skip
        told.fail("training", claim, kind="refused")
        told.hear(transitions.rerun(told.job, told.now))

    said = all_said(told)
    assert [each.event for each in said] == ["start", "output", "completed"] * 2
    assert len({each.webhook_id for each in said}) == 6


# --- What is remembered


def test_only_the_end_is_tried_again_and_every_try_is_on_record() -> None:
    told = tale("start", "completed")
    told.claim("training", "t")
    (started,) = all_said(told)
    assert told.tell(answers(started)) == []
    (ended,) = dues(told.tell(checkpoint_final("t")))
    (again,) = dues(told.tell(answers(ended)))
    assert told.tell(answers(again, 204)) == []

    tries = told.job.webhook_tries
    assert [(each.event, each.attempt, each.status, each.reason) for each in tries] == [
        ("start", 1, None, "answered with status 500"),
        ("completed", 1, None, "answered with status 500"),
        ("completed", 2, 204, None),
    ]
    assert tries[1].id == tries[2].id == END_HOOK
    assert tries[2].at == told.now


def test_what_becomes_of_the_start_decides_nothing_about_the_end() -> None:
    told = tale("start", "completed")
    told.train()
    started, ended = all_said(told)

    assert told.tell(answers(started, 200)) == []
    assert not told.job.webhook_settled
    assert events(told.tell(answers(ended))) == ["completed"]


def test_a_try_that_is_due_later_says_when() -> None:
    told = tale()
    (ended,) = dues(told.train())

    told.tell(answers(ended))

    assert told.job.webhook_tries[-1] == WebhookTry(
        id=END_HOOK, event="completed", attempt=2, at=told.now + HEARTBEAT
    )


def test_the_first_outcome_of_a_try_counts() -> None:
    told = tale()
    (ended,) = dues(told.train())
    told.tell(answers(ended, 200))
    before = told.job

    assert told.tell(answers(ended)) == []
    assert told.job == before


def test_the_newest_tries_are_kept() -> None:
    told = tale()
    told.train()
    for _ in range(TRIES_KEPT + 5):
        told.hear(transitions.resend_webhook(told.job, END_HOOK, told.now))

    kept = [each.attempt for each in told.job.webhook_tries]
    assert kept == list(range(7, TRIES_KEPT + 7))


# --- Sending again


def test_a_resend_goes_at_once_under_the_same_id_and_leaves_the_schedule_alone() -> None:
    told = tale()
    (ended,) = dues(told.train())
    (scheduled,) = dues(told.tell(answers(ended)))

    (resent,) = dues(told.hear(transitions.resend_webhook(told.job, END_HOOK, told.now)))

    assert told.said[-1].delay == 0.0
    assert (resent.webhook_id, resent.attempt, resent.event) == (END_HOOK, 3, "completed")
    assert told.tell(answers(resent)) == []
    assert not told.job.webhook_settled
    (next_one,) = dues(told.tell(answers(scheduled)))
    assert next_one.attempt == 4
    assert told.said[-1].delay == 6 * HEARTBEAT
    assert told.tell(answers(next_one, 200)) == []
    assert told.job.webhook_settled


def test_a_resend_of_the_start_says_that_it_is_one() -> None:
    told = tale("start")
    told.train()
    (started,) = all_said(told)

    (resent,) = dues(told.hear(transitions.resend_webhook(told.job, started.webhook_id, told.now)))

    assert (resent.event, resent.attempt) == ("start", 2)


def test_a_webhook_that_never_was_is_not_sent() -> None:
    told = tale()
    told.train()
    before = told.job

    assert told.hear(transitions.resend_webhook(told.job, "w", told.now)) == []
    assert told.job == before
