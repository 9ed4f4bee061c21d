"""Nothing that a run leaves behind or shows holds a secret: a search through all of it."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import reduce
from typing import Any
from uuid import uuid5

import aio_pika
import pika
import pytest
from aiohttp import ClientTimeout

from everydream.client import Client
from shared.messaging.messages import NAMESPACE
from shared.messaging.topology import EXCHANGE, QUEUES
from tests.end_to_end.story import User, bucket_config, dataset, host_of, user_of
from tests.end_to_end.traced import exporting_to
from tests.support.broker_logins import PASSWORDS, make_logins, make_user
from tests.support.compose import OURS
from tests.support.following import followed
from tests.support.forms import few
from tests.support.secrets_search import (
    Leak,
    Place,
    answer,
    files_in,
    leaks,
    messages_on,
    objects_in,
    process,
    rows_of,
    written,
)
from tests.support.servers.otlp import Collector, collecting
from tests.support.servers.rabbitmq import RabbitMQ
from tests.support.servers.s3 import S3Server
from tests.support.servers.web import Web
from tests.support.services import COLD, WARM, Services, services_in_a_folder, shared_environment

ROOT = "/v1/everydream-v1"
API_KEY = "ed_0the1key2of3anna"
SECRET_KEY = "the+secret/key of a deployment & more"
WEBHOOK_SECRET = "whsec_dGhlIHdlYmhvb2sgc2VjcmV0IG9mIHVz"
DATABASE_PASSWORD = "the-password-of-the-database"
HF_TOKEN = "hf_0the1token2of3the4hub"
OUR_ID, THEIR_ID, DENIED_ID = "OURS0ACCESS0ID", "THEIRS0ACCESS0ID", "DENIED0ACCESS0ID"
DENIED_SECRET = "a secret that opens nothing/+="
POISON = "poison-accessSecret-7731"
POISONED = json.dumps({"type": "x", "why": POISON}).encode()
"""A broken worker's words."""
SIGNED, USERINFO, HOOK = "signature0of0the0data", "password0in0the0address", "token0of0the0webhook"
SETTLED = 120.0
"""Seconds in which whatever is awaited here happens on a busy machine."""


@dataclass
class Run:
    """A deployment with everything around it, and what was heard and answered."""

    services: Services
    user: User
    web: Web
    ours: S3Server
    theirs: S3Server
    bucket: str
    guest_url: str
    shop_url: str
    trainer_url: str
    database_url: str
    collector: Collector
    jobs: dict[str, str] = field(default_factory=dict)
    """By what became of them."""
    shown: list[Place] = field(default_factory=list)
    """Answers over HTTP."""
    heard: list[Place] = field(default_factory=list)
    """Messages on the exchange, but for those that the test itself has put there."""

    @property
    def secrets(self) -> dict[str, str]:
        """What may stand nowhere."""
        return {
            "the API key": API_KEY,
            "the secret key": SECRET_KEY,
            "the webhook secret": WEBHOOK_SECRET.removeprefix("whsec_"),
            "the database's password": DATABASE_PASSWORD,
            "the token of the hub": HF_TOKEN,
            "our S3 secret": self.ours.secret_key,
            "the user's S3 id": THEIR_ID,
            "the user's S3 secret": self.theirs.secret_key,
            "the denied S3 id": DENIED_ID,
            "the denied S3 secret": DENIED_SECRET,
            "the poison's secret": POISON,
            "the password in a URL": USERINFO,
            **{f"the broker password of {name}": word for name, word in PASSWORDS.items()},
        }

    @property
    def links(self) -> dict[str, str]:
        """What its owner may see again, and the workers that need it, but no log may keep."""
        return {
            "the query of a data_url": SIGNED,
            "the query of a webhook": HOOK,
            "a presigned link": "X-Amz-Signature",
            "our S3 id": OUR_ID,
        }

    async def keep(self, method: str, path: str, **more: Any) -> Any:
        """Ask, and keep the whole answer to be searched."""
        headers = {"Authorization": f"Bearer {API_KEY}", **more.pop("headers", {})}
        url = self.services.first("gateway").url + path
        timeout = ClientTimeout(total=SETTLED)
        async with self.user.session.request(
            method, url, headers=headers, timeout=timeout, **more
        ) as got:
            body = await got.read()
            self.shown.append(answer(f"{method} {path}", f"{dict(got.headers)}\n".encode() + body))
            return json.loads(body) if got.content_type == "application/json" else body

    async def ends(self, name: str, status: str) -> dict[str, Any]:
        last = await self.user.finished(self.jobs[name])
        assert last["status"] == status, last
        return last


