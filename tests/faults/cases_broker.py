"""Faults of the broker."""

from __future__ import annotations

import asyncio
import signal
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from hashlib import sha256
from time import monotonic

import aio_pika
import sqlalchemy as sa

from services.gateway.database import tables
from services.gateway.database.connection import Database
from shared.concurrency import cancelled
from shared.messaging.topology import EXCHANGE, QUEUES, TRAINER
from shared.service_process import closing
from shared.worker.runtime import FINAL_PUBLISH_HEARTBEATS, GRACE_HEARTBEATS
from tests.faults.amqp import Ears, copy_of, ears, outsider
from tests.faults.cases import Form, Outcome, again_and_again, case
from tests.faults.evidence import all_heard, witness_queue
from tests.faults.script import Script
from tests.faults.stand_ins import LEAST_HEARTBEAT, stand_in
from tests.faults.world import SERVICES, World
from tests.support.pace import slowness

ASKING = ("staging.due", "bucket.due", "dataset.staged", "checkpoint.final", "images.generated")
"""The facts that ask for work."""
STAGES = ("staging", "bucket_check", "training", "generation", "model_publication",
          "image_publication")  # fmt: skip
PROMPT_SECONDS = 3.0
"""In which ``/run`` answers, whatever the broker does: clients wait no longer."""
GRACE_SECONDS = 10.0 + LEAST_HEARTBEAT * (GRACE_HEARTBEATS + FINAL_PUBLISH_HEARTBEATS)
"""In which a trainer that cannot say anything must have ended."""
ACK_TIMED_OUT = "waiting for delivery acknowledgement"
HEARTBEAT_MISSED = "missed heartbeats from client"
"""In the broker's log, when it has given up somebody."""


@case("1", "the broker is killed and started again in the middle of a job")
async def broker_killed(world: World, form: Form) -> Outcome:
    async def once() -> list[str]:
        job = await training(world, steps=form.of(30, 200))
        await asyncio.to_thread(world.broker.settle)
        await asyncio.to_thread(world.broker.kill)
        await asyncio.to_thread(world.broker.start)
        return [job]

    outcome = await again_and_again(world, form.of(1, 5), once)
    assert all(done_once(world, job) for job in outcome.jobs)
    return outcome


@case(
    "2",
    "all connections are closed in the middle of a job",
    shown_by=(
        "tests/integration/shared/test_rabbitmq_faults.py::test_what_a_consumer_had_in_hand_comes_again_in_order_after_a_cut",
        "tests/integration/shared/test_rabbitmq_faults.py::test_a_publish_outlives_a_cut",
    ),
)
async def connections_closed(world: World, form: Form) -> Outcome:
    async def once() -> list[str]:
        job = await training(world, steps=form.of(30, 60))
        await asyncio.to_thread(world.broker.close_all_connections)
        return [job]

    outcome = await again_and_again(world, form.of(1, 10), once)
    assert all(done_once(world, job) for job in outcome.jobs)
    return outcome


@case("3", "the broker's ack timeout passes, over a claim that waits and a job that is longer")
async def ack_timeout(world: World, form: Form) -> Outcome:
    timeout, tick = form.of((1.0, 0.5), (10.0, 3.0))
    async with short_ack_timeout(world, timeout, tick), ears(world, ["staging.due"]) as heard:
        fetcher, gateway = world.services.first("fetcher"), world.services.first("gateway")
        fetcher.send(signal.SIGSTOP)
        job = await world.submit(Script(steps=round(4 * timeout / 0.05), step_seconds=0.05))
        await heard.hear(job, "staging.due")
        gateway.send(signal.SIGSTOP)
        timeouts = logged(world, ACK_TIMED_OUT)
        fetcher.send(signal.SIGCONT)
        await world.until(lambda: _more(timeouts, lambda: logged(world, ACK_TIMED_OUT)))
        gateway.send(signal.SIGCONT)
        seconds = await world.recovered([job], seconds=60 + 4 * timeout)
    assert done_once(world, job)
    return Outcome(1, (job,), seconds)


