"""A whole deployment to do damage to: every service a process of its own, the children scripted.

    async with faulty_world(broker, s3) as world:
        job = await world.submit(script=Script(steps=10))
        await world.reaches(job, step=3)
        ...                                   # the fault
        seconds = await world.recovered([job])
        await world.whole()                   # whatever was taken away is back

One world serves many cases.
"""

from __future__ import annotations

import asyncio
import io
import os
import signal
import uuid
import zipfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any, TypeVar

import aiohttp
import msgspec

from everydream.client import ENDS, Client, is_temporary
from tests.end_to_end.story import API_KEY, bucket_config, host_of, picture
from tests.faults.script import Script, spell
from tests.support.pace import SHARED, slowness
from tests.support.servers.process import HOST
from tests.support.servers.proxy import Proxy
from tests.support.servers.rabbitmq import RabbitMQ
from tests.support.servers.s3 import S3Server
from tests.support.servers.web import Web, running_web
from tests.support.services import Services, services_in_a_folder, shared_environment

SERVICES = ("gateway", "fetcher", "trainer", "inferencer", "notifier")
USUAL_HEARTBEAT = 0.2
"""Seconds, on a quiet machine."""
CHOSEN_HEARTBEAT = os.environ.get("EVERYDREAM_HEARTBEAT")
PATIENCE = 120.0
"""Seconds for whatever a case waits for: far above the slowest, so that a hang has a name."""
LOOK_SECONDS = 0.1
PROGRAM = ("tests.faults.scripted",)
T = TypeVar("T")


def at_our_pace(script: Script) -> Script:
    """The script with steps so long that a slow machine's heartbeats still show them."""
    factor = max(1.0, slowness() / SHARED)
    return msgspec.structs.replace(script, step_seconds=script.step_seconds * factor)


@cache
def heartbeat() -> float:
    """Seconds: one that this machine keeps, however slow or busy it is, unless one is chosen.

    A worker that gets no time for six of them counts as lost.
    """
    return float(CHOSEN_HEARTBEAT or round(USUAL_HEARTBEAT * slowness(), 2))


@dataclass
class Job:
    """One accepted job, and what is expected of it."""

    id: str
    webhook: bool
    s3: bool
    wanted: str | None = "COMPLETED"
    """Its end; None: any, where the case itself decides."""


@dataclass(frozen=True)
class Proxies:
    """What stands between the services and everything else; they know no other way."""

    broker: Proxy
    store: Proxy
    """To the deployment's own store."""
    bucket: Proxy
    """To the S3 service of the user's bucket."""

    def open(self) -> None:
        for proxy in (self.broker, self.store, self.bucket):
            proxy.open()


