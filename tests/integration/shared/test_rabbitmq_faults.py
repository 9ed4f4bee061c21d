"""Faults of a real broker, and how the bus handles them."""

from __future__ import annotations

import asyncio
import logging
import struct
import time
from collections.abc import AsyncIterator, Callable, MutableMapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any

import aio_pika
import msgspec
import pika
import pika.data
import pytest
import structlog
from pamqp.common import FieldTable
from yarl import URL

from shared.adapters.rabbitmq import RabbitMQBus
from shared.errors import SettingsError, Unavailable, Unpublishable, Unroutable
from shared.messaging.envelope import Envelope, envelope_for
from shared.messaging.messages import (
    ClaimGranted,
    GatewayHeartbeat,
    JobCancelled,
    JobRequested,
    JobStarted,
    JobSubmitted,
    Message,
    StagingDue,
    WebhookDue,
    encode,
)
from shared.messaging.topology import (
    EXCHANGE,
    FETCHER,
    GATEWAY_INTAKE,
    NOTIFIER_WEBHOOKS,
    QUEUES,
    Quorum,
)
from shared.ports import Delivery, ReplyQueue
from shared.service_process import closing
from shared.telemetry import tracing
from tests.contract.bus_worlds import (
    DEADLINE,
    HEARTBEAT,
    RabbitMQWorld,
    plain_channel,
    until,
)
from tests.support.servers.process import HOST, free_port
from tests.support.servers.proxy import Proxy
from tests.support.servers.rabbitmq import RabbitMQ

GRANT = ClaimGranted(job="a", stage="training", claim="c", attempt=1)
CANCELLED = JobCancelled(job="a", run=1)
STARTED = JobStarted(job="a", run=1, gpu="card")
PATIENCE = 2.0  # seconds: the least that a publish waits for its confirm


def webhook(number: int) -> WebhookDue:
    return WebhookDue(job="a", run=1, attempt=number, url="http://x", webhook_id="w", body="")


@pytest.fixture
async def bus(amqp_url: str) -> AsyncIterator[RabbitMQBus]:
    bus = await open_bus(amqp_url)
    yield bus
    await bus.close()


async def open_bus(url: str, source: str = "tester/1") -> RabbitMQBus:
    async with asyncio.timeout(DEADLINE):
        return await RabbitMQBus.open(url, source=source, heartbeat=HEARTBEAT)


async def publish(bus: RabbitMQBus, *numbers: int) -> None:
    """Publish them until they are confirmed, as every service does."""
    for number in numbers:
        async with asyncio.timeout(DEADLINE):
            while not await confirmed(bus, number):
                pass


async def confirmed(bus: RabbitMQBus, number: int) -> bool:
    with suppress(Unavailable):
        await bus.publish(webhook(number))
        return True
    return False


async def taken(bus: RabbitMQBus) -> int:
    async with asyncio.timeout(DEADLINE):
        delivery = await bus.get(NOTIFIER_WEBHOOKS)
    await delivery.ack()
    assert isinstance(delivery.message, WebhookDue)
    return delivery.message.attempt


async def some_are_consumed(url: str, queue: str) -> None:
    """Wait until the queue has a consumer."""

    async def somebody_listens() -> bool:
        with suppress(aio_pika.exceptions.ChannelNotFoundEntity):
            async with plain_channel(url) as channel:
                declared = await channel.declare_queue(queue, passive=True)
                return bool(declared.declaration_result.consumer_count)
        return False

    await until(somebody_listens)


async def cut_all(node: RabbitMQ) -> None:
    await asyncio.to_thread(node.close_all_connections)


async def eventually(holds: Callable[[], bool]) -> None:
    async def it_holds() -> bool:
        return holds()

    await until(it_holds)


# --- The connections are cut


