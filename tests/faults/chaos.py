"""Random faults from a seed: each one is done to a world, and undone before the next."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random

import aio_pika
import aiohttp
from aio_pika.exceptions import AMQPError

from everydream.client import Client
from shared.messaging.messages import (
    CheckpointFinal,
    DatasetStaged,
    ImagesGenerated,
    StageFact,
    StagingDue,
    type_of,
)
from shared.messaging.topology import EXCHANGE, QUEUES
from tests.faults.evidence import Witness
from tests.faults.storms import storm
from tests.faults.world import World
from tests.support.servers.proxy import Proxy
from tests.support.servers.web import Answer
from tests.support.services import ServiceProcess

REPEATED = (StagingDue, DatasetStaged, CheckpointFinal, ImagesGenerated, StageFact)
STORMED = 4
"""Jobs that one storm meets at most."""
MOST_ANSWERS = 2
"""Bad ones at a time to webhooks: of five tries of one some must remain."""


@dataclass
class Chaos:
    """Does damage to one world."""

    world: World
    witness: Witness
    random: Random
    heartbeat: float
    injected: Counter[str] = field(default_factory=Counter)
    """How many times each fault was done, by its name."""

    async def rage(self, pauses: tuple[float, float], until: asyncio.Event) -> None:
        """One fault after another, each undone, with so many seconds between two."""
        while not until.is_set():
            await asyncio.sleep(self.random.uniform(*pauses))
            name = self.random.choices([*FAULTS], [weight for _, weight in FAULTS.values()])[0]
            self.injected[name] += await FAULTS[name][0](self)

    def a_moment(self, most_heartbeats: float = 10.0) -> Awaitable[None]:
        """From one beat to so many: shorter than a lease, or longer."""
        return asyncio.sleep(self.heartbeat * self.random.uniform(1.0, most_heartbeats))

    # -- services

    async def kill_a_service(self) -> bool:
        """SIGKILL, and another in its place."""
        if process := self._one_that_runs():
            await process.kill()
            self.world.services.begin_again(process)
        return process is not None

    async def stop_a_service(self) -> bool:
        """SIGTERM, which must end in good order, and another in its place."""
        if process := self._one_that_runs():
            await process.stop()
            self.world.services.begin_again(process)
        return process is not None

    async def freeze_a_service(self) -> bool:
        """SIGSTOP for longer than a lease, perhaps; then it goes on as if nothing had been."""
        if process := self._one_that_runs():
            process.send(signal.SIGSTOP)
            await self.a_moment(12)
            process.send(signal.SIGCONT)
        return process is not None

    def _one_that_runs(self) -> ServiceProcess | None:
        ready = [process for process in self.world.services.all if process.is_ready]
        return self.random.choice(ready) if ready else None

    # -- broker

    async def close_connections(self) -> bool:
        await asyncio.to_thread(self.world.broker.close_all_connections)
        return True

    async def kill_the_broker(self) -> bool:
        await asyncio.to_thread(self.world.broker.settle)
        await asyncio.to_thread(self.world.broker.kill)
        await self.a_moment()
        await asyncio.to_thread(self.world.broker.start)
        return True

    async def hang_the_broker(self) -> bool:
        await asyncio.to_thread(self.world.broker.pause)
        await self.a_moment()
        self.world.broker.resume()
        return True

    async def cut_the_broker_off(self) -> bool:
        return await self._disturb(self.world.proxies.broker)

    # -- stores and webhooks

    async def disturb_the_store(self) -> bool:
        return await self._disturb(self.world.proxies.store)

    async def disturb_the_bucket(self) -> bool:
        return await self._disturb(self.world.proxies.bucket)

    async def _disturb(self, proxy: Proxy) -> bool:
        faults: Sequence[Callable[[], None]] = (
            proxy.cut,
            proxy.half_close,
            lambda: proxy.latency(self.heartbeat / 2),
            lambda: proxy.throttle(200_000),
        )
        self.random.choice(faults)()
        await self.a_moment()
        proxy.open()
        return True

    async def refuse_webhooks(self) -> bool:
        """500 and the like, or no answer at all."""
        bad = [Answer(500), Answer(503, {"Retry-After": "1"}), Answer(None), Answer(302)]
        few = self.world.web.waiting_answers < MOST_ANSWERS
        if few:
            self.world.web.answer(self.random.choice(bad))
        return few

    # -- users

    async def cancel_a_job(self) -> bool:
        """One that had not ended when we last heard of it."""
        ended = {end.job for end in self.witness.ends}
        return await self._asked("cancel", [job for job in self.world.jobs if job not in ended])

    async def storm_of_cancellations(self) -> bool:
        """Of some jobs that have not ended, by several clients, while a service is killed."""
        ended = {end.job for end in self.witness.ends}
        alive = [job for job in self.world.jobs if job not in ended]
        chosen = self.random.sample(alive, min(len(alive), STORMED))
        seconds = self.random.uniform(1.0, 5.0) * self.heartbeat
        await asyncio.gather(
            storm(self.world, chosen, seconds, self.random), self._kill_after(seconds / 2)
        )
        return bool(chosen)

    async def _kill_after(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await self.kill_a_service()

    async def retry_a_job(self) -> bool:
        """One that has failed, and perhaps was retried already."""
        failed = {end.job: None for end in self.witness.ends if end.status == "FAILED"}
        return await self._asked("retry", [*failed])

    async def _asked(self, operation: str, jobs: Sequence[str]) -> bool:
        """Whether a gateway did it; it may refuse, or be away."""
        if not jobs or not self.world.services.named("gateway"):
            return False
        with suppress(aiohttp.ClientError, TimeoutError):
            async with asyncio.timeout(5):
                return await _post(self.world, f"/{operation}/{self.random.choice(jobs)}")
        return False

    # -- messages

    async def say_something_again(self) -> bool:
        """A fact of before, word for word."""
        heard = self.witness.heard.items()
        known = [(body, said) for body, said in heard if isinstance(said, REPEATED)]
        if known:
            body, said = self.random.choice(known)
            await self._said(EXCHANGE, type_of(said), body)
        return bool(known)

    async def plant_poison(self) -> bool:
        """What nobody can read, in the queue of anybody."""
        number = len(self.world.planted)
        body = self.random.choice([f"{{{number}", f'{{"type": "no.such", "job": "{number}"}}'])
        await self._said("", self.random.choice(QUEUES).name, body.encode())
        self.world.planted.append(body.encode())
        return True

    async def _said(self, exchange: str, key: str, body: bytes) -> None:
        """Until it is confirmed: only then do we know that it is there."""
        while True:
            with suppress(AMQPError, OSError, TimeoutError):
                return await _publish(self.witness.url, exchange, key, body)
            await asyncio.sleep(self.heartbeat)


FAULTS: dict[str, tuple[Callable[[Chaos], Awaitable[bool]], int]] = {
    "service killed (SIGKILL)": (Chaos.kill_a_service, 6),
    "service stopped (SIGTERM)": (Chaos.stop_a_service, 4),
    "service frozen for some beats": (Chaos.freeze_a_service, 4),
    "broker: all connections closed": (Chaos.close_connections, 2),
    "broker killed (SIGKILL)": (Chaos.kill_the_broker, 1),
    "broker hung for some beats": (Chaos.hang_the_broker, 2),
    "broker cut off, silent or slow": (Chaos.cut_the_broker_off, 4),
    "store cut off, silent or slow": (Chaos.disturb_the_store, 4),
    "user's bucket cut off, silent or slow": (Chaos.disturb_the_bucket, 4),
    "webhook refused or never answered": (Chaos.refuse_webhooks, 6),
    "job cancelled": (Chaos.cancel_a_job, 3),
    "storm of cancellations, and a service killed in it": (Chaos.storm_of_cancellations, 2),
    "job retried": (Chaos.retry_a_job, 12),
    "fact said again": (Chaos.say_something_again, 8),
    "poison in a queue": (Chaos.plant_poison, 4),
}
"""Each with how often it comes beside the others; it says whether it could be done."""


async def _publish(url: str, exchange: str, key: str, body: bytes) -> None:
    async with asyncio.timeout(10), await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        to = await channel.get_exchange(exchange, ensure=False) if exchange else None
        message = aio_pika.Message(body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        await (to or channel.default_exchange).publish(message, key)


async def _post(world: World, path: str) -> bool:
    """Whether a gateway did it."""
    client: Client = world.client
    headers = {"Authorization": f"Bearer {world.services.environment['EVERYDREAM_API_KEYS']}"}
    async with world.session.post(f"{client.endpoint}{path}", headers=headers) as response:
        return response.ok
