"""Webhooks on their way: what is posted, what is said of it, and what is never tried again."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from standardwebhooks import Webhook

from services.notifier import webhook
from services.notifier.webhook import deliver_all, seconds_of
from shared.adapters.memory import MemoryBroker, MemoryBus
from shared.errors import Unavailable
from shared.keys import webhook_secret
from shared.messaging.messages import (
    JobCancelled,
    Message,
    WebhookDelivered,
    WebhookDue,
    WebhookFailed,
    encode,
)
from shared.messaging.topology import GATEWAY_RECORDER, NOTIFIER_WEBHOOKS, Queue
from shared.network.outbound import guarded_session
from shared.ports import Bus, Delivery, ObjectStore
from shared.storage.large_fields import LARGE, store_message
from shared.telemetry import tracing
from tests.support.servers.hostile import PIECE, Hostile, head, hostile
from tests.support.servers.process import HOST, free_port
from tests.support.servers.web import Answer, Seen, Web
from tests.support.workers import folder_store

SECRET = webhook_secret(None, "a key of thirty-two letters or more")
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
BODY = '{"id":"7b1c","output":{"prompt":"ein Fuß"},"status":"COMPLETED"}'
PATIENCE = 30.0


class World:
    """A running notifier, and a gateway that publishes what is due and receives the outcomes."""

    def __init__(self, broker: MemoryBroker) -> None:
        self.broker = broker
        self.gateway = broker.bus("gateway/test")
        self._outcomes = self.gateway.consume(GATEWAY_RECORDER)

    async def due(self, url: str, *, attempt: int = 1) -> WebhookDue:
        due = WebhookDue(job="7b1c", run=2, attempt=attempt, url=url, webhook_id="msg-1", body=BODY)
        await self.gateway.publish(due)
        return due

    async def outcome(self) -> WebhookDelivered | WebhookFailed:
        async with asyncio.timeout(PATIENCE):
            delivery = await anext(self._outcomes)
        await delivery.ack()
        assert isinstance(delivery.message, WebhookDelivered | WebhookFailed)
        return delivery.message

    async def delivered(self, url: str) -> WebhookDelivered:
        await self.due(url)
        outcome = await self.outcome()
        assert isinstance(outcome, WebhookDelivered)
        return outcome

    async def failed(self, url: str) -> WebhookFailed:
        await self.due(url)
        outcome = await self.outcome()
        assert isinstance(outcome, WebhookFailed)
        return outcome

    async def waiting(self) -> int:
        return await self.gateway.depth(NOTIFIER_WEBHOOKS)


@asynccontextmanager
async def notifying(
    bus: Bus, *, allowed: frozenset[str] = frozenset({HOST}), store: ObjectStore | None = None
) -> AsyncIterator[None]:
    """A notifier that delivers for as long as the block lasts."""
    store = store or folder_store(Path("never-written"))
    async with guarded_session(allowed) as session:
        delivering = asyncio.create_task(deliver_all(bus, store, session, SECRET, allowed))
        try:
            yield
            assert not delivering.done(), "the notifier gave up"
        finally:
            delivering.cancel()
            await asyncio.wait((delivering,))


@pytest.fixture
def world() -> World:
    return World(MemoryBroker())


@pytest.fixture
async def _notifier(world: World) -> AsyncIterator[None]:
    async with notifying(world.broker.bus("notifier/test")):
        yield


def signed(seen: Seen) -> object:
    """What the receivers' own library makes of a request; raises what it finds wrong."""
    return Webhook(SECRET).verify(seen.body, dict(seen.headers))


@pytest.mark.usefixtures("_notifier")
async def test_a_webhook_carries_the_trace_of_its_job(world: World, web: Web) -> None:
    with tracing.within(tracing.Context(TRACEPARENT, "vendor=1")):
        await world.due(web.url("/hook"))
    await world.outcome()

    assert web.posts[-1].headers["traceparent"] == TRACEPARENT
    assert web.posts[-1].headers["tracestate"] == "vendor=1"


# --- Delivered


@pytest.mark.usefixtures("_notifier")
@pytest.mark.parametrize("status", [200, 201, 204, 299])
async def test_any_answer_that_says_yes_is_a_delivery(world: World, web: Web, status: int) -> None:
    web.answer(status)

    outcome = await world.delivered(web.url("/hook?a=b"))

    assert outcome == WebhookDelivered(
        job="7b1c", run=2, attempt=1, webhook_id="msg-1", status=status
    )
    assert [(seen.method, seen.path) for seen in web.seen] == [("POST", "/hook?a=b")]
    assert await world.waiting() == 0


@pytest.mark.usefixtures("_notifier")
async def test_the_body_goes_out_to_the_letter_and_is_signed(world: World, web: Web) -> None:
    await world.delivered(web.url("/hook"))

    (seen,) = web.posts
    assert seen.body == BODY.encode()
    assert seen.headers["content-type"] == "application/json"
    assert seen.headers["webhook-id"] == "msg-1"
    assert signed(seen) == {
        "id": "7b1c",
        "output": {"prompt": "ein Fuß"},
        "status": "COMPLETED",
    }


