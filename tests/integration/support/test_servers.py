"""The private servers do what their fixtures promise."""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import aio_pika
import aiohttp
import psutil
import pytest
from aio_pika.abc import AbstractChannel
from aio_pika.exceptions import AMQPError
from aiobotocore.config import AioConfig
from botocore.exceptions import ClientError
from pamqp.common import FieldTable
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from yarl import URL

from tests.support.servers import rabbitmq as rabbitmq_module
from tests.support.servers.postgres import PostgreSQL
from tests.support.servers.process import Server, ServerError, free_port, listens
from tests.support.servers.rabbitmq import RabbitMQ
from tests.support.servers.s3 import S3Server
from tests.support.servers.web import Answer, Page, Web

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]  # tests of the tests

QUORUM: FieldTable = {"x-queue-type": "quorum"}
MIB = 1 << 20


def wait_until(is_so: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


# ------------------------------------------------------------------------------------- RabbitMQ


async def publish(channel: AbstractChannel, queue: str, body: bytes) -> None:
    await channel.default_exchange.publish(aio_pika.Message(body), queue)


async def put_away(url: str, body: bytes) -> None:
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        await channel.declare_queue("kept", durable=True, arguments=QUORUM)
        await publish(channel, "kept", body)


async def take_out(url: str) -> bytes:
    async with asyncio.timeout(60), await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue("kept", durable=True, arguments=QUORUM)
        async with queue.iterator() as messages:
            message = await anext(messages)
            await message.ack()
            return message.body


async def take_out_when_it_can(url: str) -> bytes:
    # A quorum queue that has not elected its leader yet answers a consumer with an internal error.
    async with asyncio.timeout(120):
        while True:
            with contextlib.suppress(AMQPError):
                return await take_out(url)
            await asyncio.sleep(0.2)


async def test_a_quorum_queue_confirms_and_delivers(amqp_url: str) -> None:
    await put_away(amqp_url, b"hello")
    assert await take_out(amqp_url) == b"hello"


async def test_each_test_has_a_virtual_host_of_its_own(rabbitmq: RabbitMQ) -> None:
    urls = [rabbitmq.fresh_url() for _ in range(3)]
    assert len(set(urls)) == 3
    for url in urls:
        await put_away(url, url.encode())
    assert [await take_out(url) for url in urls] == [url.encode() for url in urls]


async def test_a_confirmed_message_outlives_a_kill_of_the_node(
    rabbitmq: RabbitMQ, amqp_url: str
) -> None:
    await put_away(amqp_url, b"still here")
    await asyncio.to_thread(rabbitmq.settle)
    rabbitmq.kill()
    with pytest.raises((AMQPError, OSError)):
        await aio_pika.connect(amqp_url)
    await asyncio.to_thread(rabbitmq.start)
    assert await take_out_when_it_can(amqp_url) == b"still here"


async def test_a_paused_node_answers_nobody_until_it_is_resumed(
    rabbitmq: RabbitMQ, amqp_url: str
) -> None:
    async with await aio_pika.connect(amqp_url) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue("paused")
        rabbitmq.pause()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await publish(channel, queue.name, b"lost?")
        rabbitmq.resume()
        async with asyncio.timeout(60):
            await publish(channel, queue.name, b"again")


async def test_all_connections_can_be_cut(rabbitmq: RabbitMQ, amqp_url: str) -> None:
    closed = asyncio.Event()
    connection = await aio_pika.connect(amqp_url)
    connection.close_callbacks.add(lambda *_: closed.set())
    await asyncio.to_thread(rabbitmq.close_all_connections)
    async with asyncio.timeout(60):
        await closed.wait()
    await connection.close()
    await put_away(amqp_url, b"back at once")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rabbitmq_module, "FOLDERS", ("/nowhere",))
    with pytest.raises(ServerError, match="apt-get install rabbitmq-server"):
        RabbitMQ()


# ----------------------------------------------------------------------------------- PostgreSQL


