"""The webhooks of a job, and the record of their deliveries."""

from __future__ import annotations

from typing import Any

import pytest

from services.gateway.jobs import transitions, webhook_schedule
from services.gateway.jobs.record import WebhookTry
from services.gateway.jobs.webhook_schedule import OUTPUT_SECONDS, TRIES_KEPT
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
    JobHistory,
    artifact,
    checkpoint_final,
    sample,
    samples_generated,
)


def history_with(*events: WebhookEvent, webhook: str | None = HOOK) -> JobHistory:
    """A job whose webhook wants these events and whose training waits for a worker."""
    history = JobHistory(draws=False, webhook=webhook)
    history.job = transitions.replace(history.job, webhook_events=events)
    history.stage()
    return history


def dues(messages: list[Message]) -> list[WebhookDue]:
    return [each for each in messages if isinstance(each, WebhookDue)]


def events(messages: list[Message]) -> list[str]:
    return [each.event for each in dues(messages)]


def all_dues(history: JobHistory) -> list[WebhookDue]:
    return dues([effect.message for effect in history.effects])


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
    history = history_with(*WEBHOOK_EVENTS)

    history.claim("training", "t")
    history.now += OUTPUT_SECONDS
    history.receive(samples_generated(sample(0, 0)))
    history.now += OUTPUT_SECONDS
    history.receive(saved("one"))
    history.receive(checkpoint_final("t"))

    sent = all_dues(history)
    assert [each.event for each in sent] == ["start", "output", "output", "completed"]
    assert len({each.webhook_id for each in sent}) == 4
    assert {(each.url, each.attempt, each.run) for each in sent} == {(HOOK, 1, 1)}


@pytest.mark.parametrize("event", WEBHOOK_EVENTS)
def test_an_event_that_was_not_requested_is_not_sent(event: WebhookEvent) -> None:
    history = history_with(event)
    history.claim("training", "t")
    history.now += OUTPUT_SECONDS
    history.receive(saved("one"))
    history.receive(checkpoint_final("t"))

    assert [each.event for each in all_dues(history)] == [event]
    assert history.job.webhook_settled == (event != "completed")


def test_without_a_webhook_no_event_is_sent() -> None:
    history = history_with(*WEBHOOK_EVENTS, webhook=None)
    history.train()

    assert all_dues(history) == []


def test_outputs_that_come_soon_after_another_are_in_the_next() -> None:
    history = history_with("output")
    history.claim("training", "t")

    assert events(history.receive(saved("one"))) == ["output"]
    assert events(history.receive(saved("two"))) == []
    history.now += OUTPUT_SECONDS
    assert events(history.receive(TrainingProgressed(job="job", stage="training", claim="t"))) == []
    assert events(history.receive(saved("two"))) == []
    assert events(history.receive(saved("three"))) == ["output"]


@pytest.mark.parametrize(
    ("named", "expected"), [((), []), (("completed",), ["completed"]), (("start",), [])]
)
def test_a_cancelled_job_is_sent_to_those_who_requested_every_end(
    named: tuple[WebhookEvent, ...], expected: list[str]
) -> None:
    waiting = history_with(*named)

    assert events(waiting.apply(transitions.cancel(waiting.job, waiting.now))) == expected


def test_another_run_has_webhooks_of_its_own() -> None:
    history = history_with("start", "output", "completed")
    for claim in ("a", "b"):
        history.now += OUTPUT_SECONDS
        history.claim("training", claim)
        history.receive(CheckpointSaved(
            job="job", stage="training", claim=claim, artifact=artifact(claim), step=4, epoch=1
        ))  # fmt: skip
        history.fail("training", claim, kind="refused")
        history.apply(transitions.rerun(history.job, history.now))
        history.apply(transitions.release(history.job, history.now))

    sent = all_dues(history)
    assert [each.event for each in sent] == ["start", "output", "completed"] * 2
    assert len({each.webhook_id for each in sent}) == 6


# --- What is remembered


def test_only_the_end_is_tried_again_and_every_try_is_on_record() -> None:
    history = history_with("start", "completed")
    history.claim("training", "t")
    (started,) = all_dues(history)
    assert history.receive(answers(started)) == []
    (ended,) = dues(history.receive(checkpoint_final("t")))
    (again,) = dues(history.receive(answers(ended)))
    assert history.receive(answers(again, 204)) == []

    tries = history.job.webhook_tries
    assert [(each.event, each.attempt, each.status, each.reason) for each in tries] == [
        ("start", 1, None, "answered with status 500"),
        ("completed", 1, None, "answered with status 500"),
        ("completed", 2, 204, None),
    ]
    assert tries[1].id == tries[2].id == END_HOOK
    assert tries[2].at == history.now


def test_what_becomes_of_the_start_decides_nothing_about_the_end() -> None:
    history = history_with("start", "completed")
    history.train()
    started, ended = all_dues(history)

    assert history.receive(answers(started, 200)) == []
    assert not history.job.webhook_settled
    assert events(history.receive(answers(ended))) == ["completed"]


def test_a_try_that_is_due_later_says_when() -> None:
    history = history_with()
    (ended,) = dues(history.train())

    history.receive(answers(ended))

    assert history.job.webhook_tries[-1] == WebhookTry(
        id=END_HOOK, event="completed", attempt=2, at=history.now + HEARTBEAT
    )


def test_the_first_outcome_of_a_try_counts() -> None:
    history = history_with()
    (ended,) = dues(history.train())
    history.receive(answers(ended, 200))
    before = history.job

    assert history.receive(answers(ended)) == []
    assert history.job == before


def test_the_newest_tries_are_kept() -> None:
    history = history_with()
    history.train()
    for _ in range(TRIES_KEPT + 5):
        history.apply(webhook_schedule.resend_webhook(history.job, END_HOOK, history.now))

    kept = [each.attempt for each in history.job.webhook_tries]
    assert kept == list(range(7, TRIES_KEPT + 7))


# --- Sending again


def test_a_resend_goes_at_once_under_the_same_id_and_leaves_the_schedule_alone() -> None:
    history = history_with()
    (ended,) = dues(history.train())
    (scheduled,) = dues(history.receive(answers(ended)))

    (resent,) = dues(
        history.apply(webhook_schedule.resend_webhook(history.job, END_HOOK, history.now))
    )

    assert history.effects[-1].delay == 0.0
    assert (resent.webhook_id, resent.attempt, resent.event) == (END_HOOK, 3, "completed")
    assert history.receive(answers(resent)) == []
    assert not history.job.webhook_settled
    (next_one,) = dues(history.receive(answers(scheduled)))
    assert next_one.attempt == 4
    assert history.effects[-1].delay == 6 * HEARTBEAT
    assert history.receive(answers(next_one, 200)) == []
    assert history.job.webhook_settled


def test_a_resend_of_the_start_says_that_it_is_one() -> None:
    history = history_with("start")
    history.train()
    (started,) = all_dues(history)

    (resent,) = dues(
        history.apply(webhook_schedule.resend_webhook(history.job, started.webhook_id, history.now))
    )

    assert (resent.event, resent.attempt) == ("start", 2)


def test_a_webhook_that_never_was_is_not_sent() -> None:
    history = history_with()
    history.train()
    before = history.job

    assert history.apply(webhook_schedule.resend_webhook(history.job, "w", history.now)) == []
    assert history.job == before