async def test_a_take_that_waits_goes_on_after_a_cut(
    rabbitmq: RabbitMQ, amqp_url: str, bus: RabbitMQBus
) -> None:
    taking = asyncio.create_task(taken(bus))
    await some_are_consumed(amqp_url, NOTIFIER_WEBHOOKS.name)

    await cut_all(rabbitmq)
    await publish(bus, 1)

    assert await taking == 1


async def test_a_taken_message_comes_again_after_a_cut_and_its_old_ack_means_nothing(
    rabbitmq: RabbitMQ, bus: RabbitMQBus
) -> None:
    await publish(bus, 1, 2)
    first = await bus.get(NOTIFIER_WEBHOOKS)

    await cut_all(rabbitmq)
    again = await bus.get(NOTIFIER_WEBHOOKS)
    await first.ack()
    await first.release()

    assert first.message == again.message == webhook(1)
    await again.ack()
    assert await taken(bus) == 2


async def test_what_a_consumer_had_in_hand_comes_again_in_order_after_a_cut(
    rabbitmq: RabbitMQ, bus: RabbitMQBus
) -> None:
    await publish(bus, *range(5))
    async with aclosing(bus.consume(NOTIFIER_WEBHOOKS)) as deliveries:
        await (await anext(deliveries)).ack()
        in_hand = [await anext(deliveries) for _ in range(2)]

        await cut_all(rabbitmq)
        for delivery in in_hand:
            await delivery.ack()

        # What had arrived with them may come first, until the cut is noticed here too.
        received: list[Delivery] = []
        async with asyncio.timeout(DEADLINE):
            while [each.message for each in received[-4:]] != [webhook(n) for n in range(1, 5)]:
                received.append(await anext(deliveries))


async def test_a_reply_queue_is_replaced_after_a_cut_and_still_receives(
    rabbitmq: RabbitMQ, bus: RabbitMQBus
) -> None:
    async with bus.reply_queue(["job.started"]) as reply_queue, reply_queue.ends_of("a"):
        messages = reply_queue.messages()
        old = reply_queue.address

        await cut_all(rabbitmq)
        await eventually(lambda: reply_queue.address != old)
        await says_until_confirmed(bus, reply_queue)

        async with asyncio.timeout(DEADLINE):
            heard = [await anext(messages) for _ in range(3)]
        assert heard == [GRANT, STARTED, CANCELLED]


async def says_until_confirmed(bus: RabbitMQBus, reply_queue: ReplyQueue) -> None:
    """What the job's end finds bound only a little later comes last."""
    async with asyncio.timeout(DEADLINE):
        await bus.send(reply_queue.address, GRANT, mandatory=True)
        await bus.publish(STARTED)
        while not await is_routed(bus, CANCELLED):
            await asyncio.sleep(0.05)


async def is_routed(bus: RabbitMQBus, message: Message) -> bool:
    try:
        await bus.publish(message)
    except Unroutable:
        return False
    return True


async def test_a_publish_outlives_a_cut(rabbitmq: RabbitMQ, bus: RabbitMQBus) -> None:
    cutting = asyncio.create_task(cut_all(rabbitmq))
    said = 0
    while not cutting.done():
        await bus.publish(webhook(said))
        said += 1
    await cutting
    await bus.publish(webhook(said))

    seen: set[int] = set()
    async with aclosing(bus.consume(NOTIFIER_WEBHOOKS)) as deliveries:
        async with asyncio.timeout(DEADLINE):
            while len(seen) <= said:
                delivery = await anext(deliveries)
                assert isinstance(delivery.message, WebhookDue)
                seen.add(delivery.message.attempt)
                await delivery.ack()
    assert seen == set(range(said + 1))


# --- The node dies


