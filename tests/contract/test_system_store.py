"""The promises of the stores for operators, checked on SQLite and PostgreSQL."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from services.gateway.database.connection import Database
from services.gateway.database.stores import stores_in
from services.gateway.ports import OpenStage, Outgoing, StoredJob
from services.gateway.stores import Stores
from services.gateway.system_ports import LineLoad, StageLoad, StoredDeadLetter
from services.gateway.upload_ports import StoredUpload
from shared.ports import DeadLetter


@pytest.fixture
def stores(database: Database) -> Stores:
    return stores_in(database)


def job(name: str, **changes: Any) -> StoredJob:
    plain = StoredJob(
        id=name, owner="anna", status="IN_QUEUE", version=1, created_at=1.0, ended_at=None,
        line="train", record=b"{}",
    )  # fmt: skip
    return msgspec.structs.replace(plain, **changes)


def letter(name: str, at: float, **changes: Any) -> StoredDeadLetter:
    plain = DeadLetter(
        queue="fetcher", reason="?", length=7, sha256="0" * 64, body=b"a body", type="t", job="a"
    )
    return StoredDeadLetter(name, at, msgspec.structs.replace(plain, **changes))


# --- What all jobs come to --------------------------------------------------------------------


async def test_claimed_stages_come_in_order_page_by_page(stores: Stores) -> None:
    first = OpenStage("a", "generation", "c1", 1.0)
    second = OpenStage("a", "model_publication", "c2", 1.0)
    third = OpenStage("b", "staging", "c3", 2.0)
    await stores.jobs.insert(job("a"), [], stages=[second, first])
    await stores.jobs.insert(job("b"), [], stages=[third, OpenStage("b", "training", None, 0.0)])

    page = await stores.system.work(None, 2)
    rest = await stores.system.work((1.0, "a", "model_publication"), 2)

    assert [work.stage for work in (*page, *rest)] == [first, second, third]
    assert [work.job for work in (*page, *rest)] == [job("a"), job("a"), job("b")]


async def test_stages_are_counted_by_whether_they_are_claimed_due_or_to_come(
    stores: Stores,
) -> None:
    assert await stores.system.stages(5.0) == []
    for name, claim, due_at in (("a", "c", 1.0), ("b", None, 3.0), ("c", None, 2.0)):
        await stores.jobs.insert(job(name), [], stages=[OpenStage(name, "staging", claim, due_at)])
    await stores.jobs.insert(job("d"), [], stages=[OpenStage("d", "staging", None, 9.0)])
    await stores.jobs.insert(job("e"), [], stages=[OpenStage("e", "training", None, 9.0)])

    loads = sorted(await stores.system.stages(5.0))

    assert loads == [
        StageLoad("staging", claimed=1, waiting=2, delayed=1, oldest=2.0),
        StageLoad("training", claimed=0, waiting=0, delayed=1, oldest=None),
    ]


async def test_jobs_that_wait_for_their_turn_are_counted_by_line(stores: Stores) -> None:
    await stores.jobs.insert(job("a", released_at=None, created_at=4.0), [])
    await stores.jobs.insert(job("b", released_at=None, created_at=3.0), [])
    await stores.jobs.insert(job("c", released_at=5.0), [])
    await stores.jobs.insert(job("d", released_at=None, line="check"), [])

    assert sorted(await stores.system.lines()) == [
        LineLoad("check", 1, 1.0), LineLoad("train", 2, 3.0),
    ]  # fmt: skip


async def test_jobs_with_given_up_webhooks_come_newest_first(stores: Stores) -> None:
    await stores.jobs.insert(job("a", webhook_failed_at=1.0), [])
    await stores.jobs.insert(job("b", webhook_failed_at=2.0), [])
    await stores.jobs.insert(job("c", webhook_failed_at=2.0), [])
    await stores.jobs.insert(job("d"), [])

    page = await stores.system.given_up(None, 2)
    rest = await stores.system.given_up((2.0, "b"), 2)

    assert [each.id for each in (*page, *rest)] == ["c", "b", "a"]


async def test_bytes_are_added_up_and_a_model_of_several_jobs_counts_once(stores: Stores) -> None:
    assert (await stores.system.stored_bytes())[:3] == (0, 0, 0)
    for name, received in (("u", 10), ("v", 5)):
        upload = StoredUpload(id=name, owner="anna", bytes=100, received=received, touched_at=1.0)
        await stores.uploads.add(upload)
    await stores.jobs.insert(job("a", model="cache/m", model_bytes=3 << 40), [])
    await stores.jobs.insert(job("b", model="cache/m", model_bytes=3 << 40, kept_bytes=4), [])

    stored = await stores.system.stored_bytes()

    assert (stored.uploads, stored.datasets, stored.models) == (15, 4, 3 << 40)
    assert stored.database > 0


# --- Dead letters -----------------------------------------------------------------------------


async def test_a_dead_letter_is_kept_once_as_it_was(stores: Stores) -> None:
    await stores.dead_letters.add(letter("one", 1.5))
    await stores.dead_letters.add(letter("one", 2.5, reason="another"))

    assert await stores.dead_letters.find("one") == letter("one", 1.5)
    assert await stores.dead_letters.find("two") is None


async def test_dead_letters_come_newest_first_page_by_page(stores: Stores) -> None:
    for name, at in (("a", 1.0), ("b", 2.0), ("c", 2.0)):
        await stores.dead_letters.add(letter(name, at))

    page = await stores.dead_letters.newest(None, 2)
    rest = await stores.dead_letters.newest((2.0, "b"), 2)

    assert [each.id for each in (*page, *rest)] == ["c", "b", "a"]


async def test_a_dead_letter_goes_to_the_outbox_once(stores: Stores) -> None:
    await stores.dead_letters.add(letter("one", 1.0))
    message = Outgoing(id="a/dead/one", message=b"a body", queue="fetcher")

    assert await stores.dead_letters.requeue("one", message)
    assert not await stores.dead_letters.requeue("one", message)

    assert await stores.jobs.take_due(1.0, 2.0) == [message]
    assert await stores.dead_letters.newest(None, 9) == []


async def test_dead_letters_are_deleted_alone_by_age_by_number_and_with_their_job(
    stores: Stores,
) -> None:
    for number in range(6):
        await stores.dead_letters.add(letter(f"{number}", float(number), job=f"job-{number}"))
    await stores.jobs.insert(job("job-5"), [])

    async def left() -> list[str]:
        return [each.id for each in await stores.dead_letters.newest(None, 9)]

    assert await stores.dead_letters.delete("4")
    assert not await stores.dead_letters.delete("4")
    assert await left() == ["5", "3", "2", "1", "0"]
    await stores.dead_letters.trim(1.0, 9)
    assert await left() == ["5", "3", "2", "1"]
    await stores.dead_letters.trim(0.0, 2)
    assert await left() == ["5", "3"]
    await stores.jobs.remove("job-5", 9.0)
    assert await left() == ["3"]