async def ask(url: str, question: str) -> object:
    engine = create_async_engine(url)
    try:
        async with engine.begin() as connection:
            answer = await connection.execute(text(question))
            return answer.scalar() if answer.returns_rows else None
    finally:
        await engine.dispose()


async def test_a_database_answers(postgres_url: str) -> None:
    assert str(await ask(postgres_url, "SELECT version()")).startswith("PostgreSQL")


async def test_each_test_has_a_database_of_its_own(postgres: PostgreSQL, postgres_url: str) -> None:
    await ask(postgres_url, "CREATE TABLE here (id int)")
    other = postgres.url()
    with pytest.raises(DBAPIError, match="does not exist"):
        await ask(other, "SELECT * FROM here")
    postgres.drop(other)


# ------------------------------------------------------------------------------------------- S3


async def fetch(url: str, method: str = "GET", **more: Any) -> tuple[int, bytes]:
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, URL(url, encoded=True), **more) as response,
    ):
        return response.status, await response.read()


async def presign(server: S3Server, bucket: str, key: str, seconds: int = 600) -> str:
    async with server.client() as client:
        params = {"Bucket": bucket, "Key": key}
        url: str = await client.generate_presigned_url("get_object", params, seconds)
        return url


async def put(server: S3Server, bucket: str, key: str, body: bytes) -> None:
    async with server.client() as client:
        await client.put_object(Bucket=bucket, Key=key, Body=body)


async def code_of(server: S3Server, bucket: str, **keys: str) -> str:
    with pytest.raises(ClientError) as caught:
        async with server.client(**keys) as client:
            await client.put_object(Bucket=bucket, Key="key", Body=b"x" * MIB)
    code: str = caught.value.response["Error"]["Code"]
    return code


@pytest.mark.parametrize("key", ["plain.txt", "a b/ü+&=~%41 (1).txt"])
async def test_an_object_comes_back_by_client_and_by_link(
    s3_server: S3Server, s3_bucket: str, key: str
) -> None:
    await put(s3_server, s3_bucket, key, b"hello")
    async with s3_server.client() as client:
        head = await client.head_object(Bucket=s3_bucket, Key=key)
        assert head["ContentLength"] == 5
        listed = await client.list_objects_v2(Bucket=s3_bucket, Prefix=key)
        assert [entry["Key"] for entry in listed["Contents"]] == [key]
    assert await fetch(await presign(s3_server, s3_bucket, key)) == (200, b"hello")


async def test_a_link_for_one_key_opens_no_other(s3_server: S3Server, s3_bucket: str) -> None:
    await put(s3_server, s3_bucket, "mine", b"mine")
    await put(s3_server, s3_bucket, "yours", b"yours")
    url = await presign(s3_server, s3_bucket, "mine")
    status, body = await fetch(url.replace("/mine?", "/yours?"))
    assert (status, b"SignatureDoesNotMatch" in body) == (403, True)


async def test_a_link_s_life_cannot_be_prolonged(s3_server: S3Server, s3_bucket: str) -> None:
    url = await presign(s3_server, s3_bucket, "key", 60)
    status, body = await fetch(url.replace("X-Amz-Expires=60", "X-Amz-Expires=6000"))
    assert (status, b"SignatureDoesNotMatch" in body) == (403, True)


async def test_a_link_expires(s3_server: S3Server, s3_bucket: str) -> None:
    await put(s3_server, s3_bucket, "key", b"soon gone")
    url = await presign(s3_server, s3_bucket, "key", 1)
    async with asyncio.timeout(60):
        while (answer := await fetch(url))[0] == 200:
            await asyncio.sleep(0.1)
    assert answer[0] == 403
    assert b"AccessDenied" in answer[1]
    assert b"expired" in answer[1]


async def test_nothing_is_open_without_a_signature(s3_server: S3Server, s3_bucket: str) -> None:
    await put(s3_server, s3_bucket, "key", b"secret")
    status, body = await fetch(f"{s3_server.endpoint_url}/{s3_bucket}/key")
    assert (status, b"AccessDenied" in body) == (403, True)