async def test_what_was_confirmed_survives_the_node_and_everybody_goes_on_by_himself(
    rabbitmq: RabbitMQ, amqp_url: str, bus: RabbitMQBus
) -> None:
    await publish(bus, 1, 2)
    held = await bus.get(NOTIFIER_WEBHOOKS)
    async with bus.reply_queue([]) as reply_queue:
        old = reply_queue.address

        await asyncio.to_thread(rabbitmq.settle)
        await asyncio.to_thread(rabbitmq.kill)
        await held.ack()
        begun = time.monotonic()
        with pytest.raises(Unavailable, match=r"webhook\.due"):
            await bus.publish(webhook(3))
        assert time.monotonic() - begun < PATIENCE + 1
        with pytest.raises(Unavailable):
            await bus.depth(NOTIFIER_WEBHOOKS)

        taking = asyncio.create_task(bus.get(NOTIFIER_WEBHOOKS))
        opening = asyncio.create_task(
            RabbitMQBus.open(amqp_url, source="tester/2", heartbeat=HEARTBEAT)
        )
        await asyncio.to_thread(rabbitmq.start)

        async with asyncio.timeout(DEADLINE):  # from here: a node may start for as long as it needs
            first, later = await taking, await opening
        assert isinstance(first.message, WebhookDue)
        await first.ack()
        # A new consumer may be served before the queue takes back what the dead one held.
        assert sorted([first.message.attempt, await taken(bus)]) == [1, 2]
        await publish(bus, 4)
        assert await taken(bus) == 4
        await eventually(lambda: reply_queue.address != old)
        await later.close()


async def test_a_bus_that_waits_for_its_broker_can_be_given_up() -> None:
    before = asyncio.all_tasks()
    url = f"amqp://{HOST}:{free_port()}"

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await RabbitMQBus.open(url, source="tester/1", heartbeat=HEARTBEAT)

    assert asyncio.all_tasks() == before


async def test_a_hung_node_fails_a_publish_in_time_and_holds_up_no_farewell(
    rabbitmq: RabbitMQ, bus: RabbitMQBus
) -> None:
    async with hung(rabbitmq):
        begun = time.monotonic()
        with pytest.raises(Unavailable):
            await bus.publish(webhook(1))
        assert time.monotonic() - begun < PATIENCE + 1

        begun = time.monotonic()
        await bus.close()
        assert time.monotonic() - begun < 10


async def test_a_bus_goes_on_when_a_hung_node_wakes(rabbitmq: RabbitMQ, bus: RabbitMQBus) -> None:
    taking = asyncio.create_task(taken(bus))
    async with hung(rabbitmq):
        with pytest.raises(Unavailable):
            await bus.publish(webhook(1))

    await publish(bus, 2)

    assert await taking in (1, 2)  # the first one had arrived nevertheless


@asynccontextmanager
async def hung(node: RabbitMQ) -> AsyncIterator[None]:
    node.pause()
    try:
        yield
    finally:
        node.resume()


# --- The node is short of memory or disk


async def test_a_node_short_of_disk_takes_nothing_but_still_delivers(
    rabbitmq: RabbitMQ, bus: RabbitMQBus
) -> None:
    await publish(bus, 1)
    async with short_of_disk(rabbitmq):

        async def it_refuses() -> bool:
            return not await confirmed(bus, 2)

        await until(it_refuses)
        while await taken(bus) != 1:
            pass

    await publish(bus, 3)
    while await taken(bus) != 3:
        pass


@asynccontextmanager
async def short_of_disk(node: RabbitMQ) -> AsyncIterator[None]:
    await asyncio.to_thread(node.want_disk, "900000GB")
    try:
        yield
    finally:
        await asyncio.to_thread(node.want_disk)


async def test_a_message_that_is_not_taken_holds_up_no_other(
    amqp_url: str, bus: RabbitMQBus
) -> None:
    async with plain_channel(amqp_url) as channel:
        full: FieldTable = {"x-max-length": 0, "x-overflow": "reject-publish"}
        await channel.declare_queue("full", durable=True, arguments=full)
        stuck = asyncio.create_task(bus.send("full", GRANT))

        said = 0
        while not stuck.done():
            await bus.publish(webhook(said), mandatory=True)
            said += 1

        with pytest.raises(Unavailable):
            await stuck
        assert said > 20