@pytest.mark.usefixtures("_notifier")
async def test_an_answer_without_end_is_not_read(world: World) -> None:
    async def endless(server: Hostile, _request: str) -> None:
        await server.send(head(200, "Content-Length: 1099511627776"))
        await server.for_ever(PIECE)

    async with hostile(endless) as server:
        await world.delivered(f"{server.url}/hook")
        async with asyncio.timeout(PATIENCE):
            await server.left.wait()
    assert server.sent < 24 << 20


# --- Failed, and why


@pytest.mark.usefixtures("_notifier")
async def test_a_receiver_that_drips_its_answer_s_head_is_left_in_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def drip(server: Hostile, _request: str) -> None:
        await server.send(b"HTTP/1.1 200 OK\r\nX-Long: ")
        await server.for_ever(b"x", pause=0.02)

    monkeypatch.setattr(webhook, "TIMEOUT", aiohttp.ClientTimeout(total=0.3))
    async with hostile(drip) as server:
        failed = await world.failed(f"{server.url}/hook")
    assert failed.reason == "no answer within 0.3 s"
    assert not failed.permanent


@pytest.mark.usefixtures("_notifier")
@pytest.mark.parametrize("status", [101, 400, 404, 429, 500, 503])
async def test_an_answer_that_says_no_is_a_failure_of_this_try(
    world: World, web: Web, status: int
) -> None:
    web.answer(status)

    assert await world.failed(web.url("/hook")) == WebhookFailed(
        job="7b1c", run=2, attempt=1, webhook_id="msg-1", reason=f"answered with status {status}"
    )


@pytest.mark.usefixtures("_notifier")
async def test_each_try_is_one_post_with_the_same_id(world: World, web: Web) -> None:
    web.answer(500)

    await world.failed(web.url("/hook"))
    await world.due(web.url("/hook"), attempt=2)
    outcome = await world.outcome()

    assert (type(outcome), outcome.attempt) == (WebhookDelivered, 2)
    assert [seen.headers["webhook-id"] for seen in web.posts] == ["msg-1", "msg-1"]


@pytest.mark.usefixtures("_notifier")
async def test_a_receiver_that_answers_gone_is_never_called_again(world: World, web: Web) -> None:
    web.answer(410)

    outcome = await world.failed(web.url("/hook"))

    assert outcome.permanent
    assert outcome.reason == "answered with status 410"


@pytest.mark.usefixtures("_notifier")
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_a_failure_and_is_not_followed(
    world: World, web: Web, status: int
) -> None:
    web.answer(Answer(status, {"Location": web.url("/elsewhere")}))

    outcome = await world.failed(web.url("/hook"))

    assert outcome.reason == f"answered with status {status}"
    assert not outcome.permanent
    assert [seen.path for seen in web.seen] == ["/hook"]


async def test_no_receiver_s_cookie_is_sent_with_another_webhook(world: World, web: Web) -> None:
    web.answer(Answer(200, {"Set-Cookie": "from=another; Path=/"}), 200)
    url = web.url("/hook").replace(HOST, "localhost")  # no jar keeps cookies of bare addresses

    async with notifying(world.broker.bus("notifier/test"), allowed=frozenset({"localhost"})):
        await world.delivered(url)
        await world.delivered(url)

    assert ["cookie" in seen.headers for seen in web.seen] == [False, False]


@pytest.mark.usefixtures("_notifier")
async def test_a_receiver_may_say_when_to_come_again(world: World, web: Web) -> None:
    web.answer(Answer(503, {"Retry-After": "7"}), Answer(503, {"Retry-After": "999999"}))

    assert (await world.failed(web.url("/hook"))).retry_after == 7.0
    assert (await world.failed(web.url("/hook"))).retry_after == 3600.0


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("0", 0.0),
        (" 120 ", 120.0),
        ("9" * 400, 3600.0),
        (None, None),
        ("", None),
        ("-1", None),
        ("1.5", None),
        ("²", None),
        ("Wed, 21 Oct 2026 07:28:00 GMT", None),
    ],
)
def test_only_a_plain_number_of_seconds_is_a_time_to_wait(
    header: str | None, seconds: float | None
) -> None:
    assert seconds_of(header) == seconds


@pytest.mark.usefixtures("_notifier")
async def test_a_receiver_that_never_answers_is_a_failure_with_its_reason(
    world: World, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook, "TIMEOUT", aiohttp.ClientTimeout(total=0.2))
    web.answer(Answer(status=None))

    outcome = await world.failed(web.url("/hook"))

    assert outcome.reason == "no answer within 0.2 s"
    assert not outcome.permanent


@pytest.mark.usefixtures("_notifier")
async def test_a_receiver_that_is_not_there_is_a_failure_with_its_reason(world: World) -> None:
    port = free_port()

    outcome = await world.failed(f"http://{HOST}:{port}/hook")

    assert outcome.reason == f"no connection to {HOST}:{port} (Connection refused)"
    assert not outcome.permanent


