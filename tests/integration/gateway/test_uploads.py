"""Uploads: in one POST, in chunks by tus, over broken connections and two gateways."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import pytest

from services.gateway.app import Gateway
from services.gateway.endpoints import uploads as upload_endpoint
from services.gateway.jobs import uploads
from services.gateway.key_ports import StoredKey
from shared.errors import Unavailable
from shared.messaging.messages import StagingDue
from shared.messaging.topology import FETCHER
from shared.ports import UploadPart
from shared.request import STORED
from shared.service_process import closing
from shared.storage.uploads import ARCHIVE_BYTES, download_upload, write_list
from tests.support.gateway_world import (
    API_KEY,
    KEY,
    OTHER_KEY,
    Answer,
    World,
    eventually,
    running,
    world,
)

ROOT = "/v2/everydream-v1"
FILE = Random(0).randbytes(3500)
SHA256 = hashlib.sha256(FILE).hexdigest()
DAY = 24 * 3600.0


@pytest.fixture
async def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(uploads, "PART_BYTES", 1000)
    monkeypatch.setattr(uploads, "LEAST_CHUNK_BYTES", 1)
    async with world(tmp_path) as one:
        yield one


async def begin(here: World, size: int = len(FILE), query: str = "") -> str:
    """The id of a new upload in chunks."""
    answer = await asked(here, "POST", f"/uploads{query}", {"Upload-Length": str(size)})
    assert answer.status == 201, answer
    return answer.headers["Location"].rpartition("/")[2]


async def asked(
    here: World,
    method: str,
    path: str,
    headers: dict[str, str] | None = None,
    data: Any = None,
    key: str = API_KEY,
    url: str = "",
) -> Answer:
    """The headers that tus requires, in responses without a body, too."""
    headers = {"Authorization": f"Bearer {key}", "Tus-Resumable": "1.0.0", **(headers or {})}
    url = f"{url or here.url('')}{ROOT}{path}"
    async with here.session.request(method, url, headers=headers, data=data) as answer:
        assert answer.headers["Tus-Resumable"] == "1.0.0"
        is_json = answer.content_type == "application/json" and method != "HEAD"
        return Answer(answer.status, dict(answer.headers), await answer.json() if is_json else None)


async def chunk(
    here: World, upload: str, offset: int, data: Any, *, key: str = API_KEY, url: str = ""
) -> Answer:
    headers = {"Content-Type": upload_endpoint.CHUNK, "Upload-Offset": str(offset)}
    return await asked(here, "PATCH", f"/uploads/{upload}", headers, data, key, url)


async def offset_of(here: World, upload: str) -> int:
    return int((await asked(here, "HEAD", f"/uploads/{upload}")).headers["Upload-Offset"])


async def stored(here: World) -> list[str]:
    return [entry.key async for entry in here.store.list("uploads/")]


def request_with(data_url: str) -> dict[str, Any]:
    return {"input": {"train": {"data_url": data_url}}}


async def fetched(here: World, upload: str, folder: Path) -> bytes:
    """The ``data_url`` that a fetcher gets from a job with this upload."""
    facts = await here.ask("GET", f"{ROOT}/uploads/{upload}")
    await here.run(request_with(facts.body["data_url"]))
    submitted = await here.get(FETCHER)
    assert isinstance(submitted, StagingDue)
    assert submitted.train
    key = submitted.train.data_url.removeprefix(STORED)
    await download_upload(here.store, key, folder / "fetched")
    return (folder / "fetched").read_bytes()


# --- In one POST


async def test_a_file_is_uploaded_in_one_post_and_trained_from(here: World, tmp_path: Path) -> None:
    answer = await here.ask("POST", f"{ROOT}/uploads", data=FILE)

    upload = answer.body["id"]
    address = f"http://gateway.example/v1/everydream-v1/uploads/{upload}"
    facts = {"bytes": len(FILE), "received": len(FILE), "sha256": SHA256, "data_url": address}
    assert (answer.status, answer.body) == (201, {"id": upload, **facts})
    assert (await here.ask("GET", f"{ROOT}/uploads/{upload}")).body == answer.body
    assert len(await stored(here)) == 5, "four parts and their list"
    assert await fetched(here, upload, tmp_path) == FILE


@pytest.mark.parametrize("sha256", [SHA256, SHA256.upper()])
async def test_what_is_announced_and_comes_is_taken(here: World, sha256: str) -> None:
    answer = await here.ask("POST", f"{ROOT}/uploads?sha256={sha256}", data=FILE)

    assert answer.status == 201


async def test_an_upload_that_is_not_as_announced_is_reported_and_leaves_nothing(
    here: World,
) -> None:
    answer = await here.ask("POST", f"{ROOT}/uploads?sha256={'0' * 64}", data=FILE)

    assert answer.status == 400
    assert f"what arrived has sha256 {SHA256}, not {'0' * 64}" in answer.body["error"]
    assert await stored(here) == []
    assert (await here.stores.uploads.usage(owner())).unfinished == 0


def owner(key: str = API_KEY) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


@pytest.mark.parametrize(
    ("headers", "query", "data", "status", "words"),
    [
        ({}, "", b"", 400, "at least one byte"),
        ({}, "?sha256=abc", FILE, 400, "expected 64 hexadecimal digits, got 'abc'"),
        ({"Content-Type": "multipart/form-data; boundary=x"}, "", FILE, 415, "not a form"),
        ({"Tus-Resumable": "0.2.2"}, "", FILE, 412, "expected 1.0.0, got '0.2.2'"),
        ({"Upload-Length": "many"}, "", b"", 400, "expected a number of bytes, got 'many'"),
        ({"Upload-Length": str(ARCHIVE_BYTES + 1)}, "", b"", 413, f"at most {ARCHIVE_BYTES} bytes"),
    ],
)
async def test_what_cannot_be_an_upload_is_reported(
    here: World, headers: dict[str, str], query: str, data: bytes, status: int, words: str
) -> None:
    answer = await asked(here, "POST", f"/uploads{query}", headers, data)

    assert (answer.status, answer.body and words in answer.body["error"]) == (status, True), answer
    assert await stored(here) == []


async def test_a_post_must_state_its_length(here: World) -> None:
    answer = await asked(here, "POST", "/uploads", data=unannounced(FILE))

    assert answer.status == 411
    assert "Content-Length" in answer.body["error"]


async def unannounced(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def half_sent(here: World, head: str, body: bytes) -> tuple[Any, asyncio.StreamWriter]:
    """A connection with a begun request."""
    reader, writer = await asyncio.open_connection("127.0.0.1", here.gateway.port)
    writer.write(f"{head}\r\nHost: x\r\nAuthorization: Bearer {API_KEY}\r\n\r\n".encode() + body)
    await writer.drain()
    return reader, writer


async def test_what_is_announced_as_too_large_is_refused_before_it_comes(here: World) -> None:
    head = f"POST {ROOT}/uploads HTTP/1.1\r\nContent-Length: {ARCHIVE_BYTES + 1}"
    reader, writer = await half_sent(here, head, b"")

    async with asyncio.timeout(30):
        assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")
    writer.close()


async def test_a_post_that_breaks_off_leaves_nothing(here: World) -> None:
    head = f"POST {ROOT}/uploads HTTP/1.1\r\nContent-Length: {len(FILE)}"
    _, writer = await half_sent(here, head, FILE[:2500])
    await eventually(lambda: there_or_none(here, "parts"))

    writer.close()

    await eventually(lambda: there_or_none(here, "nothing"))
    await eventually(lambda: forgotten_or_none(here))


async def forgotten_or_none(here: World) -> bool | None:
    return (await here.stores.uploads.usage(owner())).unfinished == 0 or None


async def there_or_none(here: World, what: str) -> bool | None:
    return True if bool(await stored(here)) == (what == "parts") else None


# --- In chunks


async def test_a_file_is_uploaded_in_chunks(here: World, tmp_path: Path) -> None:
    upload = await begin(here, query=f"?sha256={SHA256}")
    beginnings = [0, 1, 1700, 3499]

    for start, end in zip(beginnings, [*beginnings[1:], len(FILE)], strict=True):
        head = await asked(here, "HEAD", f"/uploads/{upload}")
        assert head.headers["Upload-Offset"] == str(start)
        assert head.headers["Upload-Length"] == str(len(FILE))
        assert head.headers["Cache-Control"] == "no-store"
        answer = await chunk(here, upload, start, FILE[start:end])
        assert (answer.status, answer.headers["Upload-Offset"]) == (204, str(end))

    assert (await here.ask("GET", f"{ROOT}/uploads/{upload}")).body["sha256"] == SHA256
    assert await fetched(here, upload, tmp_path) == FILE


async def test_a_chunk_that_belongs_elsewhere_changes_nothing(here: World) -> None:
    upload = await begin(here)
    await chunk(here, upload, 0, FILE[:1700])

    for offset in (0, 1000, 1699, 1701, 3500):
        answer = await chunk(here, upload, offset, FILE[offset : offset + 100])
        assert (answer.status, answer.headers["Upload-Offset"]) == (409, "1700")
        assert "begins at byte 1700" in answer.body["error"]

    await chunk(here, upload, 1700, FILE[1700:])
    assert (await here.ask("GET", f"{ROOT}/uploads/{upload}")).body["sha256"] == SHA256


async def test_a_chunk_that_is_longer_than_what_is_missing_is_refused(here: World) -> None:
    upload = await begin(here, size=1200)
    await chunk(here, upload, 0, FILE[:200])

    for data in (FILE[:1001], unannounced(FILE[:1001])):
        answer = await chunk(here, upload, 200, data)
        assert answer.status == 413
        assert "at most 1000 bytes" in answer.body["error"]
    assert await offset_of(here, upload) == 200


async def test_a_chunk_must_state_its_type_and_its_offset(here: World) -> None:
    upload = await begin(here)
    place = f"/uploads/{upload}"

    plain = await asked(here, "PATCH", place, {"Upload-Offset": "0"}, FILE)
    nowhere = await asked(here, "PATCH", place, {"Content-Type": upload_endpoint.CHUNK}, FILE)

    assert (plain.status, nowhere.status) == (415, 400)
    assert await offset_of(here, upload) == 0


async def test_what_has_arrived_of_a_broken_chunk_stays(here: World, tmp_path: Path) -> None:
    upload = await begin(here)
    _, writer = await half_sent(here, chunk_head(upload, len(FILE)), FILE[:2500])
    await eventually(lambda: there_or_none(here, "parts"))

    writer.close()

    arrived = await eventually(lambda: offset_beyond(here, upload, 2000))
    assert arrived == 2500
    await chunk(here, upload, arrived, FILE[arrived:])
    assert await fetched(here, upload, tmp_path) == FILE


def chunk_head(upload: str, size: int) -> str:
    return (
        f"PATCH {ROOT}/uploads/{upload} HTTP/1.1\r\nContent-Length: {size}\r\n"
        f"Content-Type: {upload_endpoint.CHUNK}\r\nUpload-Offset: 0"
    )


async def offset_beyond(here: World, upload: str, least: int) -> int | None:
    offset = await offset_of(here, upload)
    return offset if offset > least else None


async def test_who_falls_silent_is_given_up_and_what_has_arrived_stays(
    here: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload_endpoint, "IDLE_SECONDS", 0.1)
    upload = await begin(here)

    reader, writer = await half_sent(here, chunk_head(upload, len(FILE)), FILE[:2500])

    async with asyncio.timeout(30):
        answer = await reader.readuntil(b"}")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"2500 bytes are here" in answer
    assert await offset_of(here, upload) == 2500
    writer.close()


async def test_a_wrong_whole_is_reported_to_every_request(here: World) -> None:
    upload = await begin(here, query=f"?sha256={'0' * 64}")

    last = await chunk(here, upload, 0, FILE)
    later = await here.ask("GET", f"{ROOT}/uploads/{upload}")

    assert (last.status, later.status) == (400, 400)
    assert last.body == later.body
    assert "upload it anew" in last.body["error"]
    answer = await here.ask("POST", f"{ROOT}/run", json=request_with(address(upload)))
    assert answer.status == 400


def address(upload: str) -> str:
    return f"http://gateway.example/v1/everydream-v1/uploads/{upload}"


async def test_options_lists_what_is_accepted(here: World) -> None:
    answer = await asked(here, "OPTIONS", "/uploads")

    assert answer.status == 204
    assert answer.headers["Tus-Version"] == "1.0.0"
    assert answer.headers["Tus-Extension"] == "creation,termination"
    assert answer.headers["Tus-Max-Size"] == str(ARCHIVE_BYTES)


# --- Several gateways


async def second_gateway(here: World, stack: AsyncExitStack) -> str:
    """The URL of another gateway over the same database and store."""
    bus = await stack.enter_async_context(closing(here.broker.bus("gateway/second")))
    gateway = Gateway(here.settings, KEY, bus, here.store, here.stores, clock=here.clock)
    await stack.enter_async_context(running(gateway))
    return f"http://127.0.0.1:{gateway.port}"


async def test_any_gateway_takes_the_next_chunk(here: World, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        other = await second_gateway(here, stack)
        upload = await begin(here)

        assert (await chunk(here, upload, 0, FILE[:1500], url=other)).status == 204
        assert (await chunk(here, upload, 1500, FILE[1500:2600])).status == 204
        assert (await chunk(here, upload, 2600, FILE[2600:], url=other)).status == 204

        assert await fetched(here, upload, tmp_path) == FILE


async def test_of_two_that_send_the_same_chunk_one_goes_on(here: World, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        other = await second_gateway(here, stack)
        upload = await begin(here)
        together = asyncio.Barrier(2)

        async def slowly(data: bytes) -> AsyncIterator[bytes]:
            yield data[:500]
            await together.wait()
            yield data[500:]

        mine, theirs = FILE, FILE[::-1]
        answers = await asyncio.gather(
            chunk(here, upload, 0, slowly(mine)), chunk(here, upload, 0, slowly(theirs), url=other)
        )

        assert sorted(answer.status for answer in answers) == [204, 409]
        winner = mine if answers[0].status == 204 else theirs
        assert await fetched(here, upload, tmp_path) == winner
        assert len(await stored(here)) == 5, "nothing of the loser's is left"


async def test_an_upload_that_is_deleted_while_it_is_finished_leaves_nothing(
    here: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = await begin(here)

    async def write_later(*given: Any) -> None:
        assert (await asked(here, "DELETE", f"/uploads/{upload}")).status == 204
        await write_list(*given)

    monkeypatch.setattr(uploads, "write_list", write_later)

    assert (await chunk(here, upload, 0, FILE)).status == 409
    assert await stored(here) == []


async def test_after_a_gateway_dies_before_the_end_a_status_request_finishes_the_upload(
    here: World, tmp_path: Path
) -> None:
    upload = await begin(here)
    await here.store.put("uploads/part", FILE)
    last = UploadPart(upload=upload, offset=0, bytes=len(FILE), key="uploads/part")
    assert await here.stores.uploads.append(last, 1.0)

    refused = await here.ask("POST", f"{ROOT}/run", json=request_with(address(upload)))
    assert "expected an upload that is finished" in refused.body["error"]
    assert (await here.ask("GET", f"{ROOT}/uploads/{upload}")).body["sha256"] == SHA256
    assert await fetched(here, upload, tmp_path) == FILE


# --- Whose they are


async def test_an_upload_is_its_key_s_alone(here: World) -> None:
    upload = (await here.ask("POST", f"{ROOT}/uploads", data=FILE)).body["id"]
    nobody = "00000000-0000-0000-0000-000000000000"

    for unknown in (upload, nobody):
        for method in ("HEAD", "GET", "DELETE"):
            answer = await asked(here, method, f"/uploads/{unknown}", key=OTHER_KEY)
            assert answer.status == 404
        assert (await chunk(here, unknown, 0, FILE, key=OTHER_KEY)).status == 404
        body = request_with(address(unknown))
        refused = await here.ask("POST", f"{ROOT}/run", json=body, key=OTHER_KEY)
        (told,) = refused.body["mistakes"]
        assert refused.status == 400
        assert told == (
            "input.train.data_url: expected an upload of yours that is still kept, got"
            f' "{address(unknown)}"'
        )
    assert (await here.ask("GET", f"{ROOT}/uploads/{upload}")).status == 200


async def test_an_empty_checksum_is_no_checksum(here: World) -> None:
    answer = await here.ask("POST", f"{ROOT}/uploads?sha256=", data=FILE)

    assert (answer.status, answer.body["mistakes"]) == (
        400,
        ["sha256: expected 64 hexadecimal digits, got ''"],
    )


async def test_however_an_upload_begins_the_answer_has_its_location(here: World) -> None:
    whole = await here.ask("POST", f"{ROOT}/uploads", data=FILE)
    begun = await here.ask("POST", f"{ROOT}/uploads", headers={"Upload-Length": "7"})

    assert (whole.status, begun.status) == (201, 201)
    for answer in (whole, begun):
        assert answer.headers["Location"] == answer.body["data_url"]
    assert (begun.body["bytes"], begun.body["received"], begun.body["sha256"]) == (7, 0, None)


async def test_a_parameter_that_there_is_not_is_no_promise_of_a_checksum(here: World) -> None:
    answer = await here.ask("POST", f"{ROOT}/uploads?sha265={'0' * 64}", data=FILE)

    assert (answer.status, answer.body["mistakes"]) == (
        400,
        ["sha265: no such parameter; did you mean sha256?"],
    )


async def test_a_key_that_may_only_read_uploads_nothing(here: World) -> None:
    key = StoredKey(digest=owner("reader"), name="reader", scopes=("read",), created_at=1.0)
    await here.stores.keys.add(key)

    for method, path in (("POST", "/uploads"), ("PATCH", "/uploads/x"), ("DELETE", "/uploads/x")):
        assert (await asked(here, method, path, data=FILE, key="reader")).status == 403
    assert await stored(here) == []


async def test_an_upload_is_no_base_model(here: World) -> None:
    upload = (await here.ask("POST", f"{ROOT}/uploads", data=FILE)).body["id"]
    body = request_with("https://example.com/photos.zip")
    body["input"]["train"]["resume_ckpt_url"] = address(upload)

    answer = await here.ask("POST", f"{ROOT}/run", json=body)

    assert answer.status == 400
    assert "input.train.resume_ckpt_url: expected a link of this service" in answer.body["error"]


async def test_an_unfinished_upload_cannot_be_trained_from_yet(here: World) -> None:
    upload = await begin(here)
    await chunk(here, upload, 0, FILE[:1500])

    answer = await here.ask("POST", f"{ROOT}/run", json=request_with(address(upload)))

    assert answer.status == 400
    (mistake,) = answer.body["mistakes"]
    assert mistake.startswith("input.train.data_url: expected an upload that is finished;")
    assert mistake.endswith("of this one 1500 of its 3500 bytes are here")


# --- How long they stay


async def test_a_key_has_so_many_unfinished_uploads_at_most(here: World) -> None:
    first, *_ = [await begin(here) for _ in range(here.settings.max_unfinished_uploads)]

    full = await asked(here, "POST", "/uploads", {"Upload-Length": "5"})
    other = await asked(here, "POST", "/uploads", {"Upload-Length": "5"}, key=OTHER_KEY)
    assert (full.status, other.status) == (429, 201)
    assert full.body["budget"] == {"name": "unfinished_uploads", "used": 16, "allowed": 16}

    assert (await asked(here, "DELETE", f"/uploads/{first}")).status == 204
    assert (await asked(here, "HEAD", f"/uploads/{first}")).status == 404
    await begin(here)


async def test_unfinished_ones_go_after_a_day_and_finished_ones_with_the_jobs(here: World) -> None:
    finished = (await here.ask("POST", f"{ROOT}/uploads", data=FILE)).body["id"]
    unfinished = await begin(here)
    await chunk(here, unfinished, 0, FILE[:1500])

    here.clock.ahead = 0.9 * DAY
    await here.gateway._retention.delete_expired()
    assert await offset_of(here, unfinished) == 1500

    here.clock.ahead = 1.1 * DAY
    await here.gateway._retention.delete_expired()
    assert (await asked(here, "HEAD", f"/uploads/{unfinished}")).status == 404
    assert all(f"/{finished}/" in key for key in await stored(here))

    here.clock.ahead = (here.settings.keep_days + 0.1) * DAY
    await here.gateway._retention.delete_expired()
    assert (await asked(here, "HEAD", f"/uploads/{finished}")).status == 404
    assert await stored(here) == []


async def test_an_unavailable_store_is_reported_and_the_upload_goes_on_afterwards(
    here: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    upload = await begin(here)

    async def away(*_: Any) -> None:
        raise Unavailable("the store was taken away by a test")

    with monkeypatch.context() as patch:
        patch.setattr(here.store, "put", away)
        assert (await chunk(here, upload, 0, FILE)).status == 503

    await chunk(here, upload, await offset_of(here, upload), FILE)
    assert await fetched(here, upload, tmp_path) == FILE


async def test_somebody_who_hangs_up_while_others_upload_disturbs_nobody(here: World) -> None:
    with pytest.raises(aiohttp.ClientError):
        await asked(here, "POST", "/uploads", data=breaking())

    assert (await here.ask("POST", f"{ROOT}/uploads", data=FILE)).status == 201


async def breaking() -> AsyncIterator[bytes]:
    yield FILE[:10]
    raise OSError("the disk went away")


async def test_a_key_lists_its_own_uploads_page_by_page_the_last_changed_first(here: World) -> None:
    ids = []
    for moment in range(3):
        here.clock.ahead = 10.0 * moment
        ids.append(await begin(here, size=moment + 1))
    await asked(here, "POST", "/uploads", {"Upload-Length": "9"}, key=OTHER_KEY)

    first = await here.ask("GET", f"{ROOT}/uploads", params={"limit": "2"})
    rest = await here.ask("GET", f"{ROOT}/uploads", params={"cursor": first.body["next"]})

    assert [each["id"] for each in first.body["uploads"]] == [ids[2], ids[1]]
    assert [each["id"] for each in rest.body["uploads"]] == [ids[0]]
    assert rest.body["next"] is None
    newest = first.body["uploads"][0]
    assert (newest["bytes"], newest["received"], newest["sha256"]) == (3, 0, None)
    assert newest["data_url"].endswith(f"/uploads/{ids[2]}")


async def test_every_mistake_in_the_query_of_a_list_of_uploads_is_named(here: World) -> None:
    wrong = {"limit": "0", "cursor": "x", "status": "new"}
    answer = await here.ask("GET", f"{ROOT}/uploads", params=wrong)

    assert answer.status == 400
    assert [each.partition(":")[0] for each in answer.body["mistakes"]] == [
        "status", "limit", "cursor",
    ]  # fmt: skip