# --- The node refuses a message for good


@asynccontextmanager
async def taking_at_most(node: RabbitMQ, size: int) -> AsyncIterator[None]:
    await asyncio.to_thread(node.take_at_most, size)
    try:
        yield
    finally:
        await asyncio.to_thread(node.take_at_most)


async def test_a_message_that_closes_the_channel_is_refused_alone_and_all_others_arrive_soon(
    rabbitmq: RabbitMQ, amqp_url: str
) -> None:
    async with taking_at_most(rabbitmq, 500):
        bus = await open_bus(amqp_url)
        large = msgspec.structs.replace(webhook(0), body="x" * 1000)
        answers: list[object] = []
        begun = time.monotonic()
        for number in range(1, 6):
            answers += await asyncio.gather(
                bus.publish(large),
                *(bus.publish(webhook(number)) for _ in range(5)),
                return_exceptions=True,
            )
        took = time.monotonic() - begun

        assert [type(each) for each in answers] == [Unpublishable, *[type(None)] * 5] * 5
        assert "PRECONDITION_FAILED" in str(answers[0])
        assert took < 5 * PATIENCE / 2
        world = RabbitMQWorld(amqp_url)
        notes = await world.dead_letters()
        assert [(each.type, each.job, each.body) for each in notes] == [
            ("webhook.due", "a", b"")
        ] * 5
        await bus.close()


async def test_a_dead_letter_that_is_too_large_by_now_is_kept_without_its_body(
    rabbitmq: RabbitMQ, amqp_url: str, bus: RabbitMQBus
) -> None:
    await bus.publish(msgspec.structs.replace(webhook(1), body="x" * 1000))
    delivery = await bus.get(NOTIFIER_WEBHOOKS)
    async with taking_at_most(rabbitmq, 500):
        await cut_all(rabbitmq)
        delivery = await bus.get(NOTIFIER_WEBHOOKS)
        await delivery.dead_letter("not like this")

    (kept,) = await RabbitMQWorld(amqp_url).dead_letters()
    assert (kept.reason, kept.body) == ("not like this", b"")
    assert kept.length == len(encode(delivery.message))
    await publish(bus, 2)
    assert await taken(bus) == 2


# --- The topology is deleted


async def test_the_topology_is_there_again_after_the_next_word(
    rabbitmq: RabbitMQ, amqp_url: str, bus: RabbitMQBus
) -> None:
    await demolish(amqp_url)
    await cut_all(rabbitmq)

    await publish(bus, 1)

    async with plain_channel(amqp_url) as channel:
        for queue in QUEUES:
            await channel.declare_queue(queue.name, passive=True)
    assert await taken(bus) == 1


async def test_a_binding_of_an_earlier_version_is_removed_at_start(
    amqp_url: str, bus: RabbitMQBus
) -> None:
    async with plain_channel(amqp_url) as channel:
        fetcher = await channel.get_queue(FETCHER.name)
        await fetcher.bind(EXCHANGE, "job.submitted")

    async with closing(await open_bus(amqp_url)) as later:
        await later.publish(JobSubmitted(job="1", run=1), mandatory=False)
        await later.publish(StagingDue(job="2", run=1))
        assert (await bus.get(FETCHER)).message == StagingDue(job="2", run=1)


async def test_a_publish_mends_a_lost_queue(amqp_url: str, bus: RabbitMQBus) -> None:
    await publish(bus, 1)
    async with plain_channel(amqp_url) as channel:
        await channel.queue_delete(NOTIFIER_WEBHOOKS.name)

    await publish(bus, 2)

    assert await taken(bus) == 2


async def test_a_publish_mends_a_lost_exchange_without_a_lost_connection(
    amqp_url: str, bus: RabbitMQBus
) -> None:
    await publish(bus, 1)
    await demolish(amqp_url)

    await publish(bus, 2)

    assert await taken(bus) == 2