@asynccontextmanager
async def s3_servers() -> AsyncIterator[tuple[S3Server, S3Server]]:
    with S3Server(OUR_ID) as ours, S3Server(THEIR_ID) as theirs:
        await asyncio.gather(asyncio.to_thread(ours.start), asyncio.to_thread(theirs.start))
        yield ours, theirs


@asynccontextmanager
async def deployment(
    rabbitmq: RabbitMQ, postgres_url: str, web: Web, program: Sequence[str]
) -> AsyncIterator[Run]:
    """Five services, each with its own login and only the secrets that it needs."""
    async with collecting() as collector, s3_servers() as (ours, theirs):
        bucket = await asyncio.to_thread(ours.create_bucket)
        vhost = rabbitmq.fresh_vhost()
        logins = await asyncio.to_thread(make_logins, rabbitmq, vhost)
        shop = await asyncio.to_thread(make_user, rabbitmq, "producer", f"shop-{vhost}", vhost)
        database_url = postgres_url.replace("test@", f"test:{DATABASE_PASSWORD}@")
        allowed = f"{host_of(web.url())},{host_of(theirs.endpoint_url)}"
        common = shared_environment(
            amqp_url="", database_url="", s3=ours, bucket=bucket, HEARTBEAT="0.5", API_KEYS="",
            SECRET_KEY="", ALLOWED_PRIVATE_HOSTS=allowed, ACCESS_LOG="on", LOG_LEVEL="debug",
        ) | exporting_to(collector.url)  # fmt: skip
        sealing = {
            "EVERYDREAM_SECRET_KEY": SECRET_KEY, "EVERYDREAM_WEBHOOK_SECRET": WEBHOOK_SECRET,
        }  # fmt: skip
        own = {
            "gateway": {**sealing, "EVERYDREAM_API_KEYS": API_KEY,
                        "EVERYDREAM_DATABASE_URL": database_url},
            "notifier": sealing,
            "fetcher": {"HF_TOKEN": HF_TOKEN},
        }  # fmt: skip
        async with services_in_a_folder(common, program) as services:
            for name in OURS:
                login = {"EVERYDREAM_AMQP_URL": logins[name]}
                services.begin(name, {**common, **own.get(name, {}), **login})
            await services.wait_until_ready()
            async with user_of(services.first("gateway").url, web) as user:
                user.client = Client(user.session, services.first("gateway").url, API_KEY)
                yield Run(
                    services, user, web, ours, theirs, bucket, rabbitmq.url(vhost), shop,
                    logins["trainer"], postgres_url, collector,
                )  # fmt: skip


@asynccontextmanager
async def all_ears(run: Run) -> AsyncIterator[None]:
    """Hear everything on the exchange."""
    async with await aio_pika.connect(run.guest_url) as connection:
        channel = await connection.channel()
        # The gateway listens before it has declared it.
        exchange = await channel.declare_exchange(
            EXCHANGE, aio_pika.ExchangeType.TOPIC, durable=True
        )
        queue = await channel.declare_queue(exclusive=True)
        await queue.bind(exchange, "#")

        async def hear(message: Any) -> None:
            if message.routing_key != "job.requested" and message.body != POISONED:
                run.heard.append(Place(f"{message.routing_key} on the exchange", written(message)))

        await queue.consume(hear, no_ack=True)
        yield


async def until(happened: Callable[[], Awaitable[object]]) -> None:
    async with asyncio.timeout(SETTLED):
        while not await happened():
            await asyncio.sleep(0.1)


# --- What happens -----------------------------------------------------------------------------