async def test_a_link_to_upload_holds_for_its_content_type_only(
    s3_server: S3Server, s3_bucket: str
) -> None:
    params = {"Bucket": s3_bucket, "Key": "up.png", "ContentType": "image/png"}
    async with s3_server.client() as client:
        url = await client.generate_presigned_url("put_object", params, 600)
    html = await fetch(url, "PUT", data=b"x", headers={"Content-Type": "text/html"})
    png = await fetch(url, "PUT", data=b"x", headers={"Content-Type": "image/png"})
    assert (html[0], png[0]) == (403, 200)


async def test_a_wrong_secret_and_an_unknown_key_are_distinguished(
    s3_server: S3Server, s3_bucket: str
) -> None:
    wrong = await code_of(s3_server, s3_bucket, aws_secret_access_key="wrong")
    unknown = await code_of(s3_server, s3_bucket, aws_access_key_id="unknown")
    assert (wrong, unknown) == ("SignatureDoesNotMatch", "InvalidAccessKeyId")


async def test_a_head_request_that_is_refused_says_so(s3_server: S3Server, s3_bucket: str) -> None:
    async with s3_server.client(aws_secret_access_key="wrong") as client:
        with pytest.raises(ClientError) as caught:
            await client.head_object(Bucket=s3_bucket, Key="key")
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403


# aiohttp would rather have a file than the bytes that the S3 client hands to it.
@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
async def test_a_large_file_arrives_in_parts(
    s3_server: S3Server, s3_bucket: str, tmp_path: Path
) -> None:
    large = tmp_path / "large.bin"
    large.write_bytes(os.urandom(20 * MIB))
    async with s3_server.client() as client:
        await client.upload_file(str(large), s3_bucket, "large.bin")
        head = await client.head_object(Bucket=s3_bucket, Key="large.bin")
        await client.download_file(s3_bucket, "large.bin", str(tmp_path / "back.bin"))
    assert head["ETag"].endswith('-3"')
    assert (tmp_path / "back.bin").read_bytes() == large.read_bytes()


@pytest.mark.parametrize("signed_payload", [True, False])
async def test_checksums_and_unsigned_bodies_are_taken(
    s3_server: S3Server, s3_bucket: str, *, signed_payload: bool
) -> None:
    s3 = {"addressing_style": "path", "payload_signing_enabled": signed_payload}
    config = AioConfig(signature_version="s3v4", s3=s3, retries={"max_attempts": 1})
    metadata = {"under_score": "a  b", "da-sh": "c"}
    async with s3_server.client(config=config) as client:
        await client.put_object(Bucket=s3_bucket, Key="key", Body=b"body", Metadata=metadata)
        head = await client.head_object(Bucket=s3_bucket, Key="key")
    assert head["Metadata"] == metadata


async def test_only_one_of_many_can_create_a_key(s3_server: S3Server, s3_bucket: str) -> None:
    async with s3_server.client() as client:
        put_once = {"Bucket": s3_bucket, "Key": "claim", "Body": b"x", "IfNoneMatch": "*"}
        tries = (client.put_object(**put_once) for _ in range(4))
        results = await asyncio.gather(*tries, return_exceptions=True)
    assert sum(not isinstance(result, ClientError) for result in results) == 1


async def test_a_server_may_have_keys_of_its_own() -> None:
    with S3Server("somebody", "else") as server:
        bucket = server.create_bucket("theirs")
        await put(server, bucket, "key", b"body")
        assert await fetch(await presign(server, bucket, "key")) == (200, b"body")


# ------------------------------------------------------------------------------------------ web


async def test_the_web_serves_bytes_and_files_and_nothing_else(web: Web, tmp_path: Path) -> None:
    (tmp_path / "data.zip").write_bytes(b"zip")
    web.serve("/bytes", b"bytes")
    web.serve("/data.zip", tmp_path / "data.zip")
    assert await fetch(web.url("/bytes")) == (200, b"bytes")
    assert await fetch(web.url("/data.zip")) == (200, b"zip")
    assert (await fetch(web.url("/none")))[0] == 404


