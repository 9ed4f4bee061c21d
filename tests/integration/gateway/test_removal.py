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
from services.gateway.key_ports import StoredKey
from services.gateway.ports import DELETED
from services.gateway.web.authentication import digest_of
from shared.errors import Unavailable
from shared.messaging.messages import (
    CheckpointSaved,
    JobCancelled,
    TrainingProgressed,
    WebhookDue,
    WebhookFailed,
)
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
        record.dead_letters,
        clock=here.clock, heartbeat=HEARTBEAT, keep_days=30.0,
        on_deleted=here.gateway._forget_deleted,
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


# --- One checkpoint ---------------------------------------------------------------------------


async def remove_checkpoint(here: World, job: str, step: object = 4, **more: Any) -> Any:
    return await here.ask("DELETE", f"{ROOT}/jobs/{job}/checkpoints/{step}", **more)


def early(job: str) -> str:
    return f"jobs/{job}/training/1/job-ep01.safetensors"


async def is_gone(here: World, key: str) -> bool | None:
    return not await here.store.exists(key) or None


async def due(here: World, job: str) -> tuple[str, ...]:
    current = await here.gateway._repository.get(job)
    assert current is not None
    return current.files_to_delete


async def test_a_checkpoint_is_deleted_alone_and_nothing_shows_it_any_more(here: World) -> None:
    job, trainer = await training(here)
    optimizers = await trainer.put(early(job).replace("safetensors", "optimizer/0"), "checkpoint")
    await trainer.finish_training()
    before = (await here.status_becomes(job, "COMPLETED"))["output"]
    await eventually(lambda: is_gone(here, f"jobs/{job}/staging/1/dataset/manifest.json"))
    stay = {*await files(here, job)} - {early(job), optimizers.key}

    answer = await remove_checkpoint(here, job)

    assert (answer.status, answer.body) == (200, {"id": job, "step": 4, "deleted": True})
    output = (await here.status(job))["output"]
    assert (len(before["train"]["checkpoints"]), output["train"]["checkpoints"]) == (1, [])
    names = [each["name"] for each in output["artifacts"]]
    assert names == ["last-job.safetensors", "metrics.jsonl"]
    await eventually(lambda: is_gone(here, early(job)))
    await eventually(lambda: is_gone(here, optimizers.key))
    assert {*await files(here, job)} == stay
    async with following(here, job) as source:
        told = [each for each in await source.rest() if each.kind == "checkpoint_deleted"]
    assert [each.data["step"] for each in told] == [4]
    assert [each.data["name"] for each in told] == ["job-ep01.safetensors"]
    assert (await remove_checkpoint(here, job)).status == 404


async def test_a_running_job_goes_on_without_a_checkpoint_that_was_deleted(here: World) -> None:
    job, trainer = await training(here)
    file = await trainer.put(early(job), "checkpoint")
    await trainer.publish(CheckpointSaved, artifact=file, step=4, epoch=1)
    removed = await eventually(lambda: removed_checkpoint(here, job))
    assert removed
    await eventually(lambda: is_gone(here, early(job)))
    here.clock.ahead += 3600.0
    staged = await trainer.put(f"jobs/{job}/staging/1/dataset/manifest.json", "checkpoint")
    await asyncio.gather(keeper(here).delete_due(), keeper(here).delete_due())
    assert await here.store.exists(staged.key), "what it trains on"
    await trainer.finish_training()

    output = (await here.status_becomes(job, "COMPLETED"))["output"]

    assert output["train"]["checkpoints"] == []
    assert output["train"]["checkpoint_url"]


async def removed_checkpoint(here: World, job: str) -> bool | None:
    return (await remove_checkpoint(here, job)).status == 200 or None


async def test_the_last_checkpoint_goes_with_its_job_only(here: World) -> None:
    job = await trained(here)

    refused = await remove_checkpoint(here, job, 8)

    assert refused.status == 409
    assert refused.body["error"].endswith("cannot be deleted alone: delete the job")
    assert (await here.status(job))["output"]["train"]["checkpoint_url"]