async def several_jobs_go_well_and_wrong(run: Run) -> list[Place]:
    """Jobs by HTTP; returns what could be read while one was trained."""
    bucket = await asyncio.to_thread(run.theirs.create_bucket)
    works = {**bucket_config(run.theirs, bucket), "objectPath": "models"}
    denied = {**works, "accessId": DENIED_ID, "accessSecret": DENIED_SECRET}
    run.web.answer(500)  # the first webhook, so that it is sent again
    good = run.user.request(s3=works, batch_size=1, max_epochs=4)
    good["input"]["train"]["data_url"] = run.web.serve("/d.zip", dataset()) + f"?sig={SIGNED}"
    good["webhook"] += f"?token={HOOK}"
    missing = run.user.request(s3=works, data_url=run.web.url(f"/no.zip?sig={SIGNED}"))
    run.jobs["good"] = await run.user.client.run(good)
    run.jobs["denied"] = await run.user.client.run(run.user.request(s3=denied))
    run.jobs["missing"] = await run.user.client.run(missing)
    async for status in followed(run.user.client, run.jobs["good"], every=0.1):
        if (status["output"].get("step") or 0) > 0:
            break
    while_training = [*files_in(run.services.folder), *processes(run)]
    assert "s3Config" not in str(await run.ends("good", "COMPLETED"))
    await run.ends("denied", "FAILED")
    assert "no.zip" in (await run.ends("missing", "FAILED"))["error"]
    await run.web.wait_for_posts(4)
    return while_training


async def mistakes_are_answered(run: Run) -> None:
    """Requests that are refused, each with a secret in it."""
    request = run.user.request()
    train = {"data_url": f"https://anna:{USERINFO}@example.com/a.zip?sig={POISON}"}
    s3 = {"accessId": DENIED_ID, "accesSecret": DENIED_SECRET, "bucketName": 7}
    bodies: list[Any] = [
        {**request, "input": {"train": train}},
        {**request, "webhook": train["data_url"]},
        {**request, "s3Config": s3},
        {**request, "s3Config": json.dumps(s3)},
        {**request, "s3Config": {**s3, "accessSecret": [DENIED_SECRET], "endpointUrl": POISON}},
    ]
    for body in bodies:
        assert (await run.keep("POST", f"{ROOT}/run", json=body))["mistakes"]
    await run.keep("POST", f"{ROOT}/run", data=f'{{"input": "{POISON}'.encode())
    await run.keep("POST", f"{ROOT}/run", json=request, headers={"Authorization": POISON})


def a_producer_asks(run: Run) -> None:
    """Over AMQP: a job that fails, one that is refused, and poison on two queues."""
    s3 = bucket_config(run.theirs, "a-bucket-that-is-not-there")
    fails = {**run.user.request(s3=s3), "webhook": None}
    address = f"https://anna:{USERINFO}@example.com/a.zip"
    refused = {"input": {"train": {"data_url": address}}, "s3Config": {**s3, "x": POISON}}
    said: dict[str, Any] = {
        "fails": {"type": "job.requested", "request": fails},
        "refused": {"type": "job.requested", "request": refused},
        "poison": {"type": "no.such.type", "request": {"s3Config": {"accessSecret": POISON}}},
    }
    parameters = pika.URLParameters(run.shop_url)
    login = str(parameters.credentials.username)
    for event, body in said.items():
        headers = {"cloudEvents_id": event, "cloudEvents_source": "/shop"}
        properties = pika.BasicProperties(user_id=login, headers=headers)
        publish(run.shop_url, "job.requested", json.dumps(body), properties)
    publish(run.shop_url, "job.requested", json.dumps({"type": "job.requested", "request": fails}))
    publish(run.trainer_url, "training.progressed", POISONED.decode())
    run.jobs["of the shop"] = str(reduce(uuid5, (login, "/shop", "fails"), NAMESPACE))


def publish(url: str, key: str, body: str, properties: pika.BasicProperties | None = None) -> None:
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.basic_publish(EXCHANGE, key, body.encode(), properties, mandatory=True)


async def both_poisons_are_buried(run: Run) -> list[Place]:
    async def dead_letters() -> list[Place]:
        rows = await rows_of(run.database_url)
        return [place for place in rows if place.name == "a row of dead_letters"]

    async def buried() -> bool:
        return len(await dead_letters()) >= 2

    await until(buried)
    return await dead_letters()