async def test_a_host_s_address_is_not_told_to_whoever_named_it(world: World) -> None:
    allowed = frozenset({"localhost"})

    async with notifying(world.broker.bus("notifier/test"), allowed=allowed):
        outcome = await world.failed(f"http://localhost:{free_port()}/hook")

    assert "no connection to localhost:" in outcome.reason
    assert not re.search(r"127\.0|::1", outcome.reason)


@pytest.mark.parametrize("host", [HOST, "localhost"])
async def test_a_private_address_is_never_connected_to(world: World, web: Web, host: str) -> None:
    url = web.url("/hook?token=private").replace(HOST, host)

    async with notifying(world.broker.bus("notifier/test"), allowed=frozenset()):
        outcome = await world.failed(url)

    assert outcome.permanent
    assert "/hook: the host is a private address; " in outcome.reason
    assert "EVERYDREAM_ALLOWED_PRIVATE_HOSTS" in outcome.reason
    assert "token" not in outcome.reason
    assert web.seen == []


@pytest.mark.usefixtures("_notifier")
@pytest.mark.parametrize(
    "url", [f"http://{'a' * 70}.example/hook", "http://a..b/hook", "http://h:99999/", "nonsense"]
)
async def test_an_invalid_address_is_reported_once_and_the_notifier_goes_on(
    world: World, web: Web, url: str
) -> None:
    assert (await world.failed(url)).permanent

    await world.delivered(web.url("/hook"))


# --- Nothing vanishes, and nobody waits for anybody


@pytest.mark.usefixtures("_notifier")
async def test_a_receiver_that_hangs_holds_up_nobody_else(world: World, web: Web) -> None:
    web.answer(Answer(status=None))
    await world.due(web.url("/slow"))
    await web.wait_for_posts(1)

    assert (await world.delivered(web.url("/quick"))).status == 200
    assert [seen.path for seen in web.posts] == ["/slow", "/quick"]


class AwayOnce:
    """A bus whose broker is away when the first outcome is said."""

    def __init__(self, bus: MemoryBus) -> None:
        self.source = bus.source
        self.refused: list[Message] = []
        self._bus = bus

    async def publish(self, message: Message) -> None:
        if not self.refused:
            self.refused.append(message)
            raise Unavailable("no confirm within 10 s")
        await self._bus.publish(message)

    def consume(self, queue: Queue, *, prefetch: int) -> AsyncGenerator[Delivery, None]:
        return self._bus.consume(queue, prefetch=prefetch)


async def test_an_outcome_that_cannot_be_published_brings_the_webhook_again_with_the_same_id(
    world: World, web: Web
) -> None:
    bus = AwayOnce(world.broker.bus("notifier/test"))

    async with notifying(bus):  # type: ignore[arg-type]  # the two calls that are made
        outcome = await world.delivered(web.url("/hook"))

    assert outcome in bus.refused
    assert [seen.headers["webhook-id"] for seen in web.posts] == ["msg-1", "msg-1"]
    assert all(signed(seen) for seen in web.posts)


async def test_a_notifier_that_is_stopped_leaves_what_it_had_in_hand_to_the_next(
    world: World, web: Web
) -> None:
    web.answer(Answer(status=None))
    async with notifying(world.broker.bus("notifier/first")):
        await world.due(web.url("/hook"))
        await web.wait_for_posts(1)
        assert await world.waiting() == 0
    assert await world.waiting() == 1

    async with notifying(world.broker.bus("notifier/second")):
        outcome = await world.outcome()

    assert isinstance(outcome, WebhookDelivered)
    assert len(web.posts) == 2


@pytest.mark.usefixtures("_notifier")
async def test_what_is_no_webhook_is_dead_lettered_with_the_reason(world: World, web: Web) -> None:
    await world.gateway.send(NOTIFIER_WEBHOOKS.name, JobCancelled(job="7b1c", run=2))

    await world.delivered(web.url("/hook"))

    assert [dead.reason for dead in world.broker.dead_letters] == ["not a webhook that is due"]


async def test_a_large_body_is_fetched_and_sent_whole_and_one_that_is_gone_never(
    world: World, web: Web, tmp_path: Path
) -> None:
    store, body = folder_store(tmp_path), json.dumps({"prompt": "ß" * LARGE})
    bus = world.broker.bus("notifier/test")
    async with notifying(bus, store=store):
        due = WebhookDue(
            job="7b1c", run=1, attempt=1, url=web.url("/hook"), webhook_id="msg-1", body=body
        )
        small = await store_message(store, due)
        await world.gateway.publish(small)
        assert isinstance(await world.outcome(), WebhookDelivered)
        await store.delete("jobs/7b1c/")
        await world.gateway.publish(small)
        failed = await world.outcome()

    assert len(encode(small)) < LARGE
    assert [each.body.decode() for each in web.seen] == [body]
    assert isinstance(failed, WebhookFailed)
    assert (failed.reason, failed.permanent) == ("the job was deleted", True)
