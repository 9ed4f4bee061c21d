"""Each alert fires, played what a gateway showed before a fault and during it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from uuid import uuid4

import pytest
import yaml

from services.notifier.work import NotifierWork
from shared.messaging.messages import (
    BucketChecked,
    StageFailed,
    StagingStarted,
    WebhookDue,
    WebhookFailed,
)
from shared.messaging.topology import FETCHER, NOTIFIER_PUBLISH, NOTIFIER_WEBHOOKS
from shared.ports import Bus
from shared.worker.order import Order
from shared.worker.runtime import Worker
from tests.support.alerting import RULES, expect_firing, observed, with_up
from tests.support.gateway_world import (
    HEARTBEAT,
    KEY,
    S3_CONFIG,
    TRAIN_ONLY,
    World,
    eventually,
    trained,
    world,
)
from tests.support.scraping import Port, Samples, parsed, port_of_this_process, value

HOOK = "https://example.com/hook"
SLOW = 1.6
"""Seconds; more than a claim should take."""
ACTIVE = "everydream_recorder_active"
RUN = "/v1/everydream-v1/run"
HERE = Path(__file__).parent
TESTED = (Path(__file__), HERE / "test_degradation.py")


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as one:
        yield one


@pytest.fixture
async def port(here: World) -> AsyncIterator[Port]:
    async with port_of_this_process(here.settings) as one:
        await eventually(lambda: is_calm(one))
        yield one


async def is_calm(port: Port) -> bool:
    """The gateway is ready, and its first heartbeat has come back."""
    active = value(await port.scrape(ACTIVE), ACTIVE)
    return active == 1 and not await port.lacking()


async def fires_when(port: Port, name: str, least: float, **labels: str) -> Samples:
    """What is observed once this series is so large."""

    async def look() -> Samples | None:
        text = await port.text()
        reached = value(parsed(text, name), name, **labels) >= least
        return with_up(text) if reached else None

    return await eventually(look)


def test_every_alert_is_played() -> None:
    rules = yaml.safe_load(RULES.read_text())["groups"][0]["rules"]
    played = {name for file in TESTED for name in re.findall(r"EveryDream\w+", file.read_text())}
    assert {rule["alert"] for rule in rules} == played


async def test_a_process_that_is_gone(here: World) -> None:
    async with port_of_this_process(here.settings) as port:
        before = await observed(port)
    expect_firing(before, await observed(port), ["EveryDreamProcessDown"])


async def test_a_database_that_is_away(here: World, port: Port) -> None:
    before = await observed(port)
    here.jobs.unavailable = True
    for _ in range(3):
        assert (await here.ask("POST", RUN, json=TRAIN_ONLY)).status == 503
    expected = ["EveryDreamNotReady", "EveryDreamServerErrors"]
    expect_firing(before, await observed(port), expected, goes_on=True)


async def test_a_record_that_is_behind_and_then_stands_still(tmp_path: Path) -> None:
    async with world(tmp_path, heartbeat=1.0) as here, port_of_this_process(here.settings) as port:
        await eventually(lambda: is_calm(port))
        before = await observed(port)
        job = await here.run(TRAIN_ONLY)
        await here.get(FETCHER)
        here.jobs.unavailable = True
        await here.publish(StagingStarted(job=job, stage="staging", claim=str(uuid4()), worker="w"))
        await fires_when(port, "everydream_recorder_lag_seconds", 1.0)  # a heartbeat waits
        here.clock.ahead += 30.0
        behind = await fires_when(port, "everydream_recorder_lag_seconds", 10.0)
        expect_firing(before, behind, ["EveryDreamNotReady", "EveryDreamRecorderBehind"])

        async def stands_still() -> bool:
            return value(await port.scrape(ACTIVE), ACTIVE) == 0

        await eventually(stands_still)
        expected = ["EveryDreamNotReady", "EveryDreamNobodyRecords"]
        expect_firing(before, await observed(port), expected)


class Notifier(NotifierWork):
    """A worker that is given its claims, and does nothing with them."""

    async def perform(self, order: Order) -> BucketChecked:
        return BucketChecked(**order.stamp())


async def test_claims_that_are_answered_late(here: World, port: Port, tmp_path: Path) -> None:
    before = await observed(port)
    work = Notifier(
        here.store, lambda _: here.store, key=KEY, scratch=tmp_path, heartbeat=HEARTBEAT
    )
    bus, stop = here.broker.bus("notifier/test"), asyncio.Event()
    await here.run({**TRAIN_ONLY, "s3Config": S3_CONFIG})
    await eventually(partial(is_asked_for, bus))
    here.jobs.unavailable = True
    working = asyncio.create_task(Worker(bus, here.store, work, heartbeat=HEARTBEAT).run(stop))
    await asyncio.sleep(SLOW)
    here.jobs.unavailable = False
    answered = {"stage": "bucket_check", "answer": "granted"}
    at_first = value(before, "everydream_claim_seconds_count", **answered)
    await fires_when(port, "everydream_claim_seconds_count", at_first + 1, **answered)
    stop.set()
    await working
    await eventually(partial(is_calm, port))
    expect_firing(before, await observed(port), ["EveryDreamClaimsSlow"], goes_on=True)


async def is_asked_for(bus: Bus) -> bool:
    """A notifier's work waits."""
    return await bus.depth(NOTIFIER_PUBLISH) > 0


