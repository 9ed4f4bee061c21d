"""What every bus promises, over RabbitMQ and in memory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from functools import partial
from hashlib import sha256

import pytest

from shared.adapters.dead_letters import LIMIT_REASON
from shared.errors import Unavailable, Unpublishable, Unroutable
from shared.messaging.envelope import envelope_for
from shared.messaging.messages import (
    AnyMessage,
    ClaimGranted,
    GatewayHeartbeat,
    ImagesGenerated,
    JobCancelled,
    JobCompleted,
    JobFailed,
    JobRequested,
    JobTimedOut,
    StagingStarted,
    TrainingProgressed,
    WebhookDue,
    encode,
    type_of,
)
from shared.messaging.topology import (
    DELIVERY_LIMIT,
    FETCHER,
    GATEWAY_INTAKE,
    GATEWAY_RECORDER,
    JOB_ENDS,
    MAX_MESSAGE_BYTES,
    NOTIFIER_PUBLISH,
    NOTIFIER_WEBHOOKS,
    TRAINER,
)
from shared.ports import Bus, DeadLetter, Delivery, ReplyQueue
from shared.telemetry import tracing
from tests.contract.bus_worlds import DEADLINE, World, until

GRANT = ClaimGranted(job="a", stage="training", claim="c", attempt=1)
IMAGES = ImagesGenerated(job="a", stage="generation", claim="c", images=())
CONTEXT = tracing.Context("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "a=1,b=2")
CANCELLED = JobCancelled(job="a", run=1)


def webhook(number: int) -> WebhookDue:
    return WebhookDue(
        job="a", run=1, attempt=number, url="http://x", webhook_id="w", body=f"body {number}"
    )


async def publish_webhooks(bus: Bus, *numbers: int) -> None:
    for number in numbers:
        await bus.publish(webhook(number))


async def next_of(deliveries: AsyncIterator[Delivery]) -> Delivery:
    async with asyncio.timeout(DEADLINE):
        return await anext(deliveries)


async def take(bus: Bus) -> Delivery:
    async with asyncio.timeout(DEADLINE):
        return await bus.get(NOTIFIER_WEBHOOKS)


def consuming(bus: Bus, prefetch: int = 16) -> aclosing[AsyncGenerator[Delivery, None]]:
    return aclosing(bus.consume(NOTIFIER_WEBHOOKS, prefetch=prefetch))


def recording(bus: Bus) -> aclosing[AsyncGenerator[Delivery, None]]:
    return aclosing(bus.consume(GATEWAY_RECORDER))


async def the_only_dead_letter(world: World) -> DeadLetter:
    async def it_is_there() -> bool:
        return bool(await world.dead_letters())

    await until(it_is_there)
    (letter,) = await world.dead_letters()
    return letter


async def depth_becomes(bus: Bus, depth: int) -> None:
    async def it_is() -> bool:
        return await bus.depth(NOTIFIER_WEBHOOKS) == depth

    await until(it_is)


# --- Publishing


async def test_a_fact_reaches_every_queue_that_is_bound_to_its_type_and_no_other(
    world: World,
) -> None:
    bus = await world.bus()

    await bus.publish(IMAGES)

    for queue in (NOTIFIER_PUBLISH, GATEWAY_RECORDER):
        delivery = await bus.get(queue)
        assert delivery.message == IMAGES
        await delivery.ack()
    assert await bus.depth(FETCHER) == 0
    assert await bus.depth(TRAINER) == 0


async def test_a_message_arrives_as_it_was_said_with_its_envelope(world: World) -> None:
    bus = await world.bus("trainer/host-1")
    fact = TrainingProgressed(
        job="a", stage="training", claim="c", progress={"step": 1, "loss": 0.5, "who": "Zoë"}
    )

    with tracing.within(CONTEXT):
        await bus.publish(fact, reply_to="control.here")

    delivery = await bus.get(GATEWAY_RECORDER)
    said = envelope_for(fact, source="trainer/host-1")
    heard = delivery.envelope
    assert delivery.message == fact
    assert (heard.id, heard.source) == (said.id, "trainer/host-1")
    assert (heard.type, heard.subject) == ("training.progressed", "a")
    assert heard.reply_to == "control.here"
    assert heard.time[:10] == said.time[:10]
    assert tracing.context_of(heard) == CONTEXT


async def test_a_fact_that_nobody_hears_is_an_error_only_when_it_needs_a_listener(
    world: World,
) -> None:
    bus = await world.bus()

    await bus.publish(CANCELLED, mandatory=False)
    with pytest.raises(Unroutable, match=r"job\.cancelled"):
        await bus.publish(CANCELLED)


async def test_a_message_can_be_put_on_one_queue_past_the_exchange(world: World) -> None:
    bus = await world.bus()

    await bus.send(NOTIFIER_PUBLISH.name, IMAGES, mandatory=True)

    assert (await bus.get(NOTIFIER_PUBLISH)).message == IMAGES
    assert await bus.depth(GATEWAY_RECORDER) == 0


async def test_a_queue_that_is_gone_is_an_error_only_when_it_is_needed(world: World) -> None:
    bus = await world.bus()

    await bus.send("control.gone", GRANT)
    with pytest.raises(Unroutable, match=r"control\.gone"):
        await bus.send("control.gone", GRANT, mandatory=True)


async def test_messages_in_flight_together_each_get_their_own_answer(world: World) -> None:
    bus = await world.bus()
    said = [CANCELLED, webhook(1), CANCELLED, webhook(2), CANCELLED]

    answers = await asyncio.gather(*map(bus.publish, said), return_exceptions=True)

    assert [type(answer) for answer in answers] == [
        Unroutable,
        type(None),
        Unroutable,
        type(None),
        Unroutable,
    ]
    await depth_becomes(bus, 2)


async def test_what_cannot_be_encoded_is_not_said(world: World) -> None:
    bus = await world.bus()

    with pytest.raises(TypeError):
        await bus.publish(JobRequested(request={"train": object()}))

    assert await bus.depth(GATEWAY_INTAKE) == 0


async def test_what_is_too_large_for_the_broker_is_refused_for_good_and_leaves_a_note(
    world: World,
) -> None:
    bus = await world.bus()
    large = WebhookDue(
        job="a", run=1, attempt=1, url="", webhook_id="", body="x" * MAX_MESSAGE_BYTES
    )

    with pytest.raises(Unpublishable, match=f"webhook.due of {len(encode(large))} bytes") as error:
        await bus.publish(large)

    assert await the_only_dead_letter(world) == DeadLetter(
        queue="webhook.due",
        reason=str(error.value),
        length=len(encode(large)),
        sha256=sha256(encode(large)).hexdigest(),
        body=b"",
        type="webhook.due",
        job="a",
    )
    assert await bus.depth(NOTIFIER_WEBHOOKS) == 0


async def test_what_is_too_large_for_the_broker_holds_up_nobody(world: World) -> None:
    bus = await world.bus()
    large = JobCancelled(job="x" * MAX_MESSAGE_BYTES, run=1)

    answers = await asyncio.gather(
        bus.send(NOTIFIER_WEBHOOKS.name, large),
        *(bus.publish(webhook(number)) for number in range(5)),
        return_exceptions=True,
    )

    assert [type(answer) for answer in answers] == [Unpublishable, *[type(None)] * 5]
    await depth_becomes(bus, 5)


# --- Getting one


async def test_a_take_waits_for_a_message(world: World) -> None:
    bus = await world.bus()
    taking = asyncio.create_task(take(bus))

    await bus.publish(webhook(1))

    assert (await taking).message == webhook(1)


async def test_a_take_takes_one_and_leaves_the_rest_to_others(world: World) -> None:
    ours, theirs = await world.bus("tester/1"), await world.bus("tester/2")
    await publish_webhooks(ours, 1, 2, 3)

    first = await take(ours)
    second = await take(theirs)
    await first.ack()

    assert (first.message, second.message) == (webhook(1), webhook(2))
    assert (await take(theirs)).message == webhook(3)


async def test_what_is_acked_is_gone_for_good(world: World) -> None:
    ours, theirs = await world.bus("tester/1"), await world.bus("tester/2")
    await publish_webhooks(ours, 1, 2)

    await (await take(ours)).ack()
    await ours.close()

    assert (await take(theirs)).message == webhook(2)
    assert await theirs.depth(NOTIFIER_WEBHOOKS) == 0


async def test_what_is_released_comes_again_before_what_came_later(world: World) -> None:
    bus = await world.bus()
    await publish_webhooks(bus, 1, 2)

    first = await take(bus)
    await first.release()

    assert (await take(bus)).message == webhook(1)


async def test_a_delivery_is_settled_once(world: World) -> None:
    bus = await world.bus()
    await bus.publish(webhook(1))

    delivery = await take(bus)
    await delivery.ack()
    await delivery.ack()
    await delivery.release()

    await depth_becomes(bus, 0)


async def test_a_closed_bus_gives_back_what_was_in_hand_and_its_ack_comes_too_late(
    world: World,
) -> None:
    ours, theirs = await world.bus("tester/1"), await world.bus("tester/2")
    await ours.publish(webhook(1))

    delivery = await take(ours)
    await ours.close()
    await delivery.ack()

    assert (await take(theirs)).message == webhook(1)


async def test_a_take_that_is_cancelled_at_any_moment_loses_nothing(world: World) -> None:
    bus = await world.bus()
    await bus.publish(webhook(1))

    for moment in range(DELIVERY_LIMIT - 2):
        taking = asyncio.create_task(bus.get(NOTIFIER_WEBHOOKS))
        await asyncio.wait([taking], timeout=moment * 0.003)
        taking.cancel()
        for delivery in await asyncio.gather(taking, return_exceptions=True):
            if not isinstance(delivery, BaseException):
                await delivery.release()

    assert (await take(bus)).message == webhook(1)


async def test_a_cancelled_take_takes_nothing_later(world: World) -> None:
    bus = await world.bus()
    taking = asyncio.create_task(bus.get(NOTIFIER_WEBHOOKS))
    await asyncio.wait([taking], timeout=0.1)
    taking.cancel()
    await asyncio.wait([taking])

    await bus.publish(webhook(1))

    assert taking.cancelled()
    await depth_becomes(bus, 1)


async def test_the_depth_counts_what_waits_and_not_what_is_in_hand(world: World) -> None:
    bus = await world.bus()
    await publish_webhooks(bus, 1, 2, 3)
    await depth_becomes(bus, 3)

    await take(bus)

    await depth_becomes(bus, 2)


async def test_those_who_wait_for_a_message_are_counted(world: World) -> None:
    bus, theirs = await world.bus(), await world.bus()

    async def waiting(number: int) -> bool:
        return await theirs.consumers(NOTIFIER_WEBHOOKS) == number

    assert await waiting(0)
    taking = asyncio.create_task(bus.get(NOTIFIER_WEBHOOKS))
    await until(partial(waiting, 1))

    taking.cancel()
    await asyncio.wait([taking])

    await until(partial(waiting, 0))


# --- Consuming


async def test_a_consumer_hears_everything_in_order(world: World) -> None:
    bus = await world.bus()
    await publish_webhooks(bus, *range(10))

    async with consuming(bus) as deliveries:
        for number in range(10):
            delivery = await next_of(deliveries)
            assert delivery.message == webhook(number)
            await delivery.ack()

    assert await bus.depth(NOTIFIER_WEBHOOKS) == 0


async def test_a_consumer_has_at_most_its_prefetch_in_hand(world: World) -> None:
    bus = await world.bus()
    await publish_webhooks(bus, 1, 2, 3, 4)

    async with consuming(bus, prefetch=2) as deliveries:
        first, _ = await next_of(deliveries), await next_of(deliveries)
        third = asyncio.create_task(next_of(deliveries))
        await asyncio.wait([third], timeout=0.3)  # long enough to get what it must not get
        assert not third.done()
        assert await bus.depth(NOTIFIER_WEBHOOKS) == 2

        await first.ack()

        assert (await third).message == webhook(3)
        await depth_becomes(bus, 1)


async def test_a_consumer_of_batches_gets_what_is_there_in_order_and_no_more_than_it_asks_for(
    world: World,
) -> None:
    bus = await world.bus()
    sizes: list[int] = []

    async with (
        aclosing(bus.consume_batches(NOTIFIER_WEBHOOKS, most=4)) as batches,
        asyncio.timeout(DEADLINE),
    ):
        while 4 not in sizes:  # how many have arrived together depends on the network as well
            await publish_webhooks(bus, *range(10))
            seen: list[AnyMessage] = []
            while len(seen) < 10:
                batch = await anext(batches)
                sizes.append(len(batch))
                seen += [delivery.message for delivery in batch]
                for delivery in batch:
                    assert delivery.is_ours
                    await delivery.ack()
                    assert not delivery.is_ours
            assert seen == [webhook(number) for number in range(10)]

    assert max(sizes) == 4


async def test_what_is_in_hand_is_not_ours_once_the_bus_is_closed(world: World) -> None:
    bus = await world.bus()
    await publish_webhooks(bus, 1)
    delivery = await take(bus)
    assert delivery.is_ours

    await bus.close()

    assert not delivery.is_ours


async def test_a_consumer_that_is_closed_gives_back_what_it_had_in_hand(world: World) -> None:
    bus = await world.bus()
    await publish_webhooks(bus, 1, 2, 3)

    async with consuming(bus) as deliveries:
        await (await next_of(deliveries)).ack()
        await next_of(deliveries)

    async with consuming(bus) as deliveries:
        assert (await next_of(deliveries)).message == webhook(2)
        assert (await next_of(deliveries)).message == webhook(3)


async def test_of_several_recorders_one_hears_and_the_next_goes_on_where_it_stopped(
    world: World,
) -> None:
    first, second = await world.bus("gateway/1"), await world.bus("gateway/2")
    heartbeats = [GatewayHeartbeat(gateway="g", number=number) for number in range(4)]
    async with recording(first) as active, recording(second) as standby:
        await first.publish(heartbeats[0])
        await (await next_of(active)).ack()
        waiting = asyncio.create_task(next_of(standby))
        await asyncio.wait([waiting], timeout=1)  # long enough to be waiting

        for heartbeat in heartbeats[1:]:
            await first.publish(heartbeat)
        assert [(await next_of(active)).message for _ in range(3)] == heartbeats[1:]
        assert not waiting.done()

        await first.close()
        heard = [(await waiting).message]
        heard += [(await next_of(standby)).message for _ in range(2)]
        assert heard == heartbeats[1:]


# --- Dead letters


async def test_a_buried_message_leaves_its_reason_length_and_digest(world: World) -> None:
    bus = await world.bus()
    await publish_webhooks(bus, 1, 2)

    await (await take(bus)).dead_letter("the sky is falling")

    body = encode(webhook(1))
    assert await the_only_dead_letter(world) == DeadLetter(
        queue=NOTIFIER_WEBHOOKS.name,
        reason="the sky is falling",
        length=len(body),
        sha256=sha256(body).hexdigest(),
        body=body,
    )
    assert (await take(bus)).message == webhook(2)


async def test_dead_letters_are_taken_once_they_are_acked_and_come_again_before(
    world: World,
) -> None:
    bus, gateway = await world.bus(), await world.bus("gateway/1")
    await publish_webhooks(bus, 1, 2)
    for reason in ("the sky", "the floor"):
        await (await take(bus)).dead_letter(reason)

    async with aclosing(gateway.dead_letters()) as letters:
        unacked = await anext(letters)
    async with aclosing(gateway.dead_letters()) as letters:
        first = await anext(letters)
        second = await anext(letters)  # does not wait until the first is acked
        assert first.is_ours
        for each in (second, first):
            await each.ack()
            assert not each.is_ours

    assert (first.id, first.at, first.letter) == (unacked.id, unacked.at, unacked.letter)
    assert abs(first.at - time.time()) < 600
    assert first.id != second.id
    assert [each.letter.reason for each in (first, second)] == ["the sky", "the floor"]
    assert first.letter == DeadLetter(
        queue=NOTIFIER_WEBHOOKS.name, reason="the sky", length=len(encode(webhook(1))),
        sha256=sha256(encode(webhook(1))).hexdigest(), body=encode(webhook(1)),
        type="webhook.due", job=webhook(1).job,
    )  # fmt: skip


async def test_a_buried_request_leaves_no_word_of_what_was_asked(world: World) -> None:
    bus = await world.bus()
    request = JobRequested(request={"s3Config": {"accessSecret": "hush"}})
    await bus.publish(request)

    await (await bus.get(GATEWAY_INTAKE)).dead_letter("not like this")

    letter = await the_only_dead_letter(world)
    assert letter.body == b""
    assert letter.sha256 == sha256(encode(request)).hexdigest()


@pytest.mark.parametrize(
    "noise",
    [
        b"",
        b"\xff\xfe",
        b"not json",
        b'{"type":"job.unheard_of","job":"a"}',
        b'{"type":"webhook.due","job":"a"}',
        b'{"type":"job.requested","request":' + b'{"a":' * 100_000,
    ],
    ids=["empty", "binary", "text", "unknown type", "field missing", "too deep"],
)
async def test_what_cannot_be_read_is_buried_and_the_queue_moves_on(
    world: World, noise: bytes
) -> None:
    bus = await world.bus()
    await world.put(NOTIFIER_WEBHOOKS.name, noise)
    await bus.publish(webhook(1))

    assert (await take(bus)).message == webhook(1)

    letter = await the_only_dead_letter(world)
    assert letter.queue == NOTIFIER_WEBHOOKS.name
    assert letter.reason
    assert (letter.body, letter.length) == (b"", len(noise))
    assert letter.sha256 == sha256(noise).hexdigest()


async def test_what_is_delivered_too_often_is_buried(world: World) -> None:
    bus = await world.bus()
    await publish_webhooks(bus, 1, 2)

    for _ in range(DELIVERY_LIMIT + 1):
        delivery = await take(bus)
        assert delivery.message == webhook(1)
        await delivery.release()

    assert (await take(bus)).message == webhook(2)
    letter = await the_only_dead_letter(world)
    assert (letter.reason, letter.body) == (LIMIT_REASON, encode(webhook(1)))


async def test_a_request_that_is_delivered_too_often_leaves_no_word_of_what_was_asked(
    world: World,
) -> None:
    bus = await world.bus()
    await bus.publish(JobRequested(request={"s3Config": {"accessSecret": "hush"}}))
    taking = asyncio.create_task(_release_for_ever(bus))

    letter = await the_only_dead_letter(world)

    assert (letter.reason, letter.body) == (LIMIT_REASON, b"")
    taking.cancel()
    await asyncio.wait([taking])


async def _release_for_ever(bus: Bus) -> None:
    while True:
        await (await bus.get(GATEWAY_INTAKE)).release()


# --- The reply queue


async def hears(reply_queue: ReplyQueue, count: int) -> list[AnyMessage]:
    heard: list[AnyMessage] = []
    async with asyncio.timeout(DEADLINE):
        async for message in reply_queue.messages():
            heard.append(message)
            if len(heard) == count:
                break
    return heard


async def test_a_control_queue_hears_answers_to_its_address_and_what_it_is_bound_to(
    world: World,
) -> None:
    worker, gateway = await world.bus("trainer/1"), await world.bus("gateway/1")
    async with worker.reply_queue(["job.cancelled"]) as reply_queue:
        await gateway.send(reply_queue.address, GRANT, mandatory=True)
        await gateway.publish(JobTimedOut(job="a", run=1, error="late"), mandatory=False)
        await gateway.publish(CANCELLED)

        assert await hears(reply_queue, 2) == [GRANT, CANCELLED]


async def test_a_control_queue_hears_how_the_jobs_end_that_it_follows_and_no_others(
    world: World,
) -> None:
    worker, gateway = await world.bus("inferencer/1"), await world.bus("gateway/1")
    failed = JobFailed(job="a", run=1, error="late")
    async with worker.reply_queue([]) as reply_queue, worker.reply_queue(JOB_ENDS) as former:
        async with reply_queue.ends_of("a"):
            async with reply_queue.ends_of("a"):
                await gateway.publish(JobTimedOut(job="b", run=1, error="late"))
                await gateway.publish(CANCELLED)
            await gateway.publish(failed)
            assert await hears(reply_queue, 2) == [CANCELLED, failed]
        await gateway.publish(CANCELLED)
        await gateway.send(reply_queue.address, GRANT)

        assert await hears(reply_queue, 1) == [GRANT]
        assert len(await hears(former, 4)) == 4, "one of an earlier version hears them all"
    with pytest.raises(Unroutable):
        await gateway.publish(CANCELLED)


async def test_every_control_queue_is_its_owners_alone(world: World) -> None:
    bus = await world.bus()
    async with bus.reply_queue([]) as first, bus.reply_queue([]) as second:
        assert first.address != second.address
        await bus.send(first.address, GRANT)
        await bus.send(second.address, CANCELLED)

        assert await hears(first, 1) == [GRANT]
        assert await hears(second, 1) == [CANCELLED]


async def test_a_control_queue_that_is_left_is_gone(world: World) -> None:
    bus = await world.bus()
    async with bus.reply_queue(["job.cancelled"]) as reply_queue:
        address = reply_queue.address

    with pytest.raises(Unroutable):
        await bus.send(address, GRANT, mandatory=True)
    with pytest.raises(Unroutable):
        await bus.publish(CANCELLED)


async def test_what_cannot_be_read_on_a_control_queue_is_buried(world: World) -> None:
    bus = await world.bus()
    async with bus.reply_queue([]) as reply_queue:
        await world.put(reply_queue.address, b"noise")
        await bus.send(reply_queue.address, GRANT)

        assert await hears(reply_queue, 1) == [GRANT]
        assert (await the_only_dead_letter(world)).queue == reply_queue.address


@pytest.mark.parametrize(
    ("binding", "heard"),
    [
        ("staging.started", ["staging.started"]),
        ("staging.*", ["staging.started"]),
        ("*.started", ["staging.started"]),
        ("*", []),
        ("*.*.*", []),
        ("job.#", ["job.cancelled"]),
        ("job.cancelled.#", ["job.cancelled"]),
        ("#.cancelled", ["job.cancelled"]),
        ("#", ["staging.started", "job.cancelled", "job.completed"]),
        ("stag*.started", []),
    ],
)
async def test_a_star_stands_for_one_word_and_a_hash_for_any_number(
    world: World, binding: str, heard: list[str]
) -> None:
    bus = await world.bus()
    end = JobCompleted(job="a", run=1, output={})
    async with bus.reply_queue([binding, "job.completed"]) as reply_queue:
        await bus.publish(StagingStarted(job="a", stage="staging", claim="c"))
        await bus.publish(CANCELLED, mandatory=False)
        await bus.publish(end)

        expected = list(dict.fromkeys([*heard, "job.completed"]))
        said = await hears(reply_queue, len(expected))
        assert [type_of(message) for message in said] == expected


# --- Closing


async def test_a_closed_bus_says_so(world: World) -> None:
    bus = await world.bus()
    await bus.close()
    await bus.close()

    with pytest.raises(Unavailable):
        await bus.publish(webhook(1))
    with pytest.raises(Unavailable):
        await bus.send(TRAINER.name, GRANT)
    with pytest.raises(Unavailable):
        await bus.get(TRAINER)
    with pytest.raises(Unavailable):
        await bus.depth(TRAINER)
    with pytest.raises(Unavailable):
        await anext(bus.consume(TRAINER))
    with pytest.raises(Unavailable):
        async with bus.reply_queue([]):
            pass


async def test_whoever_waits_when_the_bus_is_closed_is_told(world: World) -> None:
    bus = await world.bus()
    async with bus.reply_queue([]) as reply_queue:
        waiting = [
            asyncio.create_task(take(bus)),
            asyncio.create_task(next_of(bus.consume(TRAINER))),
            asyncio.create_task(hears(reply_queue, 1)),
        ]
        await asyncio.wait(waiting, timeout=0.1)

        await bus.close()

        answers = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(answer) for answer in answers] == [Unavailable] * 3


async def test_a_closed_bus_leaves_no_task_behind(world: World) -> None:
    before = asyncio.all_tasks()
    bus = await world.bus()
    await bus.publish(webhook(1))
    taking = asyncio.create_task(bus.get(TRAINER))
    delivery = await take(bus)
    async with bus.reply_queue([]):
        taking.cancel()
        await asyncio.wait([taking])
        await bus.close()
    await delivery.release()

    async def nothing_is_left() -> bool:
        return asyncio.all_tasks() <= before

    await until(nothing_is_left)