@dataclass
class World:
    """One deployment, its users' bucket and web server, and all that was submitted to it."""

    services: Services
    broker: RabbitMQ
    vhost: str
    proxies: Proxies
    s3: S3Server
    bucket: str
    """The user's."""
    web: Web
    session: aiohttp.ClientSession
    wanted: Counter[str]
    """How many of each service run when nothing is broken."""
    jobs: dict[str, Job] = field(default_factory=dict)
    planted: list[bytes] = field(default_factory=list)
    """Bodies that a case has put on the broker, which must be buried."""

    # -- what a user does

    @property
    def client(self) -> Client:
        """Of the first gateway that runs; a restarted one has another port."""
        return Client(self.session, self.services.first("gateway").url, API_KEY)

    async def submit(
        self,
        script: Script | None = None,
        *,
        webhook: bool = True,
        s3: bool = True,
        wanted: str | None = "COMPLETED",
        request: dict[str, Any] | None = None,
        **train: Any,
    ) -> str:
        """Post a job until it is accepted, as a client with an idempotency key may; its id.

        ``request`` replaces parts of the body, ``train`` fields of its training.
        """
        script = at_our_pace(script or Script())
        body = self.body(script, webhook=webhook, s3=s3, **train) | (request or {})
        once = str(uuid.uuid4())
        job = await self.until(lambda: self._accepted(body, once))
        self.jobs[job] = Job(job, webhook, s3, wanted)
        return job

    def body(
        self, script: Script, *, webhook: bool = True, s3: bool = True, **train: Any
    ) -> dict[str, Any]:
        """The endpoint's own JSON for a job that follows the script."""
        text = spell(script)
        url = self.web.serve(f"/data/{uuid.uuid4()}.zip", dataset(text))
        small = {"data_url": url, "resolution": 256, "batch_size": 1, "max_epochs": 1}
        body: dict[str, Any] = {
            "input": {
                "train": {**small, "useadam8bit": False, **train},
                "inference": {"prompt": text, "width": 128, "height": 128, "seed": 7},
            }
        }
        if webhook:
            body["webhook"] = self.web.url("/webhook")
        if s3:
            there = through(self.proxies.bucket)
            body["s3Config"] = bucket_config(self.s3, self.bucket) | {"endpointUrl": there}
        return body

    async def status(self, job: str) -> dict[str, Any]:
        """What the gateway says of a job, as soon as it says anything."""
        return await self.until(lambda: self._answered(lambda: self.client.status(job)))

    async def end_of(self, job: str, seconds: float = PATIENCE) -> dict[str, Any]:
        """The job's last status, once it has ended."""

        async def ended() -> dict[str, Any] | None:
            now = await self._answered(lambda: self.client.status(job))
            return now if now and now["status"] in ENDS else None

        return await self.until(ended, seconds)

    async def reaches(self, job: str, *, step: int) -> dict[str, Any]:
        """Wait until the training is that far; its status then."""

        async def there() -> dict[str, Any] | None:
            now = await self._answered(lambda: self.client.status(job))
            assert not now or now["status"] not in ENDS, f"{job} has ended already: {now}"
            return now if now and (now["output"].get("step") or 0) >= step else None

        return await self.until(there)

    async def recovered(self, jobs: Iterable[str], seconds: float = PATIENCE) -> float:
        """Wait until all have ended as wanted; how many seconds that took."""
        began = monotonic()
        for job in jobs:  # one by one: a look at all of them at once is work for the gateway
            end = await self.end_of(job, seconds)
            wanted = self.jobs[end["id"]].wanted or end["status"]
            assert end["status"] == wanted, (end["id"], end["status"], end.get("error"))
        return monotonic() - began

    # -- waiting

    async def until(self, look: Callable[[], Awaitable[T | None]], seconds: float = PATIENCE) -> T:
        """Look until there is something to see; a service that is gone ends the wait."""
        deadline = monotonic() + seconds
        while (seen := await look()) is None:
            self.services.check()
            assert monotonic() < deadline, "waited in vain"
            await asyncio.sleep(LOOK_SECONDS)
        return seen

    async def says(self, name: str, *words: str, seconds: float = PATIENCE) -> None:
        """Wait until one line of one of these services has all these words."""

        async def said() -> bool | None:
            texts = (each.text for each in self.services.all if each.name == name)
            lines = (line for text in texts for line in text.splitlines())
            return any(all(word in line for word in words) for line in lines) or None

        await self.until(said, seconds)

    async def _accepted(self, body: dict[str, Any], once: str) -> str | None:
        return await self._answered(lambda: self.client.run(body, once=once))

    async def _answered(self, call: Callable[[], Awaitable[T]]) -> T | None:
        """None: the gateway is away, or cannot just now."""
        if not self.services.named("gateway"):
            return None
        try:
            async with asyncio.timeout(10):
                return await call()
        except (aiohttp.ClientError, TimeoutError) as error:
            if not is_temporary(error):
                raise
            return None

    async def warm_up(self) -> None:
        """See one job through: all that is loaded when it is first needed is loaded then."""
        await self.end_of(await self.submit(wanted=None), seconds=2 * PATIENCE)

    # -- what a case takes away comes back

    async def whole(self) -> None:
        """Bring everything back: broker, store, and as many of each service as at the start."""
        self.proxies.open()
        await asyncio.to_thread(self.broker.start)
        await asyncio.to_thread(self.s3.start)
        for process in self.services.all:
            if process.alive:
                process.send(signal.SIGCONT)
        for name, count in self.wanted.items():
            for surplus in self.services.named(name)[count:]:
                await surplus.stop()
            for _ in range(count - len(self.services.named(name))):
                self.services.begin(name)
        running = [process for process in self.services.all if process.alive]
        await asyncio.gather(*(process.wait_until_ready() for process in running))


@asynccontextmanager
async def faulty_world(
    broker: RabbitMQ,
    s3: S3Server,
    *,
    services: Iterable[str] = SERVICES,
    database_url: str | None = None,
    vhost: str = "",
    **settings: str,
) -> AsyncIterator[World]:
    """A deployment in a virtual host and buckets of its own.

    Args:
        broker: nobody else's while this lasts.
        s3: the deployment's store and the user's bucket are on it; it keeps them in memory.
        services: a name twice runs two of them.
        database_url: None: SQLite, for one gateway.
        vhost: one that somebody listens to already; empty: a fresh one.
        settings: without their prefix: ``RESUME_EVERY="1"``.
    """
    await asyncio.to_thread(broker.start)
    vhost = vhost or await asyncio.to_thread(broker.fresh_vhost)
    ours, theirs = s3.create_bucket(), s3.create_bucket()
    async with AsyncExitStack() as stack:
        web = await stack.enter_async_context(running_web())
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="world-")))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        proxies = await stack.enter_async_context(_proxies(broker, s3))
        allowed = f"{host_of(web.url())},{host_of(through(proxies.bucket))}"
        environment = shared_environment(
            amqp_url=broker.url(vhost).replace(f":{broker.port}/", f":{proxies.broker.port}/"),
            database_url=database_url or f"sqlite:///{folder / 'everydream.db'}",
            s3=s3,
            bucket=ours,
            **{"HEARTBEAT": str(heartbeat()), "ALLOWED_PRIVATE_HOSTS": allowed, **settings},
        ) | {"AWS_ENDPOINT_URL_S3": through(proxies.store)}
        running = await stack.enter_async_context(services_in_a_folder(environment, PROGRAM))
        world = World(running, broker, vhost, proxies, s3, theirs, web, session, Counter(services))
        await world.whole()
        yield world


@asynccontextmanager
async def _proxies(broker: RabbitMQ, s3: S3Server) -> AsyncIterator[Proxies]:
    async with (
        Proxy(HOST, broker.port) as to_broker,
        Proxy(HOST, s3.port) as to_store,
        Proxy(HOST, s3.port) as to_bucket,
    ):
        yield Proxies(to_broker, to_store, to_bucket)


def through(proxy: Proxy) -> str:
    """The URL of an HTTP server behind it."""
    return f"http://{HOST}:{proxy.port}"


def dataset(caption: str) -> bytes:
    """A zip of one picture and its caption."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("picture.png", _picture())
        archive.writestr("picture.txt", caption)
    return buffer.getvalue()


@cache
def _picture() -> bytes:
    return picture(0)