@case(
    "5",
    "a service stands still for longer than the broker's heartbeat",
    shown_by=(
        "tests/integration/shared/test_rabbitmq_faults.py::test_a_taken_message_comes_again_after_a_cut_and_its_old_ack_means_nothing",
    ),
)
async def stands_still(world: World, form: Form) -> Outcome:
    names = iter(form.of(("trainer",), SERVICES))

    async def once() -> list[str]:
        job = await world.submit(Script(steps=60, step_seconds=0.05, resume_every=5))
        await world.reaches(job, step=10)
        service = world.services.first(next(names))
        lost = service.text.count("broker_lost")
        given_up = logged(world, HEARTBEAT_MISSED)
        service.send(signal.SIGSTOP)
        await world.until(lambda: _more(given_up, lambda: logged(world, HEARTBEAT_MISSED)))
        service.send(signal.SIGCONT)
        await world.until(lambda: _more(lost, lambda: service.text.count("broker_lost")))
        return [job]

    return await again_and_again(world, form.of(1, len(SERVICES)), once)


@case("6", "every message that asks for work is delivered twice")
async def delivered_twice(world: World, form: Form) -> Outcome:
    async with ears(world, ASKING) as heard:
        doubling = asyncio.create_task(_double(heard))
        jobs = [await world.submit() for _ in range(form.of(2, 8))]
        seconds = await world.recovered(jobs)
        await cancelled(doubling)
    assert all(done_once(world, job, stage) for job in jobs for stage in STAGES)
    return Outcome(len(ASKING) * len(jobs), tuple(jobs), seconds)