async def test_a_take_goes_on_when_its_queue_is_deleted(amqp_url: str, bus: RabbitMQBus) -> None:
    taking = asyncio.create_task(taken(bus))
    await some_are_consumed(amqp_url, NOTIFIER_WEBHOOKS.name)

    async with plain_channel(amqp_url) as channel:
        await channel.queue_delete(NOTIFIER_WEBHOOKS.name)
    await some_are_consumed(amqp_url, NOTIFIER_WEBHOOKS.name)
    await publish(bus, 1)

    assert await taking == 1


async def demolish(url: str) -> None:
    async with plain_channel(url) as channel:
        await channel.exchange_delete(EXCHANGE)
        for queue in QUEUES:
            await channel.queue_delete(queue.name)


# --- On the wire


async def test_a_message_on_the_wire_is_a_persistent_cloud_event(
    amqp_url: str, bus: RabbitMQBus
) -> None:
    said = envelope_for(webhook(1), source="tester/1")

    await bus.publish(webhook(1), reply_to="control.here")

    async with plain_channel(amqp_url) as channel:
        queue = await channel.get_queue(NOTIFIER_WEBHOOKS.name)
        heard = await queue.get()
        assert heard.body == encode(webhook(1))
        time_said = heard.headers.pop("cloudEvents_time")
        heard.headers.pop("x-delivery-count")
        assert heard.headers == {
            "cloudEvents_specversion": "1.0",
            "cloudEvents_id": said.id,
            "cloudEvents_source": "tester/1",
            "cloudEvents_type": "webhook.due",
            "cloudEvents_subject": "a",
        }
        assert str(time_said)[:10] == said.time[:10]
        assert heard.content_type == "application/json"
        assert heard.delivery_mode == aio_pika.DeliveryMode.PERSISTENT
        assert (heard.message_id, heard.reply_to) == (said.id, "control.here")
        assert heard.user_id == "guest"


REQUEST = JobRequested(request={"input": {}})


async def requested(url: str, bus: RabbitMQBus, message: aio_pika.Message) -> Envelope:
    async with plain_channel(url) as channel:
        exchange = await channel.get_exchange(EXCHANGE)
        await exchange.publish(message, "job.requested")
    delivery = await bus.get(GATEWAY_INTAKE)
    await delivery.ack()
    assert delivery.message == REQUEST
    return delivery.envelope


async def test_a_producer_of_another_kind_is_understood(amqp_url: str, bus: RabbitMQBus) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    headers = {
        "cloudEvents:id": "42",
        "cloudEvents:source": "shop",
        "cloudEvents:subject": "s",
        "traceparent": trace,
        "tracestate": "vendor=1",
    }
    message = aio_pika.Message(encode(REQUEST), headers={**headers}, user_id="guest")

    envelope = await requested(amqp_url, bus, message)

    assert (envelope.id, envelope.source, envelope.subject) == ("42", "shop", "s")
    assert (envelope.type, envelope.user_id) == ("job.requested", "guest")
    assert tracing.context_of(envelope) == (trace, "vendor=1")


async def test_a_producer_that_sends_no_cloud_event_is_known_by_its_properties(
    amqp_url: str, bus: RabbitMQBus
) -> None:
    message = aio_pika.Message(encode(REQUEST), app_id="shop", message_id="42")

    envelope = await requested(amqp_url, bus, message)

    assert (envelope.source, envelope.id) == ("shop", "42")
    assert envelope.user_id is None


async def test_a_url_that_leads_nowhere_is_refused_without_showing_it() -> None:
    for url in ("http://guest:hush@host/", "amqp://", "amqp://guest:hush@host:port/"):
        with pytest.raises(SettingsError) as refused:
            await RabbitMQBus.open(url, source="tester/1", heartbeat=HEARTBEAT)
        assert "hush" not in str(refused.value)