async def the_shops_jobs_are_decided(run: Run) -> None:
    async def told() -> bool:
        names = [place.name.split()[0] for place in run.heard]
        ended = any(
            place.name.startswith("job.failed")
            and run.jobs["of the shop"].encode() in place.content
            for place in run.heard
        )
        return ended and names.count("job.refused") >= 2

    await until(told)


async def everything_is_looked_at(run: Run) -> None:
    """By the owner, over HTTP."""
    for job in run.jobs.values():
        for path in ("status", "stream", "events"):
            await run.keep("GET", f"{ROOT}/{path}/{job}")
        await run.keep("GET", f"{ROOT}/jobs/{job}/webhooks")
    for path in (f"{ROOT}/jobs", f"{ROOT}/health"):
        await run.keep("GET", path)
    for path in ("/openapi.json", "/asyncapi.json", "/docs", "/healthz"):
        await run.keep("GET", path)


# --- Where is searched ------------------------------------------------------------------------


def processes(run: Run) -> Iterator[Place]:
    """Arguments of all; the environment of children, which need no secret at all."""
    for service in run.services.all:
        yield process(service.pid)[0]
        for child in service.children:
            yield from process(child.pid)


def without_ids(places: list[Place]) -> list[Place]:
    """A presigned link names the key that signed it: there the id is no leak."""
    named = re.compile(rb"X-Amz-Credential=(%s)" % THEIR_ID.encode())
    return [Place(place.name, named.sub(b"", place.content)) for place in places]


@pytest.mark.usefixtures("warm_children")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("program", few(WARM, of=[WARM, COLD]), ids=["forked", "started cold"])
async def test_no_secret_stands_anywhere_after_a_run_with_all_that_can_go_wrong(
    program: Sequence[str], rabbitmq: RabbitMQ, postgres_url: str, web: Web
) -> None:
    """Of processes that are forked, the system shows the environment of whom they came from."""
    rabbitmq.start()
    async with deployment(rabbitmq, postgres_url, web, program) as run, all_ears(run):
        while_training = await several_jobs_go_well_and_wrong(run)
        await asyncio.to_thread(a_producer_asks, run)
        await mistakes_are_answered(run)
        dead = await both_poisons_are_buried(run)
        await the_shops_jobs_are_decided(run)
        await everything_is_looked_at(run)
        assert [place for place in while_training if place.name.startswith("environment")]

        on_queues = await messages_on(run.guest_url, [queue.name for queue in QUEUES])
        rows = await rows_of(run.database_url)
        posts = [answer("a webhook", str(post.headers).encode() + post.body) for post in web.posts]
        got = [answer("a download", f"{seen.path} {seen.headers}") for seen in web.seen]
        kept_by_nobody = [*while_training, *files_in(run.services.folder), *processes(run), *dead]
        stored = await objects_in(run.ours, run.bucket)
        spans = [Place(f"span {span.name}", repr(span).encode()) for span in run.collector.spans]
        kept_by_nobody += spans
        everywhere = [
            *kept_by_nobody, *on_queues, *rows, *posts, *stored, *run.heard, *run.shown,
        ]  # fmt: skip
        assert min(map(len, (rows, posts, got, stored, run.heard, run.shown, dead, spans))) > 0

        found = [
            *leaks(without_ids([*everywhere, *got]), run.secrets),
            *leaks(kept_by_nobody, run.links),
            *leaks([*rows, *run.heard, *on_queues], {"our S3 id": OUR_ID}),
        ]
        assert not found, "\n".join(f"{leak.secret} in {leak.place}" for leak in found)
        await a_leak_would_be_found(run)


async def a_leak_would_be_found(run: Run) -> None:
    """The same search over a log, an object and a row in which a secret was planted."""
    gateway = run.services.first("gateway")
    with gateway.log.open("a") as log:
        log.write(json.dumps({"event": "planted", "url": f"amqp://x:{PASSWORDS['gateway']}@y"}))
    async with run.ours.client() as client:
        await client.put_object(Bucket=run.bucket, Key="planted", Body=HF_TOKEN.encode())
    planted = [*files_in(run.services.folder), *await objects_in(run.ours, run.bucket)]
    found = leaks(planted, run.secrets)
    assert found == [
        Leak(str(gateway.log.relative_to(run.services.folder)), "the broker password of gateway"),
        Leak("object planted", "the token of the hub"),
    ]