async def test_a_checkpoint_stays_while_a_job_is_yet_to_read_it(here: World) -> None:
    source = await trained(here)
    (shown,) = (await here.status(source))["output"]["train"]["checkpoints"]
    train = {**REQUEST["input"]["train"], "resume_ckpt_url": shown["url"]}
    answer = await here.ask("POST", f"{ROOT}/run", json={"input": {"train": train}})
    job = answer.body["id"]

    refused = await remove_checkpoint(here, source)

    assert (refused.status, job in refused.body["error"]) == (409, True)
    assert await here.store.exists(early(source))
    assert (await remove(here, job)).status == 200
    assert (await remove_checkpoint(here, source)).status == 200


@pytest.mark.parametrize("step", ["5", "04", "-4", "last", "4%2F", "9" * 400, "%00"])
async def test_where_no_checkpoint_is_none_is_deleted(here: World, step: str) -> None:
    job = await trained(here)

    assert (await remove_checkpoint(here, job, step)).status == 404
    assert await here.store.exists(early(job))


async def test_only_the_owner_may_delete_a_checkpoint_and_only_with_the_scope(here: World) -> None:
    job = await trained(here)
    made = StoredKey(
        digest=digest_of("submits"), name="submits", scopes=("read", "submit"), created_at=0.0
    )
    await here.stores.keys.add(made)

    for key, status in ((OTHER_KEY, 404), ("submits", 403), ("none", 401)):
        assert (await remove_checkpoint(here, job, key=key)).status == status
    assert await here.store.exists(early(job))


async def test_a_checkpoints_file_goes_though_a_gateway_dies_before_it_is_deleted(
    here: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await trained(here)
    monkeypatch.setattr(here.store, "delete", unavailable)
    assert (await remove_checkpoint(here, job)).status == 200
    assert (await due(here, job), await here.store.exists(early(job))) == ((prefix(job),), True)
    with pytest.raises(Unavailable):
        await keeper(here).delete_due()
    assert await due(here, job) == (prefix(job),)
    monkeypatch.undo()

    other = Gateway(here.settings, KEY, here.broker.bus("other"), here.store, here.stores)
    async with running(other):
        await eventually(lambda: is_gone(here, early(job)))
        await eventually(lambda: nothing_is_due(here, job))

    assert (await here.status(job))["status"] == "COMPLETED"
    assert await here.jobs.kept_before(here.clock()) == []


def prefix(job: str) -> str:
    return early(job).removesuffix("safetensors")


async def nothing_is_due(here: World, job: str) -> bool | None:
    return not await due(here, job) or None


async def unavailable(_prefix: str) -> int:
    raise Unavailable("the store is away")


async def test_a_model_stays_while_a_job_has_yet_to_draw_with_a_lora_for_it(here: World) -> None:
    base = await trained(here)
    lora, trainer = await training(here, REQUEST)
    await trainer.finish_training(lora_base=f"jobs/{base}/training/1/model")
    generation = await here.claim(lora, "generation")
    own = await remove(here, base)
    await generation.finish_generation()
    await here.status_becomes(lora, "COMPLETED")

    drawing = await here.run({"input": {"model": lora, "inference": {"prompt": "a wall"}}})
    others = await remove(here, base)
    assert (await here.ask("POST", f"{ROOT}/cancel/{drawing}")).status == 200

    for refused, job in ((own, lora), (others, drawing)):
        assert refused.status == 409
        assert f"still need it: {job};" in refused.body["error"]
    assert (await remove(here, base)).status == 200


async def test_each_of_several_models_stays_while_a_job_has_yet_to_draw_with_them(
    here: World,
) -> None:
    base, lora = await trained(here), await trained(here)
    models = [base, {"model": lora, "weight": 0.5}]
    drawing = await here.run({"input": {"model": models, "inference": {"prompt": "a wall"}}})

    refused = [await remove(here, job) for job in (base, lora)]

    assert (await here.ask("POST", f"{ROOT}/cancel/{drawing}")).status == 200
    assert [each.status for each in refused] == [409, 409]
    assert (await remove(here, lora)).status == 200
    body = {"input": {"model": models, "inference": {"prompt": "a wall"}}}
    gone = await here.ask("POST", f"{ROOT}/run", json=body)
    assert gone.status == 400
    assert gone.body["error"].startswith("input.model[1]: expected the id of a job of yours")