async def test_the_web_redirects(web: Web) -> None:
    there = web.serve("/there", b"arrived")
    assert await fetch(web.redirect("/here", there)) == (200, b"arrived")


async def test_the_web_cuts_a_body_short(web: Web) -> None:
    for announce in (True, False):
        url = web.serve("/short", Page(b"0123456789", announce=announce, cut_at=4))
        with pytest.raises(aiohttp.ClientPayloadError):
            await fetch(url)


async def test_the_web_can_dawdle_and_hide_the_length(web: Web) -> None:
    url = web.serve("/slow", Page(b"0123456789", announce=False, piece=3, pause=0.01))
    assert await fetch(url) == (200, b"0123456789")
    url = web.serve("/stuck", Page(b"0123456789", piece=3, pause=600))
    with pytest.raises(TimeoutError):
        await fetch(url, timeout=aiohttp.ClientTimeout(total=0.5))


async def test_the_web_answers_posts_by_its_script_and_remembers_them(web: Web) -> None:
    web.answer(500, Answer(429, {"Retry-After": "1"}), 200)
    url = web.url("/hook")
    statuses = [(await fetch(url, "POST", data=bytes([n])))[0] for n in range(4)]
    posts = await web.wait_for_posts(4)
    assert statuses == [500, 429, 200, 200]
    assert [post.body for post in posts] == [b"\0", b"\1", b"\2", b"\3"]
    assert {post.path for post in posts} == {"/hook"}
    assert "Host" in posts[0].headers


async def test_posts_can_be_waited_for(web: Web) -> None:
    waiting = asyncio.create_task(web.wait_for_posts(2))
    for first, second in pairwise((b"a", b"b", b"c")):
        await fetch(web.url("/hook"), "POST", data=first + second)
    assert [post.body for post in await waiting] == [b"ab", b"bc"]


async def test_the_web_can_keep_silent(web: Web) -> None:
    web.answer(Answer(status=None))
    with pytest.raises(TimeoutError):
        await fetch(web.url("/"), "POST", timeout=aiohttp.ClientTimeout(total=0.5))


# ---------------------------------------------------------------------------------- all of them


@pytest.fixture(params=[RabbitMQ, PostgreSQL, S3Server])
def kind(request: pytest.FixtureRequest) -> type[Server]:
    server: type[Server] = request.param
    return server


def stray_port_mappers(folder: Path) -> list[int]:
    found = psutil.process_iter(["pid", "name", "environ"])
    mappers = [p for p in found if p.info["name"] == "epmd"]
    return [p.pid for p in mappers if (p.info["environ"] or {}).get("HOME") == str(folder)]


def processes_in(folder: Path) -> list[int]:
    """Return the processes that work in a folder; of the dead nobody knows where they worked."""
    found = psutil.process_iter(["pid", "cwd"])
    return [p.pid for p in found if Path(p.info["cwd"] or "/").is_relative_to(folder)]


def test_nothing_is_left_of_a_server(kind: type[Server]) -> None:
    with kind() as server:
        assert processes_in(server.folder)
    assert not server.folder.exists()
    wait_until(lambda: not processes_in(server.folder))


ABANDON = """
import sys, time
from tests.support.servers.{module} import {name}
server = {name}()
server.start()
print(server.folder, flush=True)
time.sleep(600)
"""


def test_a_server_ends_with_the_tests_even_if_they_are_killed(kind: type[Server]) -> None:
    module = kind.__module__.rpartition(".")[2]
    code = ABANDON.format(module=module, name=kind.__name__)
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as tests:
        assert tests.stdout
        folder = Path(tests.stdout.readline().strip())
        started = processes_in(folder)
        tests.kill()
    assert started
    wait_until(lambda: not processes_in(folder) and not folder.exists())
    assert not stray_port_mappers(folder)


def test_a_free_port_is_one_that_nobody_uses() -> None:
    port = free_port()
    assert not listens(port)
    with socket.create_server(("127.0.0.1", port)):
        assert listens(port)
