"""The outbox is published in spite of failures."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from services.gateway.background.outbox_relay import WEBHOOKS_WAITING, OutboxRelay
from services.gateway.database.jobs import SqlJobStore
from services.gateway.ports import Outgoing, StoredJob
from shared.adapters.memory import MemoryBroker, MemoryBus
from shared.errors import Unavailable, Unpublishable, Unroutable
from shared.messaging.messages import JobStarted, Message, WebhookDue, encode
from shared.messaging.topology import FETCHER, NOTIFIER_WEBHOOKS, Queue
from shared.service_process import closing
from tests.support.migrated import new_sqlite
from tests.support.outbox import ids_in_outbox

DEADLINE = 20.0
Fault = Callable[[Message], Exception | None]


@dataclass
class FaultyBus:
    """A bus that fails on demand, and remembers what was published."""

    bus: MemoryBus
    fault: Fault = lambda _: None
    slow: asyncio.Event | None = None
    left: list[str] = field(default_factory=list)
    said: list[tuple[str, int]] = field(default_factory=list)
    """Jobs, and the runs that ``started`` numbers its messages by."""
    tries: int = 0
    given_up: list[tuple[str, str]] = field(default_factory=list)
    """Jobs and reasons."""

    async def publish(self, message: Message, *, mandatory: bool = True) -> None:
        await self._weather(message)
        await self.bus.publish(message, mandatory=mandatory)
        self.left.append(message.job)
        if isinstance(message, JobStarted):
            self.said.append((message.job, message.run))

    async def send(self, queue: str, message: Message, *, mandatory: bool = False) -> None:
        await self._weather(message)
        await self.bus.send(queue, message, mandatory=mandatory)
        self.left.append(message.job)

    async def depth(self, queue: Queue) -> int:
        return await self.bus.depth(queue)

    async def _weather(self, message: Message) -> None:
        self.tries += 1
        if self.slow is not None and message.job == "slow":
            await self.slow.wait()
        if error := self.fault(message):
            raise error


@dataclass
class Setting:
    url: str
    jobs: SqlJobStore
    bus: FaultyBus
    relay: OutboxRelay
    relay_dies: Callable[[], Awaitable[None]]
    written: int = 0

    async def causes(self, *outgoing: Outgoing) -> None:
        """Write a job with its messages, and wake the relay."""
        self.written += 1
        job = StoredJob(
            id=f"job-{self.written}", owner="", status="COMPLETED", version=1,
            created_at=0.0, ended_at=0.0, record=b"{}",
        )  # fmt: skip
        assert await self.jobs.insert(job, outgoing)
        self.relay.wake()

    async def until(self, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE
        while not holds():
            assert time.monotonic() < deadline, f"waited in vain; left: {self.bus.left}"
            await asyncio.sleep(0.01)

    async def outbox_empties(self) -> None:
        deadline = time.monotonic() + DEADLINE
        while await ids_in_outbox(self.url):
            assert time.monotonic() < deadline, "something stays in the outbox"
            await asyncio.sleep(0.01)


@pytest.fixture
async def setting(tmp_path: Path) -> AsyncIterator[Setting]:
    broker, url = MemoryBroker(), new_sqlite(tmp_path / "jobs.db")
    async with (
        closing(SqlJobStore.open(url)) as jobs,
        closing(broker.bus("gateway")) as memory,
    ):
        await jobs.migrate()
        bus = FaultyBus(memory)
        relay = relay_of(bus, jobs)
        async with at_work(relay) as ends:
            yield Setting(url, jobs, bus, relay, ends)


def relay_of(bus: FaultyBus, jobs: SqlJobStore) -> OutboxRelay:
    async def give_up(message: Message, reason: str) -> None:
        bus.given_up.append((message.job, reason))

    return OutboxRelay(
        bus,  # type: ignore[arg-type]
        jobs,
        clock=time.time,
        heartbeat=1.0,
        on_unpublishable=give_up,
    )


@asynccontextmanager
async def at_work(relay: OutboxRelay) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Run it to the end, or until the yielded function is called."""
    task = asyncio.create_task(relay.run())

    async def end() -> None:
        assert task.cancelled() or not task.done(), "the relay has given up"
        task.cancel()
        await asyncio.wait((task,))

    try:
        yield end
    finally:
        await end()


def started(job: str, number: int = 0, *, queue: str | None = None, due_in: float = 0) -> Outgoing:
    return Outgoing(
        id=f"{job}/1/{number}",
        message=encode(JobStarted(job=job, run=number, gpu="")),
        queue=queue,
        mandatory=queue is not None,
        due_at=time.time() + due_in,
    )


async def test_what_is_due_leaves_at_once_and_is_forgotten(setting: Setting) -> None:
    await setting.causes(started("a"), started("b", queue=FETCHER.name))
    await setting.until(lambda: sorted(setting.bus.left) == ["a", "b"])
    await setting.outbox_empties()
    assert await setting.bus.bus.depth(FETCHER) == 1


async def test_what_is_due_later_leaves_later_without_being_woken(setting: Setting) -> None:
    began = time.monotonic()
    await setting.causes(started("later", due_in=0.5), started("now"))
    await setting.until(lambda: len(setting.bus.left) == 2)
    assert setting.bus.left == ["now", "later"]
    assert time.monotonic() - began >= 0.5


