"""The promises of every upload store, checked on SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from services.gateway.database.connection import Database
from services.gateway.database.uploads import SqlUploadStore
from services.gateway.upload_ports import StoredUpload, UploadUsage
from shared.ports import UploadPart

TEN_GIGABYTES = 10 << 30


@pytest.fixture
def uploads(database: Database) -> SqlUploadStore:
    return SqlUploadStore(database)


def upload(name: str = "one", **changes: object) -> StoredUpload:
    plain = StoredUpload(id=name, owner="anna", bytes=TEN_GIGABYTES, touched_at=5.5)
    return msgspec.structs.replace(plain, **changes)


def part(offset: int, size: int, *, of: str = "one", key: str = "") -> UploadPart:
    return UploadPart(upload=of, offset=offset, bytes=size, key=key or f"uploads/{of}/{offset}")


async def test_an_upload_is_found_as_it_was_begun(uploads: SqlUploadStore) -> None:
    whole = upload("two", expected="e" * 64, sha256="f" * 64, received=7, finished_at=9.25)
    await uploads.add(upload())
    await uploads.add(whole)

    assert await uploads.find("one") == upload()
    assert await uploads.find("two") == whole
    assert await uploads.find("three") is None


async def test_parts_follow_one_another_without_a_gap(uploads: SqlUploadStore) -> None:
    await uploads.add(upload())

    assert await uploads.append(part(0, TEN_GIGABYTES - 3), 6.0)
    assert await uploads.append(part(TEN_GIGABYTES - 3, 3), 7.0)

    assert await uploads.find("one") == upload(received=TEN_GIGABYTES, parts=2, touched_at=7.0)
    expected = [part(0, TEN_GIGABYTES - 3), part(TEN_GIGABYTES - 3, 3)]
    assert await uploads.parts("one") == expected
    assert await uploads.parts("two") == []


@pytest.mark.parametrize("offset", [0, 2, 4])
async def test_a_part_that_belongs_elsewhere_leaves_no_trace(
    uploads: SqlUploadStore, offset: int
) -> None:
    await uploads.add(upload())
    await uploads.append(part(0, 3), 6.0)

    assert not await uploads.append(part(offset, 5, key="late"), 7.0)
    assert not await uploads.append(part(0, 5, of="gone"), 7.0)

    assert await uploads.find("one") == upload(received=3, parts=1, touched_at=6.0)
    assert await uploads.parts("one") == [part(0, 3)]
    assert await uploads.parts("gone") == []


async def test_of_many_that_go_on_at_once_one_does(uploads: SqlUploadStore) -> None:
    await uploads.add(upload())
    rivals = [part(0, size, key=f"of {size}") for size in range(1, 9)]

    took = await asyncio.gather(*(uploads.append(rival, 6.0) for rival in rivals))

    assert sum(took) == 1
    assert await uploads.parts("one") == [rivals[took.index(True)]]


async def test_what_it_turned_out_to_be_is_kept(uploads: SqlUploadStore) -> None:
    await uploads.add(upload("good"))
    await uploads.add(upload("bad"))

    assert await uploads.settle("good", "a" * 64, 8.0)
    assert await uploads.settle("bad", "b" * 64, None)
    assert not await uploads.settle("deleted", "c" * 64, 8.0)

    assert await uploads.find("good") == upload("good", sha256="a" * 64, finished_at=8.0)
    assert await uploads.find("bad") == upload("bad", sha256="b" * 64)
    assert await uploads.find("deleted") is None


async def test_what_an_owner_s_uploads_use_is_counted(uploads: SqlUploadStore) -> None:
    await uploads.add(upload("one"))
    await uploads.append(part(0, 3), 6.0)
    await uploads.append(part(3, 3), 6.0)
    await uploads.add(upload("two", bytes=5))
    await uploads.add(upload("three", bytes=6, finished_at=6.0))
    await uploads.add(upload("four", owner="ben"))

    used = UploadUsage(uploads=3, bytes=TEN_GIGABYTES + 11, unfinished=2, parts=2)
    assert await uploads.usage("anna") == used
    await uploads.delete("one")
    assert await uploads.usage("anna") == UploadUsage(uploads=2, bytes=11, unfinished=1, parts=0)
    assert await uploads.usage("nobody") == UploadUsage(0, 0, 0, 0)


async def test_an_owner_s_uploads_are_listed_the_last_changed_first(
    uploads: SqlUploadStore,
) -> None:
    for name, moment in (("a", 5.0), ("b", 7.0), ("c", 7.0), ("d", 6.0)):
        await uploads.add(upload(name, touched_at=moment))
    await uploads.add(upload("another's", owner="ben", touched_at=9.0))

    first = await uploads.newest("anna", before=None, limit=2)
    rest = await uploads.newest("anna", before=(7.0, "b"), limit=9)

    assert [each.id for each in first] == ["c", "b"]
    assert [each.id for each in rest] == ["d", "a"]
    assert first[0] == upload("c", touched_at=7.0)


async def test_those_left_alone_and_those_kept_long_enough_expire(uploads: SqlUploadStore) -> None:
    await uploads.add(upload("left alone", touched_at=9.0))
    await uploads.add(upload("gone on with", touched_at=11.0))
    await uploads.add(upload("old", touched_at=1.0, finished_at=4.0))
    await uploads.add(upload("new", touched_at=1.0, finished_at=6.0))

    expired = await uploads.expired(untouched_since=10.0, finished_before=5.0)
    assert sorted(expired) == ["left alone", "old"]
    assert len(await uploads.expired(untouched_since=10.0, finished_before=5.0, limit=1)) == 1


async def test_a_forgotten_upload_takes_its_parts_along(uploads: SqlUploadStore) -> None:
    for name in ("one", "two"):
        await uploads.add(upload(name))
        await uploads.append(part(0, 3, of=name), 6.0)

    await uploads.delete("one")

    assert await uploads.find("one") is None
    assert await uploads.parts("one") == []
    assert await uploads.parts("two") == [part(0, 3, of="two")]
