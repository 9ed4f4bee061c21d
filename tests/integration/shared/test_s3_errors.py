"""Errors of buckets: for the user to fix, or temporary."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from botocore.loaders import JSONFileLoader

from shared.adapters.s3 import PART_BYTES, S3Store, region_of
from shared.errors import EveryDreamError, NotFound, Refused, Unavailable, reason_of
from shared.network.outbound import Guard
from shared.service_process import closing
from tests.contract.stores import fetch, names_in
from tests.support.servers.hostile import Hostile, head, hostile
from tests.support.servers.process import free_port
from tests.support.servers.s3 import S3Server
from tests.support.servers.web import Page, Web

SECONDS = 60
BIG = PART_BYTES * 2 + 1


@asynccontextmanager
async def users_bucket(server: S3Server, bucket: str, **others: Any) -> AsyncIterator[S3Store]:
    right = {
        "endpoint_url": server.endpoint_url,
        "access_key": server.access_key,
        "secret_key": server.secret_key,
    }
    store = S3Store.for_bucket(bucket, **(right | others))
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def our_store(url: str, public_endpoint: str | None = None) -> AsyncIterator[S3Store]:
    store = S3Store.open(url, public_endpoint=public_endpoint)
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture
def _our_keys(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The deployment's variables, as botocore reads them."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint_url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.secret_key)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


async def every_error_of(store: S3Store, file: Path) -> list[EveryDreamError]:
    """What each call of a store raises; a call that raises nothing fails the test."""

    async def entries() -> None:
        async for _ in store.list(""):
            pass

    calls: tuple[Callable[[], Awaitable[object]], ...] = (
        lambda: store.put("key", b"x"),
        lambda: store.get("key"),
        lambda: store.upload(file, "key"),
        lambda: store.download("key", file.with_name("got")),
        lambda: store.exists("key"),
        lambda: store.delete("key"),
        entries,
    )
    errors = []
    for call in calls:
        with pytest.raises(EveryDreamError) as caught:
            await call()
        errors.append(caught.value)
    return errors


@pytest.fixture
def big_file(tmp_path: Path) -> Path:
    path = tmp_path / "big"
    path.write_bytes(os.urandom(BIG))
    return path


# --- the user's bucket


async def test_a_wrong_secret_is_refused_with_the_buckets_name(
    s3_server: S3Server, s3_bucket: str, big_file: Path
) -> None:
    async with users_bucket(s3_server, s3_bucket, secret_key="wrong") as store:
        errors = await every_error_of(store, big_file)
    assert {type(error) for error in errors} == {Refused}
    for error in errors:
        assert f"'{s3_bucket}'" in str(error)
        assert s3_server.endpoint_url in str(error)
    assert "the secret does not belong to the access id" in str(errors[0])


async def test_an_unknown_key_is_refused_and_no_secret_is_shown(
    s3_server: S3Server, s3_bucket: str, big_file: Path
) -> None:
    async with users_bucket(s3_server, s3_bucket, access_key="nobody-known") as store:
        errors = await every_error_of(store, big_file)
    assert {type(error) for error in errors} == {Refused}
    assert "the access id is not known there" in str(errors[0])
    assert s3_server.secret_key not in "".join(map(str, errors))


async def test_a_bucket_that_does_not_exist_is_refused(
    s3_server: S3Server, s3_bucket: str, big_file: Path
) -> None:
    assert s3_bucket
    async with users_bucket(s3_server, "no-such-bucket") as store:
        with pytest.raises(Refused, match=r"'no-such-bucket'.*make the bucket"):
            await store.upload(big_file, "key")
        with pytest.raises(Refused, match="NoSuchBucket"):
            await store.put("key", b"")
        with pytest.raises(Refused, match="NoSuchBucket"):
            await store.get("key")


@pytest.mark.parametrize("bucket", ["x", "no such bucket!", "a/b", ""])
async def test_a_name_that_no_bucket_can_have_is_refused(
    s3_server: S3Server, s3_bucket: str, bucket: str
) -> None:
    assert s3_bucket
    async with users_bucket(s3_server, bucket) as store:
        with pytest.raises(Refused, match="bucket '"):
            await store.put("key", b"")


@pytest.mark.usefixtures("_our_keys")
async def test_users_read_nothing_of_our_own_store_s_address_and_operators_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    async with our_store("s3://internal-bucket") as store:
        with pytest.raises(Unavailable, match="internal-bucket") as caught:
            await store.put("key", b"x")

    assert reason_of(caught.value) == "the service's own store does not answer as it should"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    ("headers", "place"),
    [
        ((), ""),
        (("Location: https://eu.example.com:9000/b/key?x=1",), ", at https://eu.example.com:9000"),
        (("Location: https://me:hidden@x.example.com/",), ""),
        (("Location: /b/key",), ""),
        (("x-amz-bucket-region: eu-west-9",), ", in the region eu-west-9"),
    ],
)
async def test_a_service_that_sends_us_elsewhere_is_not_followed_and_says_what_to_do(
    status: int, headers: tuple[str, ...], place: str, tmp_path: Path
) -> None:
    async def redirect(server: Hostile, _request: str) -> None:
        await server.send(head(status, "Content-Length: 0", *headers))

    (tmp_path / "file").write_bytes(b"x")
    async with hostile(redirect) as server:
        store = S3Store.for_bucket("b", endpoint_url=server.url, access_key="a", secret_key="s")
        async with closing(store), asyncio.timeout(SECONDS):
            errors = await every_error_of(store, tmp_path / "file")
    advice = f"the bucket is elsewhere{place}: give its own endpoint (this one answers {status})"
    assert {str(error) for error in errors} == {f"bucket 'b' at {server.url}: {advice}"}
    assert {type(error) for error in errors} == {Refused}
    assert len(server.requests) <= 2 * len(errors), "it is not asked again and again"


@pytest.mark.parametrize("endpoint", ["not a url", "ftp://somewhere", "http://"])
async def test_an_endpoint_that_is_no_url_is_refused(s3_server: S3Server, endpoint: str) -> None:
    async with users_bucket(s3_server, "bucket", endpoint_url=endpoint) as store:
        with pytest.raises(Refused, match="bucket 'bucket'"):
            await store.put("key", b"")


@pytest.mark.parametrize("prefix", ["../up", "a/./b", "a\nb"])
def test_an_object_path_that_leads_elsewhere_is_refused(prefix: str) -> None:
    with pytest.raises(Refused, match="cannot be a store key"):
        S3Store.for_bucket(
            "bucket", endpoint_url="http://x", access_key="a", secret_key="s", prefix=prefix
        )


async def test_a_server_that_is_away_is_waited_for(big_file: Path, s3_server: S3Server) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    async with users_bucket(s3_server, "bucket", endpoint_url=nowhere) as store:
        with pytest.raises(Unavailable, match=f"'bucket' at {nowhere} does not answer"):
            await store.upload(big_file, "key")
        with pytest.raises(Unavailable, match="does not answer"):
            await store.exists("key")


@pytest.mark.parametrize("status", [500, 503, 429])
async def test_a_server_in_trouble_is_waited_for(
    s3_server: S3Server, web: Web, status: int
) -> None:
    web.serve("/bucket/key", Page(status=status))
    async with users_bucket(s3_server, "bucket", endpoint_url=web.url("")) as store:
        with pytest.raises(Unavailable, match=str(status)):
            await store.get("key")
    assert len(web.seen) == (1 if status == 429 else 4), "trouble is waited out, throttling is not"


async def test_an_object_cut_short_on_its_way_is_no_object(
    s3_server: S3Server, web: Web, tmp_path: Path
) -> None:
    web.serve("/bucket/key", Page(b"x" * 100_000, cut_at=50_000))
    async with users_bucket(s3_server, "bucket", endpoint_url=web.url("")) as store:
        with pytest.raises(Unavailable):
            await store.download("key", tmp_path / "got")
        with pytest.raises(Unavailable):
            await store.get("key")
    assert names_in(tmp_path) == []


# --- the guard


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_private_endpoint_is_refused_by_name_and_by_address(
    s3_server: S3Server, s3_bucket: str, host: str, big_file: Path
) -> None:
    endpoint = f"http://{host}:{s3_server.port}"
    guard = Guard(frozenset())
    async with users_bucket(s3_server, s3_bucket, endpoint_url=endpoint, guard=guard) as store:
        errors = await every_error_of(store, big_file)
    assert {type(error) for error in errors} == {Refused}
    assert "EVERYDREAM_ALLOWED_PRIVATE_HOSTS" in str(errors[0])


async def test_a_private_endpoint_that_the_operator_allows_is_used(
    s3_server: S3Server, s3_bucket: str, big_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")  # would bypass the guard
    guard = Guard(frozenset({f"127.0.0.1:{s3_server.port}"}))
    async with users_bucket(s3_server, s3_bucket, guard=guard) as store:
        await store.upload(big_file, "key")
        assert [entry.bytes async for entry in store.list("")] == [BIG]


# --- the deployment's own store


@pytest.mark.usefixtures("_our_keys")
async def test_our_store_is_found_by_botocores_own_variables(s3_bucket: str) -> None:
    async with (
        our_store(f"s3://{s3_bucket}/some/prefix/") as store,
        our_store(f"s3://{s3_bucket}") as whole,
    ):
        await store.put("key", b"x")
        assert [entry.key async for entry in whole.list("")] == ["some/prefix/key"]


@pytest.mark.usefixtures("_our_keys")
async def test_links_of_our_store_lead_through_its_public_endpoint(
    s3_server: S3Server, s3_bucket: str
) -> None:
    public = f"http://localhost:{s3_server.port}"
    async with our_store(f"s3://{s3_bucket}/p", public) as store:
        await store.put("key", b"x")
        link = await store.link("key", seconds=60)
    assert link.startswith(f"{public}/{s3_bucket}/p/key?")
    assert (await fetch(link))[:2] == (200, b"x")


@pytest.mark.usefixtures("_our_keys")
async def test_what_is_wrong_with_our_own_store_is_no_jobs_fault(
    s3_bucket: str, big_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with our_store("s3://no-such-bucket") as store:
        with pytest.raises(Unavailable, match="NoSuchBucket"):
            await store.upload(big_file, "key")
        with pytest.raises(Unavailable, match="NoSuchBucket"):
            await store.get("key")

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    async with our_store(f"s3://{s3_bucket}") as store:
        errors = await every_error_of(store, big_file)
    assert {type(error) for error in errors} == {Unavailable}

    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    async with our_store(f"s3://{s3_bucket}") as store:
        with pytest.raises(Unavailable, match="credentials"):
            await store.put("key", b"")


async def test_what_is_not_there_is_not_found(s3_server: S3Server, s3_bucket: str) -> None:
    async with users_bucket(s3_server, s3_bucket) as store:
        with pytest.raises(NotFound, match=f"'key' in bucket '{s3_bucket}'"):
            await store.get("key")


# --- failed uploads


async def parts_left(server: S3Server, bucket: str) -> list[Any]:
    async with server.client() as client:
        found = await client.list_multipart_uploads(Bucket=bucket)
    uploads: list[Any] = found.get("Uploads", [])
    return uploads


async def test_a_cancelled_upload_leaves_no_parts_in_the_bucket(
    s3_server: S3Server, s3_bucket: str, tmp_path: Path
) -> None:
    (tmp_path / "big").write_bytes(bytes(PART_BYTES * 12))
    begun = asyncio.Event()
    async with asyncio.timeout(SECONDS), users_bucket(s3_server, s3_bucket) as store:
        upload = asyncio.create_task(store.upload(tmp_path / "big", "key", keepalive=begun.set))
        await begun.wait()
        assert len(await parts_left(s3_server, s3_bucket)) == 1
        upload.cancel()
        await asyncio.wait((upload,))
        assert upload.cancelled()
        assert await parts_left(s3_server, s3_bucket) == []
        assert not await store.exists("key")


async def test_an_upload_whose_file_shrinks_makes_no_object_and_leaves_no_parts(
    s3_server: S3Server, s3_bucket: str, tmp_path: Path
) -> None:
    big = tmp_path / "big"
    big.write_bytes(bytes(PART_BYTES * 12))
    async with asyncio.timeout(SECONDS), users_bucket(s3_server, s3_bucket) as store:
        with pytest.raises(Unavailable, match="big became shorter"):
            await store.upload(big, "key", keepalive=lambda: os.truncate(big, PART_BYTES))
        assert not await store.exists("key")
    assert await parts_left(s3_server, s3_bucket) == []


# --- regions


@pytest.mark.parametrize(
    ("endpoint", "region"),
    [
        ("https://s3.eu-west-1.amazonaws.com", "eu-west-1"),
        ("https://s3.dualstack.eu-west-1.amazonaws.com", "eu-west-1"),
        ("https://s3-us-west-2.amazonaws.com", "us-west-2"),
        ("https://s3.us-west-004.backblazeb2.com", "us-west-004"),
        ("https://s3.fr-par.scw.cloud", "fr-par"),
        ("https://s3.amazonaws.com", "us-east-1"),
        ("https://nyc3.digitaloceanspaces.com", "us-east-1"),
        ("https://abc.r2.cloudflarestorage.com", "us-east-1"),
        ("http://127.0.0.1:9000", "us-east-1"),
        ("no url at all", "us-east-1"),
        ("http://[127.0.0.1]:9000", "us-east-1"),
    ],
)
def test_the_region_is_read_from_the_endpoints_name(endpoint: str, region: str) -> None:
    assert region_of(endpoint) == region


async def test_the_next_bucket_is_opened_without_reading_what_s3_is_again(
    s3_server: S3Server, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes long and blocks the process meanwhile."""
    read: list[str] = []
    load = JSONFileLoader.load_file

    def noted(self: JSONFileLoader, path: str) -> Any:
        read.append(path)
        return load(self, path)

    async with users_bucket(s3_server, s3_bucket) as first:
        await first.put("a", b"1")
    monkeypatch.setattr(JSONFileLoader, "load_file", noted)
    async with users_bucket(s3_server, s3_bucket) as second:
        assert await second.get("a") == b"1"
    assert read == []
