"""What operators see of the whole service, and what they mend."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from services.gateway.key_ports import StoredKey
from services.gateway.system_ports import StoredDeadLetter
from services.gateway.web.authentication import CLIENT_SCOPES, digest_of
from shared.messaging.messages import (
    STAGES,
    StageFailed,
    StagingDue,
    StagingProgressed,
    StagingStarted,
    WebhookDue,
    WebhookFailed,
    encode,
)
from shared.messaging.topology import DELIVERY_LIMIT, FETCHER, NOTIFIER_WEBHOOKS, QUEUES, TRAINER
from shared.ports import DeadLetter
from shared.release import release
from tests.support.gateway_world import (
    OTHER_KEY,
    World,
    eventually,
    trained,
    training,
    world,
)

ROOT = "/v2/everydream-v1/admin"
SECRET = "a-token-in-an-address"
HOOK = f"https://hooks.example.com/in/{SECRET}?token={SECRET}"
DATA = {"input": {"train": {"data_url": f"https://example.com/dataset.zip?token={SECRET}"}}}


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as one:
        yield one


@pytest.fixture
async def over_rabbitmq(tmp_path: Path, amqp_url: str) -> AsyncIterator[World]:
    async with world(tmp_path, amqp_url=amqp_url) as one:
        yield one


async def look(here: World, what: str, **query: Any) -> dict[str, Any]:
    answer = await here.ask("GET", f"{ROOT}/{what}", params=query, key=OTHER_KEY)
    assert answer.status == 200, answer
    assert SECRET not in str(answer.body)
    body: dict[str, Any] = answer.body
    return body


async def dead_letters(here: World) -> list[dict[str, Any]]:
    """As soon as there are any."""

    async def seen() -> list[dict[str, Any]] | None:
        return (await look(here, "dead-letters"))["dead_letters"] or None

    return await eventually(seen)


# --- Who may ----------------------------------------------------------------------------------


async def test_a_key_for_clients_sees_nothing_of_it(here: World) -> None:
    key = StoredKey(digest=digest_of("c"), name="c", scopes=CLIENT_SCOPES, created_at=0.0)
    await here.stores.keys.add(key)

    for what in ("workers", "queues", "dead-letters", "webhooks", "disk"):
        answer = await here.ask("GET", f"{ROOT}/{what}", key="c")
        assert (answer.status, answer.body) == (403, {"error": "this key has no scope operate"})
    assert (await here.ask("GET", "/session", key="c")).body["scopes"] == [*CLIENT_SCOPES]
    assert "operate" in (await here.ask("GET", "/session")).body["scopes"]


# --- Workers and queues -----------------------------------------------------------------------


async def test_a_worker_is_named_with_its_work_its_device_and_its_silence(here: World) -> None:
    job = await here.run()
    started = StagingStarted(
        job=job, stage="staging", claim=str(uuid4()), worker="fetcher/host-1", version="1.2.3"
    )
    before = here.clock()
    await here.publish(started)
    await here.answer_to(started.claim)
    fact = StagingProgressed(job=job, stage="staging", claim=started.claim, worker="fetcher/host-1")

    async def heard() -> dict[str, Any] | None:
        await here.publish(fact)
        (busy,) = (await look(here, "workers"))["busy"]
        return busy if busy["silent_seconds"] is not None else None

    busy = await eventually(heard)
    assert 0 <= busy.pop("silent_seconds") <= here.clock() - before + 1
    assert busy.pop("claimed_at") is not None
    assert busy == {
        "worker": "fetcher/host-1", "service": "fetcher", "job": job, "stage": "staging",
        "attempt": 1, "gpu": None, "version": "1.2.3",
    }  # fmt: skip

    await training(here)
    devices = {each["stage"]: each["gpu"] for each in (await look(here, "workers"))["busy"]}
    assert devices == {"staging": None, "training": "card"}


async def test_free_places_are_those_of_the_workers_that_wait(here: World) -> None:
    assert {each["places"] for each in (await look(here, "workers"))["free"]} == {0}
    waiting = asyncio.create_task(here.bus.get(FETCHER))

    async def seen() -> dict[str, int] | None:
        free = (await look(here, "workers"))["free"]
        places = {each["service"]: each["places"] for each in free}
        return places if any(places.values()) else None

    assert await eventually(seen) == {"fetcher": 1, "trainer": 0, "inferencer": 0, "notifier": 0}
    waiting.cancel()


async def test_busy_workers_come_page_by_page(here: World) -> None:
    jobs = [await here.run() for _ in range(3)]
    for job in jobs:
        await here.claim(job, "staging")

    first = await look(here, "workers", limit=2)
    second = await look(here, "workers", limit=2, cursor=first["next"])

    assert [len(page["busy"]) for page in (first, second)] == [2, 1]
    assert second["next"] is None
    assert {each["job"] for each in (*first["busy"], *second["busy"])} == {*jobs}


async def test_queues_tell_what_waits_what_is_claimed_and_how_long(here: World) -> None:
    claimed, waits = await here.run(), await here.run()
    await here.claim(claimed, "staging")
    assert waits
    here.clock.ahead += 90

    async def both_published() -> dict[str, Any] | None:
        queues = await look(here, "queues")
        messages = {each["queue"]: each["messages"] for each in queues["broker"]}
        return queues if messages[FETCHER.name] == 2 else None

    queues = await eventually(both_published)
    stages = {each["stage"]: each for each in queues["stages"]}
    assert [*stages] == [*STAGES]
    staging = stages["staging"]
    assert (staging["claimed"], staging["waiting"], staging["delayed"]) == (1, 1, 0)
    assert 90 <= staging["oldest_seconds"] < 90 + 60
    assert stages["training"]["oldest_seconds"] is None
    assert [each["queue"] for each in queues["broker"]] == [queue.name for queue in QUEUES]


async def test_a_stage_that_is_tried_later_is_delayed_not_waiting(here: World) -> None:
    job = await here.run()
    fetcher = await here.claim(job, "staging")
    await fetcher.publish(StageFailed, kind="passing", reason="the server is away")

    async def staging() -> dict[str, Any] | None:
        stages = (await look(here, "queues"))["stages"]
        (found,) = (each for each in stages if each["stage"] == "staging")
        return found if not found["claimed"] else None

    now = await eventually(staging)
    assert now["delayed"] + now["waiting"] == 1


async def test_jobs_that_wait_for_their_turn_are_counted_by_line(here: World) -> None:
    for _ in range(12):
        await here.run(DATA)

    async def waiting() -> list[dict[str, Any]] | None:
        lines = (await look(here, "queues"))["lines"]
        return lines if lines[0]["waiting"] else None

    lines = await eventually(waiting)
    assert [each["line"] for each in lines] == ["train", "draw", "check"]
    assert lines[0]["oldest_seconds"] is not None
    assert (lines[1]["waiting"], lines[1]["oldest_seconds"]) == (0, None)


# --- Dead letters -----------------------------------------------------------------------------


async def buried(here: World) -> tuple[str, StagingDue]:
    """A job whose request for staging was dead-lettered."""
    job = await here.run(DATA)
    delivery = await here.bus.get(FETCHER)
    assert isinstance(delivery.message, StagingDue)
    await delivery.dead_letter("the fetcher had a bug")
    return job, delivery.message


async def test_a_dead_letter_is_shown_without_its_user_and_put_back_on_its_queue(
    here: World,
) -> None:
    await see_and_requeue(here)


async def test_so_it_is_over_rabbitmq(over_rabbitmq: World) -> None:
    await see_and_requeue(over_rabbitmq)


async def see_and_requeue(here: World) -> None:
    job, message = await buried(here)

    (letter,) = await dead_letters(here)
    assert letter.pop("at") is not None
    assert letter.pop("length") > 0
    assert len(letter.pop("sha256")) == 64
    assert letter == {
        "id": letter["id"], "queue": "fetcher", "reason": "the fetcher had a bug",
        "type": "staging.due", "job": job, "excerpt": {"run": 1}, "requeue": None,
    }  # fmt: skip

    again = await here.ask("POST", f"{ROOT}/dead-letters/{letter['id']}/requeue")

    assert (again.status, again.body) == (200, {"id": letter["id"], "done": "requeued"})
    assert await here.get(FETCHER) == message
    assert (await look(here, "dead-letters"))["dead_letters"] == []
    twice = await here.ask("POST", f"{ROOT}/dead-letters/{letter['id']}/requeue")
    assert twice.status == 404


async def test_what_rabbitmq_itself_buries_can_be_put_back_too(over_rabbitmq: World) -> None:
    here = over_rabbitmq
    job = await here.run(DATA)
    for _ in range(DELIVERY_LIMIT + 1):
        await (await here.bus.get(FETCHER)).release()
    (letter,) = await dead_letters(here)
    assert (letter["queue"], letter["reason"], letter["job"]) == ("fetcher", "delivery_limit", job)

    await here.ask("POST", f"{ROOT}/dead-letters/{letter['id']}/requeue")

    assert isinstance(await here.get(FETCHER), StagingDue)


async def test_a_body_that_was_not_kept_cannot_be_put_back_but_deleted(here: World) -> None:
    request = {"input": {"train": {"data_url": f"https://example.com/{SECRET}", "steps": {}}}}
    await here.stores.dead_letters.add(
        StoredDeadLetter(
            "one", here.clock(),
            DeadLetter(queue="gateway.intake", reason="?", length=len(str(request)),
                       sha256="0" * 64, body=b""),
        )
    )  # fmt: skip
    (letter,) = await dead_letters(here)
    assert (letter["type"], letter["job"], letter["excerpt"]) == (None, None, {})
    assert "was not kept" in letter["requeue"]

    refused = await here.ask("POST", f"{ROOT}/dead-letters/one/requeue")
    deleted = await here.ask("DELETE", f"{ROOT}/dead-letters/one")

    assert refused.status == 409
    assert "was not kept" in refused.body["error"]
    assert (deleted.status, deleted.body) == (200, {"id": "one", "done": "deleted"})
    assert (await here.ask("DELETE", f"{ROOT}/dead-letters/one")).status == 404


async def test_a_claim_and_a_message_for_a_strange_queue_cannot_be_put_back(here: World) -> None:
    claim = encode(StagingStarted(job="a", stage="staging", claim="c", worker="w"))
    due = encode(WebhookDue(job="a", run=1, attempt=1, url=HOOK, webhook_id="w", body="{}"))
    for name, queue, kind, body in (
        ("claim", "gateway.recorder", "staging.started", claim),
        ("strange", "control.fetcher/x", "webhook.due", due),
        ("wrong", "fetcher", "webhook.due", due),
    ):
        letter = DeadLetter(
            queue=queue, reason="?", length=1, sha256="", body=body, type=kind, job="a"
        )
        await here.stores.dead_letters.add(StoredDeadLetter(name, here.clock(), letter))

    for name in ("claim", "strange", "wrong"):
        answer = await here.ask("POST", f"{ROOT}/dead-letters/{name}/requeue")
        assert answer.status == 409, name
    assert len(await dead_letters(here)) == 3


async def test_dead_letters_come_page_by_page_and_go_with_their_job(here: World) -> None:
    job, _ = await buried(here)
    for number in range(2):
        letter = DeadLetter(queue="q", reason="?", length=1, sha256="", body=b"")
        await here.stores.dead_letters.add(StoredDeadLetter(f"n{number}", float(number), letter))
    await dead_letters(here)

    first = await eventually(lambda: a_page_of_two(here))
    second = await look(here, "dead-letters", limit=2, cursor=first["next"])

    ids = [each["id"] for each in (*first["dead_letters"], *second["dead_letters"])]
    assert ids[1:] == ["n1", "n0"]
    assert second["next"] is None
    await here.ask("DELETE", f"/v1/everydream-v1/jobs/{job}")
    left = (await look(here, "dead-letters"))["dead_letters"]
    assert [each["id"] for each in left] == ["n1", "n0"]
    await here.stores.dead_letters.trim(0.5, 10)
    await here.stores.dead_letters.trim(0.0, 0)
    assert (await look(here, "dead-letters"))["dead_letters"] == []


async def a_page_of_two(here: World) -> dict[str, Any] | None:
    page = await look(here, "dead-letters", limit=2)
    return page if page["next"] else None


# --- Webhooks ---------------------------------------------------------------------------------


async def given_up(here: World) -> tuple[str, WebhookDue]:
    """A job of which the receiver wants no webhook."""
    job = await trained(here, webhook=HOOK)
    due = await here.get(NOTIFIER_WEBHOOKS)
    assert isinstance(due, WebhookDue)
    failed = WebhookFailed(
        job=job, run=1, attempt=due.attempt, webhook_id=due.webhook_id,
        reason="answered with status 410", permanent=True,
    )  # fmt: skip
    await here.publish(failed)
    return job, due


async def webhooks(here: World) -> list[dict[str, Any]]:
    async def seen() -> list[dict[str, Any]] | None:
        return (await look(here, "webhooks"))["webhooks"] or None

    return await eventually(seen)


async def test_a_webhook_that_was_given_up_is_sent_again(here: World) -> None:
    job, due = await given_up(here)

    (webhook,) = await webhooks(here)
    assert webhook.pop("at") is not None
    assert webhook == {
        "job": job, "webhook": due.webhook_id, "event": "completed", "host": "hooks.example.com",
        "reason": "answered with status 410", "attempts": 1,
    }  # fmt: skip

    sent = await here.ask("POST", f"{ROOT}/webhooks/{job}/{due.webhook_id}/resend", key=OTHER_KEY)

    assert (sent.status, sent.body["attempt"]) == (200, 2)
    again = await here.get(NOTIFIER_WEBHOOKS)
    assert isinstance(again, WebhookDue)
    assert (again.url, again.webhook_id, again.attempt) == (HOOK, due.webhook_id, 2)
    assert (await look(here, "webhooks"))["webhooks"] == []
    for path in (f"{job}/other", f"{uuid4()}/{due.webhook_id}"):
        assert (await here.ask("POST", f"{ROOT}/webhooks/{path}/resend")).status == 404


async def test_a_webhook_that_is_tried_again_is_not_given_up(here: World) -> None:
    job = await trained(here, webhook=HOOK)
    due = await here.get(NOTIFIER_WEBHOOKS)
    assert isinstance(due, WebhookDue)
    failed = WebhookFailed(job=job, run=1, attempt=1, webhook_id=due.webhook_id, reason="away")
    await here.publish(failed)
    await here.get(NOTIFIER_WEBHOOKS)  # the next try

    assert (await look(here, "webhooks"))["webhooks"] == []


async def test_given_up_webhooks_come_page_by_page(here: World) -> None:
    jobs = [(await given_up(here))[0] for _ in range(2)]

    async def both() -> dict[str, Any] | None:
        page = await look(here, "webhooks", limit=1)
        return page if page["next"] else None

    first = await eventually(both)
    second = await look(here, "webhooks", limit=1, cursor=first["next"])
    assert {page["webhooks"][0]["job"] for page in (first, second)} == {*jobs}
    assert second["next"] is None


# --- Disk -------------------------------------------------------------------------------------


async def test_the_disk_tells_what_is_kept_and_how_much_more_fits(here: World) -> None:
    sent = await here.ask("POST", "/v1/everydream-v1/uploads", data=b"x" * 1000)
    assert sent.status in (200, 201), sent
    job = await here.run()
    submitted = await here.get(FETCHER)
    fetcher = await here.claim(job, "staging")
    await fetcher.stage_dataset(submitted, model="cache/hub-model", model_bytes=4000)
    await here.get(TRAINER)

    async def staged() -> dict[str, Any] | None:
        disk = await look(here, "disk")
        return disk if disk["kept"]["models"] else None

    disk = await eventually(staged)
    assert disk["version"] == release()
    assert disk["kept"] == {"uploads": 1000, "datasets": 0, "models": 4000}
    assert disk["database_bytes"] > 0
    assert 0 < disk["store"]["free_bytes"] < disk["store"]["total_bytes"]
    files = (disk["store"]["free_files"], disk["store"]["total_files"])
    assert files == (None, None) or 0 < files[0] < files[1]


@pytest.mark.parametrize("what", ["workers", "dead-letters", "webhooks"])
async def test_a_mistake_in_the_query_is_named(here: World, what: str) -> None:
    answer = await here.ask("GET", f"{ROOT}/{what}", params={"limit": "0", "page": "2"})
    assert answer.status == 400
    assert len(answer.body["mistakes"]) == 2