@case(
    "7",
    "messages come that nobody can read",
    shown_by=(
        "tests/contract/test_bus.py::test_what_cannot_be_read_is_buried_and_the_queue_moves_on",
    ),
)
async def poison(world: World, form: Form) -> Outcome:
    times = form.of(1, 10)
    async with outsider(world) as channel:
        bodies = [body for _ in range(times) for queue in QUEUES for body in _poisons(queue.name)]
        for number, body in enumerate(bodies):
            queue = QUEUES[number // 2 % len(QUEUES)].name
            await channel.default_exchange.publish(aio_pika.Message(body), queue)
        world.planted += bodies
        job = await world.submit()
        seconds = await world.recovered([job])
        reasons = await world.until(lambda: _reasons(world, bodies))
    assert all("JSON" in reason or "no.such" in reason for reason in reasons), reasons
    return Outcome(len(bodies), (job,), seconds)


@case(
    "9",
    "the broker's disk runs full",
    shown_by=(
        "tests/integration/shared/test_rabbitmq_faults.py::test_a_node_short_of_disk_takes_nothing_but_still_delivers",
        "tests/integration/gateway/test_degradation.py::test_a_job_is_accepted_while_the_broker_is_away_and_asked_for_when_it_is_back",
    ),
)
async def disk_alarm(world: World, form: Form) -> Outcome:
    async def once() -> list[str]:
        running = await training(world, steps=40)
        async with full_disk(world):
            accepted = await promptly(world)
            await _gateway_is_not_heard(world)
        return [running, accepted]

    outcome = await again_and_again(world, form.of(1, 5), once)
    assert all(done_once(world, job) for job in outcome.jobs)
    return outcome


@case(
    "18",
    "the broker hangs, and goes on",
    shown_by=(
        "tests/integration/shared/test_rabbitmq_faults.py::test_a_bus_goes_on_when_a_hung_node_wakes",
        "tests/integration/gateway/test_degradation.py::test_a_job_is_accepted_while_the_broker_is_away_and_asked_for_when_it_is_back",
    ),
)
async def broker_hangs(world: World, form: Form) -> Outcome:
    async def once() -> list[str]:
        running = await training(world, steps=40)
        await asyncio.to_thread(world.broker.pause)
        accepted = await promptly(world)
        await _gateway_is_not_heard(world)
        await asyncio.to_thread(world.broker.resume)
        return [running, accepted]

    outcome = await again_and_again(world, form.of(1, 5), once)
    assert all(done_once(world, job) for job in outcome.jobs)
    return outcome


@case(
    "+",
    "an empty broker takes the place of the one with all messages",
    shown_by=(
        "tests/integration/gateway/test_story.py::test_a_broker_that_lost_everything_costs_nothing",
        "tests/integration/shared/test_rabbitmq_faults.py::test_a_publish_mends_a_lost_queue",
    ),
)
async def emptied(world: World, form: Form) -> Outcome:
    async def once() -> list[str]:
        running = await training(world, steps=80)
        async with ears(world, ["dataset.staged"]) as heard:
            waiting = [await world.submit() for _ in range(form.of(2, 5))]
            await heard.hear_all(waiting)
        world.proxies.broker.cut()
        await all_heard(world)
        await asyncio.to_thread(make_anew, world)
        async with outsider(world) as channel:
            await witness_queue(channel)  # before anybody says what it has to hear
        world.proxies.broker.open()
        return [running, *waiting]

    outcome = await again_and_again(world, form.of(1, 4), once)
    assert all(done_once(world, job) for job in outcome.jobs)
    return outcome


@case(
    "+",
    "the services start before the broker does",
    shown_by=(
        "tests/integration/gateway/test_degradation.py::test_a_gateway_that_starts_without_its_broker_accepts_jobs",
        "tests/integration/shared/test_rabbitmq_faults.py::test_what_was_confirmed_survives_the_node_and_everybody_goes_on_by_himself",
    ),
)
async def broker_comes_last(world: World, form: Form) -> Outcome:
    names = form.of(("gateway", "trainer"), tuple(sorted(world.wanted)))
    waiting = await world.submit(Script(steps=40, step_seconds=0.05))
    await world.reaches(waiting, step=1)
    world.proxies.broker.cut()
    await asyncio.gather(*(world.services.first(name).kill() for name in names))
    started = [world.services.begin(name) for name in names]
    for service in started:
        await service.wait_for_log("broker_unreachable")
    world.proxies.broker.open()
    job = await world.submit()
    seconds = await world.recovered([waiting, job])
    assert done_once(world, job)
    return Outcome(len(names), (waiting, job), seconds)


@case(
    "+",
    "a trainer is stopped while the broker is away",
    shown_by=(
        "tests/unit/shared/test_runtime.py::test_a_stopped_worker_does_not_wait_for_ever_for_a_broker_that_is_away",
        "tests/integration/shared/test_rabbitmq_faults.py::test_a_hung_node_fails_a_publish_in_time_and_holds_up_no_farewell",
    ),
)
async def stopped_without_broker(world: World, form: Form) -> Outcome:
    async def once() -> list[str]:
        async with stand_in(world, "trainer", HEARTBEAT=str(LEAST_HEARTBEAT)) as trainer:
            job = await world.submit(Script(steps=40, step_seconds=0.05, resume_every=5))
            await world.says("trainer", "resume_point_saved", job)
            world.proxies.broker.cut()
            await trainer.stop(seconds=GRACE_SECONDS * slowness())
            world.proxies.broker.open()
        await world.whole()
        return [job]

    return await again_and_again(world, form.of(1, 4), once)


@case(
    "+",
    "a queue was declared with other arguments by somebody else",
    shown_by=(
        "tests/integration/shared/test_rabbitmq_faults.py::test_a_queue_with_other_arguments_is_reported_and_once_it_is_gone_all_goes_on",
    ),
)
async def declared_otherwise(world: World, form: Form) -> Outcome:
    async def once() -> list[str]:
        job = await training(world, steps=20)
        said = {name: _complaints(world, name) for name in ("gateway", "trainer")}
        async with outsider(world) as channel:
            await channel.queue_delete(TRAINER.name)
            await channel.declare_queue(TRAINER.name, durable=True)
            world.proxies.broker.cut()
            world.proxies.broker.open()
            for name, before in said.items():
                await world.until(lambda: _more(before, lambda: _complaints(world, name)))  # noqa: B023
            await channel.queue_delete(TRAINER.name)
        return [job, await world.submit()]

    return await again_and_again(world, form.of(1, 3), once)


@case("+", "an outside listener does not keep up, and fills its queue")
async def slow_listener(world: World, form: Form) -> Outcome:
    bounded = {"x-max-length": 5, "x-overflow": "drop-head"}
    async with ears(world, ["#"]) as fills, ears(world, ["#"], bounded) as drops:
        for slow in (fills, drops):
            await slow.channel.set_qos(prefetch_count=1)
            await slow.queue.consume(_never_ack)
        jobs = [await world.submit() for _ in range(form.of(2, 8))]
        seconds = await world.recovered(jobs)
    assert all(done_once(world, job) for job in jobs)
    return Outcome(2, tuple(jobs), seconds)


# --- What the cases have in common ------------------------------------------------------------


async def training(world: World, *, steps: int) -> str:
    """A job that is in the middle of so many steps, of which twenty take a second."""
    job = await world.submit(Script(steps=steps, step_seconds=0.05))
    await world.reaches(job, step=1)
    return job


def done_once(world: World, job: str, stage: str = "training") -> bool:
    """Whether exactly one worker, once, was granted this stage of the job."""
    lines = (line for service in world.services.all for line in service.text.splitlines())
    words = ('"working"', job, f'"{stage}"')
    return sum(all(word in line for word in words) for line in lines) == 1


async def promptly(world: World) -> str:
    """Submit a job, which must be answered at once."""
    began = monotonic()
    job = await world.submit()
    assert monotonic() - began < PROMPT_SECONDS * slowness(), "the client has hung up by now"
    return job


async def _gateway_is_not_heard(world: World) -> None:
    """Wait until it has noticed that the broker takes nothing."""
    gateway = world.services.first("gateway")
    before = gateway.text.count("heartbeat_lost")
    await world.until(lambda: _more(before, lambda: gateway.text.count("heartbeat_lost")))


async def _more(before: int, count: Callable[[], int]) -> bool | None:
    return count() > before or None


@asynccontextmanager
async def full_disk(world: World) -> AsyncIterator[None]:
    """The broker wants more room than any disk has."""
    await asyncio.to_thread(world.broker.want_disk, "1000000GB")
    try:
        yield
    finally:
        await asyncio.to_thread(world.broker.want_disk)


def logged(world: World, words: str) -> int:
    """How often the broker's log says this."""
    logs = (world.broker.folder / "log").glob("*.log")
    return sum(log.read_text(errors="replace").count(words) for log in logs)


@asynccontextmanager
async def short_ack_timeout(world: World, seconds: float, tick: float) -> AsyncIterator[None]:
    """Channels that are opened from now on are closed for a delivery that is not acked in time."""
    await asyncio.to_thread(_set_ack_timeout, world, seconds, tick)
    world.proxies.broker.cut()
    world.proxies.broker.open()
    try:
        yield
    finally:
        await asyncio.to_thread(_set_ack_timeout, world, 1800, 60)
        world.proxies.broker.cut()
        world.proxies.broker.open()


def _set_ack_timeout(world: World, seconds: float, tick: float) -> None:
    values = {"consumer_timeout": seconds, "channel_tick_interval": tick}
    calls = [f"application:set_env(rabbit, {key}, {1e3 * values[key]:.0f})" for key in values]
    world.broker.evaluate(", ".join(calls))


def make_anew(world: World) -> None:
    """The virtual host again, without an exchange, a queue or a message."""
    name, who = f'<<"{world.vhost}">>', '<<"test">>'
    everything = '<<".*">>, <<".*">>, <<".*">>'
    world.broker.evaluate(
        f"rabbit_vhost:delete({name}, {who}), rabbit_vhost:add({name}, {who}), "
        "rabbit_auth_backend_internal:set_permissions("
        f'<<"guest">>, {name}, {everything}, {who})',
    )


async def _double(heard: Ears) -> None:
    """Say once more whatever is heard, once."""
    seen = set()
    exchange = await heard.channel.get_exchange(EXCHANGE, ensure=False)
    while True:
        message = await heard.next()
        if message.message_id not in seen:
            seen.add(message.message_id)
            await exchange.publish(copy_of(message), message.routing_key or "")


def _poisons(queue: str) -> tuple[bytes, bytes]:
    """One that is no JSON, and one of a type that nobody knows."""
    name = f"{queue}-{uuid.uuid4()}"
    return f"{{not JSON {name}".encode(), f'{{"type": "no.such", "job": "{name}"}}'.encode()


async def _reasons(world: World, bodies: list[bytes]) -> list[str] | None:
    """Why these were buried, once all of them are."""
    wanted = {sha256(body).hexdigest() for body in bodies}
    url = world.services.environment["EVERYDREAM_DATABASE_URL"]
    async with closing(Database.open(url)) as database:
        rows = await database.all(sa.select(tables.dead_letters))
    found = {row.sha256: row.reason for row in rows}
    return [found[each] for each in wanted] if wanted <= found.keys() else None


def _complaints(world: World, name: str) -> int:
    return sum(each.text.count("topology_differs") for each in world.services.named(name))


async def _never_ack(_message: object) -> None:
    pass
