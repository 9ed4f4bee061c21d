"""Webhooks from a job to the receiver, by a real notifier, and their list."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook
from structlog.testing import capture_logs

from services.gateway.endpoints import webhooks
from shared.messaging.messages import SamplesGenerated, StageFailed
from tests.integration.notifier.test_webhooks import SECRET, notifying
from tests.support.gateway_world import (
    OTHER_KEY,
    TRAIN_ONLY,
    Claimed,
    World,
    eventually,
    training,
    world,
)
from tests.support.servers.process import HOST
from tests.support.servers.web import Seen, Web

ROOT = "/v2/everydream-v1"
NOWHERE = "00000000-0000-0000-0000-000000000000"


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[World]:
    receivers = frozenset({HOST})
    async with (
        world(tmp_path, allowed_private_hosts=receivers) as one,
        notifying(one.broker.bus("notifier/test"), allowed=receivers),
    ):
        yield one


async def hooked(here: World, web: Web, **commands: Any) -> tuple[str, Claimed]:
    """A job with a webhook, whose training is claimed."""
    return await training(here, webhook=web.url("/hook"), **commands)


def signed(seen: Seen) -> Any:
    """The body, if its signature is valid."""
    return Webhook(SECRET).verify(seen.body, dict(seen.headers))


async def deliveries(here: World, job: str) -> list[dict[str, Any]]:
    answer = await here.ask("GET", f"{ROOT}/jobs/{job}/webhooks")
    assert answer.status == 200, answer
    found: list[dict[str, Any]] = answer.body["deliveries"]
    return found


async def settled(here: World, job: str, number: int) -> list[dict[str, Any]]:
    """The deliveries, once there are so many with known outcomes."""

    async def look() -> list[dict[str, Any]] | None:
        found = await deliveries(here, job)
        known = [each for each in found if each["status"] or each["reason"]]
        return found if len(known) == len(found) == number else None

    return await eventually(look)


async def test_start_output_and_end_arrive_signed_each_with_the_status_of_its_moment(
    here: World, web: Web
) -> None:
    commands = {"webhook_events_filter": ["start", "output", "completed"]}
    job, trainer = await hooked(here, web, **commands)
    await web.wait_for_posts(1)
    await here.publish(SamplesGenerated(job=job, samples=(await trainer.sample(0, 0),)))
    await web.wait_for_posts(2)
    await trainer.finish_training()
    await web.wait_for_posts(3)

    start, output, end = (
        Webhook(SECRET).verify(each.body, dict(each.headers)) for each in web.posts
    )
    assert [each["status"] for each in (start, output, end)] == [
        "IN_PROGRESS", "IN_PROGRESS", "COMPLETED",
    ]  # fmt: skip
    assert [len(each["output"]["samples"]) for each in (start, output)] == [0, 1]
    assert end["output"]["train"]["steps"] == 8
    listed = await settled(here, job, 3)
    assert [(each["event"], each["attempt"], each["status"]) for each in listed] == [
        ("completed", 1, 200), ("output", 1, 200), ("start", 1, 200),
    ]  # fmt: skip
    ids = [each.headers["webhook-id"] for each in web.posts]
    assert ids == [each["id"] for each in listed][::-1]
    assert len(set(ids)) == 3


async def test_a_start_that_nobody_takes_is_not_tried_again(here: World, web: Web) -> None:
    web.answer(500)
    job, trainer = await hooked(here, web, webhook_events_filter=["start", "completed"])
    await settled(here, job, 1)
    await trainer.finish_training()

    end, start = await settled(here, job, 2)

    assert (start["event"], start["reason"]) == ("start", "answered with status 500")
    assert (end["event"], end["status"]) == ("completed", 200)


async def test_a_failed_delivery_shows_when_the_next_is_due(here: World, web: Web) -> None:
    web.answer(500, 200)
    job, trainer = await hooked(here, web)
    await trainer.finish_training()

    again, first = await settled(here, job, 2)

    assert (first["attempt"], first["status"], first["reason"]) == (
        1, None, "answered with status 500",
    )  # fmt: skip
    assert (again["attempt"], again["status"], again["reason"]) == (2, 200, None)
    assert again["id"] == first["id"]
    assert first["at"] < again["at"]


@pytest.mark.parametrize(("answer", "warnings"), [(410, 1), (200, 0)])
async def test_a_webhook_that_is_given_up_is_a_warning(
    here: World, web: Web, answer: int, warnings: int
) -> None:
    web.answer(answer)
    with capture_logs() as logs:
        job, trainer = await hooked(here, web)
        await trainer.finish_training()
        await settled(here, job, 1)

    told = [each for each in logs if each["event"] == "webhook_given_up"]
    assert [each["log_level"] for each in told] == ["warning"] * warnings
    assert [(each["job"], each["reason"]) for each in told] == [
        (job, "answered with status 410")
    ] * warnings


async def test_a_webhook_is_sent_again_on_request_signed_anew(here: World, web: Web) -> None:
    job, trainer = await hooked(here, web)
    await trainer.finish_training()
    (first,) = await settled(here, job, 1)

    answer = await here.ask("POST", f"{ROOT}/jobs/{job}/webhooks/{first['id']}/resend")

    assert answer.status == 200
    assert (answer.body["id"], answer.body["attempt"], answer.body["status"]) == (
        first["id"], 2, None,
    )  # fmt: skip
    await web.wait_for_posts(2)
    once, again = web.posts
    assert once.headers["webhook-id"] == again.headers["webhook-id"] == first["id"]
    assert signed(again)["status"] == "COMPLETED"
    assert [each["attempt"] for each in await settled(here, job, 2)] == [2, 1]


async def test_a_webhook_of_an_earlier_run_is_sent_again_while_the_next_is_at_work(
    here: World, web: Web
) -> None:
    job, trainer = await hooked(here, web)
    await trainer.publish(StageFailed, kind="refused", reason="it is bad")
    (first,) = await settled(here, job, 1)
    await here.ask("POST", f"{ROOT}/retry/{job}")
    again = await here.claim(job, "training", gpu="card")

    answer = await here.ask("POST", f"{ROOT}/jobs/{job}/webhooks/{first['id']}/resend")

    assert (answer.body["id"], answer.body["attempt"]) == (first["id"], 2)
    await settled(here, job, 2)
    await again.finish_training()
    newest, *_ = await settled(here, job, 3)
    assert (newest["event"], newest["attempt"], newest["status"]) == ("completed", 1, 200)
    ids = [each.headers["webhook-id"] for each in web.posts]
    assert ids == [first["id"], first["id"], newest["id"]]
    assert newest["id"] != first["id"]


async def test_a_webhook_is_not_sent_again_without_end(
    here: World, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "MOST_TRIES", 2)
    job, trainer = await hooked(here, web)
    await trainer.finish_training()
    (first,) = await settled(here, job, 1)
    path = f"{ROOT}/jobs/{job}/webhooks/{first['id']}/resend"
    assert (await here.ask("POST", path)).status == 200
    await settled(here, job, 2)

    once_more = await here.ask("POST", path)

    assert (once_more.status, once_more.body["error"]) == (
        409, "this webhook was sent 2 times already",
    )  # fmt: skip
    assert len(await deliveries(here, job)) == len(web.posts) == 2


async def test_a_webhook_that_is_not_there_or_not_yours_is_not_sent(here: World, web: Web) -> None:
    job, trainer = await hooked(here, web)
    await trainer.finish_training()
    (first,) = await settled(here, job, 1)

    there_is_none = await here.ask("POST", f"{ROOT}/jobs/{job}/webhooks/{NOWHERE}/resend")
    url = f"{ROOT}/jobs/{job}/webhooks"
    theirs = await here.ask("POST", f"{url}/{first['id']}/resend", key=OTHER_KEY)

    assert (there_is_none.status, there_is_none.body["error"]) == (
        404, f"there is no webhook {NOWHERE!r} of this job",
    )  # fmt: skip
    assert theirs.status == 404
    assert (await here.ask("GET", url, key=OTHER_KEY)).status == 404
    assert len(web.posts) == 1


async def test_what_has_no_effect_is_shown_with_the_status(here: World, web: Web) -> None:
    job = await here.run({**TRAIN_ONLY, "webhookV2": web.url("/hook")})
    plain = await here.run(TRAIN_ONLY)

    assert (await here.status(job))["output"]["warnings"] == ["webhookV2 has no effect"]
    assert "warnings" not in (await here.status(plain))["output"]
    assert await deliveries(here, job) == []