async def test_work_that_nobody_takes(here: World, port: Port) -> None:
    before = await observed(port)
    for _ in range(6):  # more than one owner has places
        await here.run(TRAIN_ONLY)
    await eventually(partial(is_published, here))
    here.clock.ahead += 15_000.0
    labels = {"line": "train", "priority": "normal"}
    after = await fires_when(port, "everydream_line_oldest_waiting_seconds", 14_500.0, **labels)
    expect_firing(before, after, ["EveryDreamNoWorker", "EveryDreamLongWait"])


async def is_published(here: World) -> bool:
    return not (await here.stores.load.load(here.clock())).outbox


async def test_work_that_fails_workers_that_are_lost_and_a_webhook_that_is_given_up(
    here: World, port: Port
) -> None:
    before = await observed(port)
    hooked = await trained(here, webhook=HOOK)
    due = await here.get(NOTIFIER_WEBHOOKS)
    assert isinstance(due, WebhookDue)
    await here.publish(
        WebhookFailed(
            job=hooked, run=1, webhook_id=due.webhook_id, attempt=1, reason="gone", permanent=True
        )
    )
    jobs = [await here.run(TRAIN_ONLY) for _ in range(2)]
    for _ in jobs:
        await here.get(FETCHER)
    for job in jobs:
        await here.claim(job, "staging")  # and no heartbeat follows
    lost = {"stage": "staging", "reason": "lost"}
    at_first = value(before, "everydream_stage_failures_total", **lost)
    await fires_when(port, "everydream_stage_failures_total", at_first + 2, **lost)

    failing = await here.run(TRAIN_ONLY)
    for _ in range(3):
        here.clock.ahead += 1000.0
        await eventually(lambda: is_requested(here, failing))
        claimed = await here.claim(failing, "staging")
        await claimed.publish(StageFailed, kind="passing", reason="out of memory")
    await here.status_becomes(failing, "FAILED")
    for job in jobs:
        await here.ask("POST", f"/v1/everydream-v1/cancel/{job}")
    expected = ["EveryDreamWorkersLost", "EveryDreamWorkFails", "EveryDreamWebhooksGivenUp"]
    expect_firing(before, await observed(port), expected)


async def is_requested(here: World, job: str) -> bool:
    """Its next message came; those of others are taken away."""
    return (await here.get(FETCHER)).job == job


async def test_a_dead_letter_that_nobody_sees_to(here: World, port: Port) -> None:
    before = await observed(port)
    await here.run(TRAIN_ONLY)
    await (await here.bus.get(FETCHER)).dead_letter("a test")
    after = await fires_when(port, "everydream_dead_letters_kept", 1.0)
    expect_firing(before, after, ["EveryDreamDeadLetters"])
    asked = {"queue": FETCHER.name}
    counted = "everydream_dead_letters_total"
    assert value(after, counted, **asked) - value(before, counted, **asked) == 1
