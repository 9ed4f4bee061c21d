"""What servers that a user names answer: no more of it is read than such an answer can have."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from services.notifier.bucket import CHECK_OBJECT, check
from shared.adapters import s3_session
from shared.adapters.s3 import PART_BYTES, SETTINGS, USERS, S3Store
from shared.errors import Refused, Unavailable
from tests.support.servers.hostile import PIECE, Hostile, head, hostile

SECONDS = 30
IN_FLIGHT = 24 << 20
"""What sockets and buffers may hold beside what is read; and memory that Python keeps."""
LENGTH = "Content-Length: 1099511627776"
CHUNKED = "Transfer-Encoding: chunked"


@asynccontextmanager
async def bucket_at(server: Hostile) -> AsyncIterator[S3Store]:
    store = S3Store.for_bucket("b", endpoint_url=server.url, access_key="a", secret_key="s")
    try:
        async with asyncio.timeout(SECONDS):
            yield store
    finally:
        await store.close()


async def announced(server: Hostile, _request: str) -> None:
    await server.send(head(400, LENGTH))
    await server.for_ever(PIECE)


async def in_chunks(server: Hostile, _request: str) -> None:
    await server.send(head(200, CHUNKED))
    await server.for_ever(b"%x\r\n%s\r\n" % (len(PIECE), PIECE))


async def until_the_end(server: Hostile, _request: str) -> None:
    await server.send(head(403, "Connection: close"))
    await server.for_ever(PIECE)


@pytest.mark.parametrize("answer", [announced, in_chunks, until_the_end])
async def test_a_bucket_that_answers_without_end_is_refused_and_takes_no_memory(
    answer: object, tmp_path: Path
) -> None:
    (tmp_path / "big").write_bytes(bytes(PART_BYTES + 1))
    async with hostile(answer) as server, bucket_at(server) as store:  # type: ignore[arg-type]
        before = psutil.Process().memory_info().rss
        for call in (
            store.put("key", b"x"),
            store.upload(tmp_path / "big", "key"),
            store.delete("key"),
        ):
            with pytest.raises(Refused, match=r"bucket 'b' at http.* answered .* with more than"):
                await call
        assert psutil.Process().memory_info().rss - before < IN_FLIGHT
        assert server.sent < len(server.requests) * IN_FLIGHT
        assert len(server.requests) == 3, "it is not asked again"


async def test_an_error_instead_of_an_object_is_read_no_further_either() -> None:
    async with hostile(announced) as server, bucket_at(server) as store:
        with pytest.raises(Refused, match="more than"):
            await store.get("key")


async def test_a_bucket_that_lists_without_end_is_refused() -> None:
    async def pages(server: Hostile, _request: str) -> None:
        number = len(server.requests)
        await server.whole(
            200,
            b"<ListBucketResult><IsTruncated>true</IsTruncated>"
            b"<NextContinuationToken>%d</NextContinuationToken></ListBucketResult>" % number,
        )

    async with hostile(pages) as server, bucket_at(server) as store:
        with pytest.raises(Refused, match="lists more than 100 pages"):
            await store.delete("key")
    assert len(server.requests) == USERS.pages + 1


OBJECT = "<Key>{key}</Key><Size>1</Size>"
ODD_OBJECTS = {
    "no date": OBJECT,
    "no key": "<Size>1</Size>",
    "a size that is no number": "<Key>{key}</Key><Size>x</Size>",
    "a date that is none": OBJECT + "<LastModified>soon</LastModified>",
    "a date beyond all": OBJECT + "<LastModified>99999999999999999999</LastModified>",
}


@pytest.mark.parametrize("entry", ODD_OBJECTS.values(), ids=ODD_OBJECTS)
async def test_a_bucket_with_an_odd_listing_takes_what_is_put_there(entry: str) -> None:
    key = f"job/{CHECK_OBJECT}"
    listing = f"<ListBucketResult><Contents>{entry.format(key=key)}</Contents></ListBucketResult>"

    async def answer(server: Hostile, request: str) -> None:
        await server.whole(200, b"" if request.startswith("PUT") else listing.encode())

    async with hostile(answer) as server, bucket_at(server) as store:
        with pytest.raises(Unavailable, match="an answer that cannot be understood"):
            await store.delete(key)
        assert await check(store, "job") is None


async def test_what_a_bucket_leaves_out_of_its_answers_is_told_as_its_fault(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(bytes(PART_BYTES + 1))

    async def answer(server: Hostile, _request: str) -> None:
        await server.send(head(200, CHUNKED) + b"0\r\n\r\n")

    async with hostile(answer) as server, bucket_at(server) as store:
        for call in (
            store.upload(tmp_path / "big", "key"),
            store.download("key", tmp_path / "got"),
        ):
            with pytest.raises(Unavailable, match=r"bucket 'b' at .* that cannot be understood"):
                await call


async def dripped_body(server: Hostile, _request: str) -> None:
    await server.send(head(200, LENGTH))
    await server.for_ever(b"x", pause=0.02)


async def dripped_head(server: Hostile, _request: str) -> None:
    await server.send(b"HTTP/1.1 200 OK\r\nX-Long: ")
    await server.for_ever(b"x", pause=0.02)


async def interim(server: Hostile, _request: str) -> None:
    await server.for_ever(head(102), pause=0.02)


@pytest.fixture
def _asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SETTINGS, "retries", {"total_max_attempts": 1})


@pytest.mark.usefixtures("_asked_once")
@pytest.mark.parametrize("answer", [dripped_body, dripped_head, interim])
async def test_a_bucket_that_drips_is_left_in_time(
    answer: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_session, "REQUEST_SECONDS", 0.2)
    async with hostile(answer) as server, bucket_at(server) as store:  # type: ignore[arg-type]
        with pytest.raises(Unavailable, match="does not answer"):
            await store.put("key", b"x")


@pytest.mark.usefixtures("_asked_once")
async def test_heads_without_end_are_not_kept() -> None:
    async def heads(server: Hostile, _request: str) -> None:
        await server.send(b"HTTP/1.1 200 OK\r\n")
        await server.for_ever(b"X-A: %s\r\n" % (b"x" * 4096))

    async with hostile(heads) as server, bucket_at(server) as store:
        with pytest.raises(Unavailable, match="does not answer"):
            await store.put("key", b"x")
    assert server.sent < len(server.requests) * IN_FLIGHT