async def test_an_unroutable_message_waits_and_holds_up_no_other(setting: Setting) -> None:
    routable = asyncio.Event()
    setting.bus.fault = lambda message: (
        None if message.job != "deaf" or routable.is_set() else Unroutable("no queue yet")
    )
    await setting.causes(started("deaf"), *(started("good", number) for number in range(5)))
    await setting.until(lambda: setting.bus.left == ["good"] * 5)
    tries = setting.bus.tries
    await setting.until(lambda: setting.bus.tries > tries)
    routable.set()
    await setting.until(lambda: "deaf" in setting.bus.left)
    await setting.outbox_empties()


async def test_what_the_broker_refuses_for_good_is_given_up_once_and_forgotten(
    setting: Setting,
) -> None:
    setting.bus.fault = lambda message: (
        Unpublishable("too large") if message.job == "large" else None
    )
    await setting.causes(started("large"), started("large", 1), started("good"))
    await setting.outbox_empties()
    assert setting.bus.given_up == [("large", "too large")] * 2
    assert setting.bus.left == ["good"]
    assert setting.bus.tries == 3


async def test_one_that_the_broker_never_confirms_holds_up_nobody(setting: Setting) -> None:
    setting.bus.slow = asyncio.Event()
    await setting.causes(started("slow"))
    await setting.until(lambda: setting.bus.tries == 1)
    await setting.causes(started("quick"))
    await setting.until(lambda: setting.bus.left == ["quick"])
    setting.bus.slow.set()
    await setting.until(lambda: setting.bus.left == ["quick", "slow"])


async def test_the_messages_of_one_job_leave_in_order(setting: Setting) -> None:
    def note(message: Message) -> None:
        assert isinstance(message, JobStarted)
        seen.setdefault(message.job, []).append(message.run)

    many = [started(job, number) for number in range(5) for job in ("a", "b", "c")]
    seen: dict[str, list[int]] = {}
    setting.bus.fault = note
    await setting.causes(*many)
    await setting.outbox_empties()
    assert seen == {job: [0, 1, 2, 3, 4] for job in ("a", "b", "c")}


def webhook(job: str, owner: str) -> Outgoing:
    due = WebhookDue(
        job=job, run=1, attempt=1, url="", webhook_id=job, event="completed", body="{}"
    )
    return Outgoing(id=f"{job}/1/0", message=encode(due), due_at=time.time(), owner=owner)


async def test_webhooks_wait_here_while_the_notifiers_queue_is_long_and_leave_in_turns(
    setting: Setting,
) -> None:
    many = [f"anna-{number}" for number in range(2 * WEBHOOKS_WAITING)]
    for job in many:
        await setting.causes(webhook(job, "anna"))
    await setting.until(lambda: len(setting.bus.left) == WEBHOOKS_WAITING)
    await setting.causes(webhook("ben-0", "ben"), started("plain"))
    await setting.until(lambda: "plain" in setting.bus.left)
    assert "ben-0" not in setting.bus.left

    for _ in range(2):  # notifiers take some
        await (await setting.bus.bus.get(NOTIFIER_WEBHOOKS)).ack()
    await setting.until(lambda: "ben-0" in setting.bus.left)
    assert len(setting.bus.left) <= WEBHOOKS_WAITING + 3


async def test_more_than_one_look_can_show_leaves_without_a_pause(setting: Setting) -> None:
    began = time.monotonic()
    await setting.causes(*(started(f"job{number}") for number in range(450)))
    await setting.until(lambda: len(setting.bus.left) == 450)
    await setting.outbox_empties()
    assert time.monotonic() - began < DEADLINE


async def test_nothing_is_lost_while_the_broker_is_away(setting: Setting) -> None:
    away = True
    setting.bus.fault = lambda _: Unavailable("the broker does not answer") if away else None
    await setting.causes(started("a"), started("b"))
    await setting.until(lambda: setting.bus.tries >= 4)
    away = False
    await setting.outbox_empties()
    assert sorted(setting.bus.left) == ["a", "b"]


async def test_a_row_that_cannot_be_read_holds_up_nobody(setting: Setting) -> None:
    damaged = Outgoing(id="damaged/1/0", message=b"?", due_at=0.0)
    await setting.causes(damaged, started("good"))
    await setting.until(lambda: setting.bus.left == ["good"])


async def test_a_relay_begins_with_what_another_left_behind(setting: Setting) -> None:
    await setting.relay_dies()
    stuck = FaultyBus(setting.bus.bus, slow=asyncio.Event())
    async with at_work(relay_of(stuck, setting.jobs)):
        await setting.causes(started("slow"), started("slow", 1))
        await setting.until(lambda: stuck.tries == 1)

    async with at_work(relay_of(setting.bus, setting.jobs)):
        await setting.until(lambda: setting.bus.said == [("slow", 0), ("slow", 1)])


async def test_of_two_relays_each_message_leaves_by_one_and_a_job_s_in_order(
    setting: Setting,
) -> None:
    jobs = [f"job-{number}" for number in range(20)]
    async with at_work(relay_of(setting.bus, setting.jobs)):
        for number in range(3):
            for job in jobs:
                await setting.causes(started(job, number))
        await setting.outbox_empties()

    assert sorted(setting.bus.said) == [
        (job, number) for job in sorted(jobs) for number in range(3)
    ]
    for job in jobs:
        assert [number for said, number in setting.bus.said if said == job] == [0, 1, 2]
