"""Each service's login on the broker: good for its own work, and for nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, get_args

import pika
import pytest
import pytest_asyncio
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import ChannelClosedByBroker

from services.gateway.api_docs.asyncapi import PUBLISHES, bound_to
from shared.adapters.rabbitmq import RabbitMQBus
from shared.errors import Unavailable
from shared.messaging.messages import (
    AnyMessage,
    ClaimGranted,
    GatewayHeartbeat,
    JobCancelled,
    JobSubmitted,
    TrainingStarted,
    type_of,
)
from shared.messaging.topology import (
    DEAD_LETTERS,
    EXCHANGE,
    FETCHER,
    JOB_ENDS,
    QUEUES,
    TRAINER,
    Queue,
)
from shared.ports import Bus
from shared.service_process import closing
from tests.support.broker_logins import make_logins, make_user
from tests.support.compose import OURS
from tests.support.servers.rabbitmq import RabbitMQ

TYPES = sorted(type_of(kind) for kind in get_args(AnyMessage))
OWN = {
    "gateway": [queue.name for queue in QUEUES],
    **{name: [q.name for q in QUEUES if q.name.partition(".")[0] == name] for name in OURS[1:]},
}
"""The queues that a login may read; the gateway makes them all."""
WORKERS = OURS[1:]
SECONDS = 60.0
HEARTBEAT = GatewayHeartbeat(gateway="g", number=1)
"""Any message will do."""
GRANTED = ClaimGranted(job="1", stage="training", claim="c", attempt=1)


@pytest.fixture
def logins(rabbitmq: RabbitMQ) -> dict[str, str]:
    """By service the address that it uses, of a virtual host that nobody has used."""
    rabbitmq.start()
    return make_logins(rabbitmq, rabbitmq.fresh_vhost())


@asynccontextmanager
async def bus_of(logins: dict[str, str], name: str) -> AsyncIterator[Bus]:
    source = "gateway" if name == "gateway" else f"{name}/test"
    opening = RabbitMQBus.open(logins[name], source=source, heartbeat=2.0)
    async with asyncio.timeout(SECONDS):
        bus = await opening
    async with closing(bus):
        yield bus


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def made(rabbitmq: RabbitMQ) -> dict[str, str]:
    """Likewise, with the whole topology as the gateway has made it; for all that only try."""
    rabbitmq.start()
    logins = make_logins(rabbitmq, rabbitmq.fresh_vhost())
    async with bus_of(logins, "gateway"):
        return logins


Ask = Callable[[BlockingChannel], Any]


@contextmanager
def trying(url: str) -> Iterator[Callable[[Ask], bool]]:
    """What says whether the broker does what is asked of it."""
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:

        def is_let(ask: Ask) -> bool:
            channel = connection.channel()
            channel.confirm_delivery()
            try:
                ask(channel)
            except ChannelClosedByBroker as error:  # a refusal closes the channel
                if "ACCESS_REFUSED" not in error.reply_text:
                    raise
                return False
            channel.close()
            return True

        yield is_let


def saying(key: str, exchange: str = EXCHANGE) -> Ask:
    return lambda channel: channel.basic_publish(exchange, key, b"{}")


# --- What a login may say ---------------------------------------------------------------------


@pytest.mark.parametrize("name", OURS)
def test_a_service_says_its_own_facts_and_no_others(made: dict[str, str], name: str) -> None:
    with trying(made[name]) as is_let:
        said = {key for key in TYPES if is_let(saying(key))}
    assert said == {type_of(kind) for kind in PUBLISHES[name]}


def test_a_trainer_ends_no_job_and_a_producer_only_asks_for_one(
    made: dict[str, str], rabbitmq: RabbitMQ
) -> None:
    vhost = made["gateway"].rpartition("/")[2]
    shop = make_user(rabbitmq, "producer", f"shop-{vhost}", vhost)
    with trying(made["trainer"]) as is_let:
        assert not is_let(saying("job.completed"))
    with trying(shop) as is_let:
        assert {key for key in TYPES if is_let(saying(key))} == {"job.requested"}


@pytest.mark.parametrize("name", OURS)
def test_only_the_gateway_puts_anything_on_a_queue_itself(made: dict[str, str], name: str) -> None:
    with trying(made[name]) as is_let:
        for queue in [queue.name for queue in QUEUES]:
            assert is_let(saying(queue, exchange="")) is (name == "gateway")


# --- What a login may hear --------------------------------------------------------------------


@pytest.mark.parametrize("name", OURS)
def test_a_service_reads_its_own_queues_and_no_others(made: dict[str, str], name: str) -> None:
    def read(queue: str) -> Ask:
        return lambda channel: channel.basic_consume(queue, lambda *_: None)

    names = [*(queue.name for queue in QUEUES), DEAD_LETTERS]
    with trying(made[name]) as is_let:
        readable = {queue for queue in names if is_let(read(queue))}
    assert readable == {*OWN[name], *([DEAD_LETTERS] if name == "gateway" else ())}


@pytest.mark.parametrize("name", WORKERS)
def test_no_worker_listens_to_what_is_not_for_it(made: dict[str, str], name: str) -> None:
    """Not even by a queue that is its own; to remove a former binding takes the same right.

    Workers of earlier versions listen to how jobs end.
    """

    def bind(key: str) -> Ask:
        return lambda channel: channel.queue_bind(OWN[name][0], EXCHANGE, key)

    theirs = [queue for queue in QUEUES if queue.name in OWN[name]]
    keys = [key for queue in theirs for key in (*queue.bindings, *queue.former_bindings)]
    bindings = [*JOB_ENDS, *keys]
    its_own = {type_of(kind) for kind in bound_to(bindings, get_args(AnyMessage))}
    with trying(made[name]) as is_let:
        assert {key for key in TYPES if is_let(bind(key))} == its_own
        for wide in ("#", "*.*", "job.*", "webhook.#"):
            assert not is_let(bind(wide)), wide


# --- What a login may make and take away ------------------------------------------------------


@pytest.mark.parametrize("name", WORKERS)
def test_no_worker_takes_away_or_makes_what_is_not_its_own(made: dict[str, str], name: str) -> None:
    another = next(each for each in WORKERS if each != name)
    forbidden: list[Ask] = [
        lambda channel: channel.exchange_delete(EXCHANGE),
        lambda channel: channel.exchange_delete(DEAD_LETTERS),
        lambda channel: channel.queue_delete(DEAD_LETTERS),
        lambda channel: channel.queue_purge(OWN[another][0]),
        lambda channel: channel.queue_delete(OWN[another][0]),
        lambda channel: channel.queue_unbind(OWN[another][0], EXCHANGE, "job.submitted"),
        lambda channel: channel.queue_declare(f"control.{another}/somebody.1", exclusive=True),
        lambda channel: channel.queue_declare(f"control.{name}"),
        lambda channel: channel.queue_declare("a-queue-of-mine"),
        lambda channel: channel.exchange_declare("an-exchange-of-mine"),
    ]
    own = f"control.{name}/host-1.0123"
    with trying(made[name]) as is_let:
        for ask in forbidden:
            assert not is_let(ask)
        assert is_let(lambda channel: channel.queue_declare(own, exclusive=True))


# --- The work itself --------------------------------------------------------------------------


async def test_a_worker_that_comes_first_waits_until_the_gateway_has_made_everything(
    logins: dict[str, str],
) -> None:
    async def work() -> str:
        async with (
            bus_of(logins, "trainer") as bus,
            bus.reply_queue(()) as reply_queue,
        ):
            await bus.get(TRAINER)
            return reply_queue.address

    working = asyncio.create_task(work())
    _, waiting = await asyncio.wait([working], timeout=1.5)
    assert waiting
    async with bus_of(logins, "gateway") as gateway, asyncio.timeout(SECONDS):
        await gateway.send(TRAINER.name, HEARTBEAT)
        assert (await working).startswith("control.trainer/test.")


async def test_claim_and_answer_pass_between_a_worker_and_the_gateway(
    logins: dict[str, str],
) -> None:
    async with (
        asyncio.timeout(SECONDS),
        bus_of(logins, "gateway") as gateway,
        bus_of(logins, "trainer") as trainer,
        trainer.reply_queue(()) as reply_queue,
    ):
        said = TrainingStarted(job="1", stage="training", claim="c", worker="w")
        await trainer.publish(said, reply_to=reply_queue.address)
        recorder = next(queue for queue in QUEUES if queue.name == "gateway.recorder")
        delivery = await gateway.get(recorder)
        assert delivery.message == said
        assert delivery.envelope.user_id == "trainer"
        await delivery.ack()
        assert delivery.envelope.reply_to == reply_queue.address
        await gateway.send(reply_queue.address, GRANTED)
        assert await anext(aiter(reply_queue.messages())) == GRANTED


async def test_an_inferencer_hears_how_a_job_ends_whose_samples_it_draws(
    logins: dict[str, str],
) -> None:
    """Another worker would not, and goes on all the same."""
    end = JobCancelled(job="1", run=1)
    async with (
        asyncio.timeout(SECONDS),
        bus_of(logins, "gateway") as gateway,
        bus_of(logins, "inferencer") as inferencer,
        bus_of(logins, "trainer") as trainer,
        inferencer.reply_queue(()) as reply_queue,
        trainer.reply_queue(()) as another,
        reply_queue.ends_of("1"),
        another.ends_of("1"),
    ):
        await gateway.publish(JobCancelled(job="2", run=1), mandatory=False)
        await gateway.publish(end)
        assert await anext(aiter(reply_queue.messages())) == end
        await gateway.send(another.address, GRANTED)
        assert await anext(aiter(another.messages())) == GRANTED


async def test_a_fact_that_is_not_a_workers_own_is_not_said_and_does_not_hang_it(
    logins: dict[str, str],
) -> None:
    async with bus_of(logins, "gateway") as gateway, bus_of(logins, "trainer") as trainer:
        with pytest.raises(Unavailable, match=r"job\.submitted was not confirmed"):
            await trainer.publish(JobSubmitted(job="1", run=1))
        assert await gateway.depth(FETCHER) == 0
        said = TrainingStarted(job="1", stage="training", claim="c", worker="w")
        await trainer.publish(said)


async def test_what_a_worker_cannot_read_it_buries(logins: dict[str, str]) -> None:
    async with bus_of(logins, "gateway") as gateway, bus_of(logins, "trainer") as trainer:
        taking = asyncio.create_task(trainer.get(TRAINER))
        await asyncio.to_thread(send_garbage, logins["gateway"])
        async with asyncio.timeout(SECONDS):
            while not await dead_letters(gateway):
                await asyncio.sleep(0.05)
        taking.cancel()
        await asyncio.wait([taking])


def send_garbage(url: str) -> None:
    with trying(url) as is_let:
        assert is_let(saying(TRAINER.name, exchange=""))


async def dead_letters(bus: Bus) -> int:
    return await bus.depth(Queue(DEAD_LETTERS, ()))
