"""Removing jobs: what is deleted, what stays deleted, and what workers still write."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.gateway.app import Gateway
from services.gateway.background.model_eviction import ModelEviction
from services.gateway.background.retention import DAY, Retention
from services.gateway.jobs import change_notifier
from services.gateway.jobs.budgets import Budgets
from services.gateway.jobs.uploads import Uploads
from services.gateway.ports import DELETED, StoredKey
from services.gateway.web.authentication import digest_of
from shared.messaging.messages import JobCancelled, TrainingProgressed, WebhookDue, WebhookFailed
from shared.messaging.topology import NOTIFIER_WEBHOOKS
from tests.integration.gateway.test_server_sent_events import following
from tests.support.gateway_world import (
    HEARTBEAT,
    KEY,
    OTHER_KEY,
    REQUEST,
    World,
    eventually,
    running,
    trained,
    training,
    world,
)
from tests.support.outbox import ids_in_outbox

ROOT = "/v2/everydream-v1"


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as one:
        yield one


async def remove(here: World, job: str, **more: Any) -> Any:
    return await here.ask("DELETE", f"{ROOT}/jobs/{job}", **more)


async def files(here: World, job: str) -> list[str]:
    return [entry.key async for entry in here.store.list(f"jobs/{job}/")]


async def nothing_is_left(here: World, job: str) -> bool | None:
    return not await files(here, job) or None


def keeper(here: World) -> Retention:
    record, public_url = here.stores, here.settings.public_url
    budgets = Budgets(here.settings, record.jobs, record.uploads)
    uploads = Uploads(record.uploads, here.store, budgets, public_url, here.clock)
    return Retention(
        record.jobs, here.store, uploads, ModelEviction(record.jobs, here.store, clock=here.clock),
        clock=here.clock, heartbeat=HEARTBEAT, keep_days=30.0,
        on_deleted=here.gateway._forget_dataset,
    )  # fmt: skip


async def test_a_removed_job_takes_its_files_along_and_is_nowhere_seen_again(here: World) -> None:
    job, stays = await trained(here), await trained(here)
    assert await files(here, job)

    answer = await remove(here, job)

    assert (answer.status, answer.body) == (200, {"id": job, "deleted": True})
    await eventually(lambda: nothing_is_left(here, job))
    assert (await remove(here, job)).status == 404
    for path in (f"status/{job}", f"events/{job}", f"stream/{job}", f"jobs/{job}/webhooks"):
        assert (await here.ask("GET", f"{ROOT}/{path}")).status == 404
    listed = (await here.ask("GET", f"{ROOT}/jobs")).body["jobs"]
    assert [each["id"] for each in listed] == [stays]
    assert [each.type for each in await here.jobs.events_after(job, 0, 0)] == [DELETED]
    assert await files(here, stays)


async def test_a_model_stays_while_a_job_draws_with_it(here: World) -> None:
    model = await trained(here)
    body = {"input": {"model": model, "inference": [{"prompt": "a cat"}]}}
    job = (await here.ask("POST", f"{ROOT}/run", json=body)).body["id"]

    refused = await remove(here, model)

    assert (refused.status, job in refused.body["error"]) == (409, True)
    assert (await here.status(model))["status"] == "COMPLETED"
    assert (await remove(here, job)).status == 200
    assert (await remove(here, model)).status == 200


async def test_a_job_at_work_is_stopped_first(here: World) -> None:
    job, trainer = await training(here)

    await remove(here, job)

    assert (await here.refusal_of(trainer.id)).reason == "the job has ended"
    assert (await here.receive(JobCancelled)).job == job
    await trainer.publish(TrainingProgressed, progress={"step": 4})
    refused = await eventually(lambda: refusal(here, trainer.id, "no such job"))
    assert refused


async def refusal(here: World, claim: str, reason: str) -> bool | None:
    return reason in [each.reason for each in here._refusals(claim)] or None


async def test_what_a_worker_writes_afterwards_is_swept_up_by_any_gateway(here: World) -> None:
    job, trainer = await training(here)
    await remove(here, job)
    await eventually(lambda: nothing_is_left(here, job))
    late = await trainer.put(f"jobs/{job}/training/1/late.safetensors", "checkpoint")

    async with asyncio.timeout(30):
        await keeper(here).delete_leftovers()
    assert not await here.store.exists(late.key)
    later = await trainer.put(f"jobs/{job}/training/1/later.safetensors", "checkpoint")
    here.clock.ahead += DAY + 1
    await keeper(here).delete_leftovers()
    assert not await here.store.exists(later.key)
    assert await here.jobs.removed() == []


async def test_a_gateway_that_starts_sweeps_at_once(here: World) -> None:
    job, trainer = await training(here)
    await remove(here, job)
    await eventually(lambda: nothing_is_left(here, job))
    await trainer.put(f"jobs/{job}/training/1/late.safetensors", "checkpoint")

    other = Gateway(here.settings, KEY, here.broker.bus("other"), here.store, here.stores)
    async with running(other):
        await eventually(lambda: nothing_is_left(here, job))


@pytest.mark.parametrize("operation", ["status-sync", "stream"])
async def test_a_wait_ends_when_another_gateway_removes_the_job(
    here: World, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    waits, wait = asyncio.Event(), change_notifier._wait

    async def tell_and_wait(changed: asyncio.Event, seconds: float) -> None:
        waits.set()
        await wait(changed, seconds)

    monkeypatch.setattr(change_notifier, "_wait", tell_and_wait)
    job = await here.run()
    await here.ask("GET", f"{ROOT}/stream/{job}")
    url = f"{ROOT}/{operation}/{job}?wait=60000"
    waits.clear()
    waiting = asyncio.create_task(here.ask("GET", url))
    async with asyncio.timeout(30):
        await waits.wait()
        await here.jobs.remove(job, here.clock())
        assert (await waiting).status == 404

    assert await here.jobs.streamed(job) == ("", 0.0)


async def test_followers_of_a_removed_job_receive_its_end_at_most(here: World) -> None:
    job = await here.run()
    async with following(here, job) as source:
        await source.until("status")
        await remove(here, job)
        rest = await source.rest()

    assert [each.data["status"] for each in rest] in ([], ["CANCELLED"])


async def test_a_webhook_that_would_be_tried_later_is_not(here: World) -> None:
    job = await trained(here, webhook="https://example.com/hook")
    first = await here.get(NOTIFIER_WEBHOOKS)
    assert isinstance(first, WebhookDue)
    await here.publish(
        WebhookFailed(
            job=job, run=1, attempt=1, webhook_id=first.webhook_id, reason="r", retry_after=60.0
        )
    )
    await eventually(lambda: waits_to_leave(here))

    await remove(here, job)

    assert await ids_in_outbox(here.settings.database_url) == []


async def waits_to_leave(here: World) -> bool | None:
    return bool(await ids_in_outbox(here.settings.database_url)) or None


async def test_the_key_of_a_removed_job_creates_no_other_job(here: World) -> None:
    once = {"Idempotency-Key": "order 17"}
    first = await here.ask("POST", f"{ROOT}/run", json=REQUEST, headers=once)
    await remove(here, first.body["id"])

    again = await here.ask("POST", f"{ROOT}/run", json=REQUEST, headers=once)

    assert again.status == 422
    assert "was deleted; use another key" in again.body["error"]


async def test_the_model_of_a_removed_job_is_not_trained_on(here: World) -> None:
    job = await trained(here)
    await remove(here, job)
    train = {**REQUEST["input"]["train"], "resume_ckpt_url": job}

    answer = await here.ask("POST", f"{ROOT}/run", json={"input": {"train": train}})

    assert answer.status == 400
    wanted = "expected the id of a job of yours that has a model"
    assert answer.body["mistakes"] == [f'input.train.resume_ckpt_url: {wanted}, got "{job}"']


async def test_only_the_owner_may_remove_and_only_with_the_scope(here: World) -> None:
    job = await here.run()
    made = StoredKey(
        digest=digest_of("submits"), name="submits", scopes=("read", "submit"), created_at=0.0
    )
    await here.stores.keys.add(made)

    assert (await remove(here, job, key=OTHER_KEY)).status == 404
    assert (await remove(here, job, key="submits")).status == 403
    assert (await remove(here, job, key="none")).status == 401
    assert (await here.status(job))["status"] == "IN_QUEUE"