async def test_a_take_touches_nothing_but_what_it_takes(amqp_url: str, bus: RabbitMQBus) -> None:
    await publish(bus, 1, 2)

    await (await bus.get(NOTIFIER_WEBHOOKS)).ack()

    async with plain_channel(amqp_url) as channel:
        queue = await channel.get_queue(NOTIFIER_WEBHOOKS.name)
        untouched = await queue.get()
        assert (untouched.body, untouched.redelivered) == (encode(webhook(2)), False)


async def test_a_request_that_the_broker_drops_leaves_no_word_of_what_was_asked(
    amqp_url: str, bus: RabbitMQBus
) -> None:
    await bus.publish(REQUEST)
    await publish(bus, 1)
    async with plain_channel(amqp_url) as channel:
        for queue in (GATEWAY_INTAKE, NOTIFIER_WEBHOOKS):
            dropped = await (await channel.get_queue(queue.name)).get()
            await dropped.reject(requeue=False)

    async def something_is_there() -> bool:
        return bool(await world.dead_letters())

    world = RabbitMQWorld(amqp_url)
    await until(something_is_there)
    assert [message.queue for message in await world.dead_letters()] == [NOTIFIER_WEBHOOKS.name]


DEEP: dict[Any, Any] = {"deep": {}}


def encode_table(pieces: list[bytes], table: dict[Any, Any]) -> int:
    """As pika does it, but the deep table, which its own recursion does not allow."""
    if table is not DEEP:
        return int(pika_encode_table(pieces, table))
    encoded = bytes(4)
    for _ in range(2000):
        encoded = struct.pack(">I", len(encoded) + 3) + b"\x01aF" + encoded
    pieces.append(encoded)
    return len(encoded)


pika_encode_table = pika.data.encode_table


@pytest.mark.parametrize(
    "properties",
    [
        {"reply_to": b"\xff"},
        {"message_id": b"\xff"},
        {"headers": {b"\xff": "x"}},
        {"timestamp": 2**63},
        {"headers": DEEP},
    ],
    ids=["reply_to", "message_id", "name of a header", "timestamp", "deep headers"],
)
async def test_properties_that_cannot_be_read_are_dead_lettered_and_cost_no_connection(
    amqp_url: str, bus: RabbitMQBus, monkeypatch: pytest.MonkeyPatch, properties: dict[str, Any]
) -> None:
    monkeypatch.setattr(pika.data, "encode_table", encode_table)
    await asyncio.to_thread(put_on_intake, amqp_url, pika.BasicProperties(**properties))
    await bus.publish(REQUEST)

    with structlog.testing.capture_logs() as told:
        async with asyncio.timeout(DEADLINE):
            assert (await bus.get(GATEWAY_INTAKE)).message == REQUEST

    assert told_of(told, "broker_lost") == 0
    (letter,) = await RabbitMQWorld(amqp_url).dead_letters()
    assert letter.reason.startswith("the properties: ")
    assert letter.length == len(encode(REQUEST))


def put_on_intake(url: str, properties: pika.BasicProperties) -> None:
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.basic_publish(EXCHANGE, "job.requested", encode(REQUEST), properties)


# --- In the log


async def test_losses_are_logged_in_a_line_each_without_traceback_or_password(
    rabbitmq: RabbitMQ, amqp_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    url = URL(await with_password(rabbitmq, amqp_url, "hush-hush"))
    with structlog.testing.capture_logs() as told:
        async with Proxy(HOST, rabbitmq.port) as line:
            bus = await open_bus(str(url.with_port(line.port)))
            taking = asyncio.create_task(bus.get(NOTIFIER_WEBHOOKS))
            async with bus.reply_queue([]):
                line.cut()
                with pytest.raises(Unavailable):
                    await bus.publish(GatewayHeartbeat(gateway="g", number=1))
                await eventually(lambda: told_of(told, "broker_unreachable") >= 2)
                line.open()
                await eventually(lambda: told_of(told, "broker_lost") >= 2 and both_are_up(told))
            taking.cancel()
            await asyncio.wait([taking])
            await bus.close()

    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    for secret in ("hush-hush", "Traceback"):
        assert secret not in str(told)
        assert secret not in caplog.text


async def with_password(node: RabbitMQ, url: str, password: str) -> str:
    """Create a user with a password; returns the URL with both."""
    user = "somebody"
    await asyncio.to_thread(node.make_user, user, password, URL(url).path[1:])
    return str(URL(url).with_user(user).with_password(password))


def both_are_up(told: Sequence[object]) -> bool:
    """Whether every lost connection was reopened, besides the first two."""
    return told_of(told, "broker_connected") == 2 + told_of(told, "broker_lost")


def told_of(told: Sequence[object], event: str) -> int:
    return sum(event in str(line) for line in told)


# --- The topology was declared differently


async def test_a_queue_with_other_arguments_is_reported_and_once_it_is_gone_all_goes_on(
    amqp_url: str,
) -> None:
    async with plain_channel(amqp_url) as channel:
        await channel.declare_queue(NOTIFIER_WEBHOOKS.name, durable=True)
        with structlog.testing.capture_logs() as told:
            opening = asyncio.create_task(open_bus(amqp_url))
            await eventually(lambda: bool(complaints(told)))
            await channel.queue_delete(NOTIFIER_WEBHOOKS.name)
            bus = await opening

    (why,) = complaints(told)
    assert "PRECONDITION_FAILED - inequivalent arg" in why
    assert NOTIFIER_WEBHOOKS.name in why
    await publish(bus, 1)
    assert await taken(bus) == 1
    await bus.close()


def complaints(told: Sequence[MutableMapping[str, Any]]) -> list[str]:
    return [str(line["reason"]) for line in told if line["event"] == "topology_differs"]


# --- A broker of several nodes


async def test_when_its_host_is_lost_a_bus_goes_on_at_the_next_one(
    rabbitmq: RabbitMQ, amqp_url: str
) -> None:
    login, vhost = URL(amqp_url).raw_authority.rpartition("@")[0], URL(amqp_url).raw_path
    async with Proxy(HOST, rabbitmq.port) as first, Proxy(HOST, rabbitmq.port) as second:
        hosts = f"{HOST}:{free_port()},{HOST}:{first.port},{HOST}:{second.port}"
        bus = await open_bus(f"amqp://{login}@{hosts}{vhost}")
        await publish(bus, 1)
        assert (first.connections, second.connections) == (2, 0), "the first that answers"

        first.cut()

        assert await taken(bus) == 1
        await publish(bus, 2)
        assert (first.connections, second.connections) == (0, 2)
        await bus.close()


async def test_the_queues_are_made_as_the_settings_say(rabbitmq: RabbitMQ, amqp_url: str) -> None:
    quorum = Quorum(delivery_limit=1, group_size=1)
    async with asyncio.timeout(DEADLINE):
        bus = await RabbitMQBus.open(
            amqp_url, source="tester/1", heartbeat=HEARTBEAT, quorum=quorum
        )
    await publish(bus, 1)
    for _ in range(2):
        delivery = await bus.get(NOTIFIER_WEBHOOKS)
        await delivery.release()

    async with asyncio.timeout(DEADLINE):
        dead = await anext(bus.dead_letters())
    assert dead.letter.queue == NOTIFIER_WEBHOOKS.name, "after two deliveries, not twenty"
    vhost = URL(amqp_url).path[1:]
    told = await asyncio.to_thread(rabbitmq.ctl, "list_queues", "-p", vhost, "name", "arguments")
    sizes = [line for line in told.splitlines() if "x-quorum-initial-group-size" in line]
    assert len(sizes) == len(QUEUES) + 1
    await bus.close()
