"""Nobody reaches an address inside by a URL, however it is written and whoever opens it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from services.fetcher.download import download
from services.fetcher.models.stage import ModelReference, ModelStager
from services.fetcher.progress_meter import ProgressMeter
from services.notifier.webhook import post
from shared.adapters.folder import FolderStore
from shared.adapters.s3 import S3Store
from shared.errors import EveryDreamError, Refused
from shared.keys import webhook_secret
from shared.messaging.messages import WebhookDelivered, WebhookDue, WebhookFailed
from shared.messaging.topology import FETCHER
from shared.network import outbound
from shared.network.addresses import ADVICE, AllowedHosts
from shared.network.outbound import Guard, guarded_session
from shared.service_process import closing
from tests.support.corpora.urls import NAMES, URLS
from tests.support.gateway_world import KEY, REQUEST, S3_CONFIG, world
from tests.support.in_process_parser import InProcessReader
from tests.support.servers.web import Answer, Page, Web, running_web

RUN = "/v1/everydream-v1/run"
NOBODY: frozenset[str] = frozenset()


@dataclass
class Canary:
    """A server at every address of this machine, which counts who connects."""

    port: int
    callers: list[Any] = field(default_factory=list)

    def url(self, text: str) -> str:
        return text.format(port=self.port)


@asynccontextmanager
async def running_canary() -> AsyncIterator[Canary]:
    listening = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    canary = Canary(listening.getsockname()[1])

    async def heard(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        canary.callers.append(writer.get_extra_info("peername"))
        writer.close()

    server = await asyncio.start_server(heard, sock=listening)
    try:
        yield canary
    finally:
        server.close()


@pytest.fixture
async def canary() -> AsyncIterator[Canary]:
    async with running_canary() as one:
        yield one


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[tuple[str, ...]]]:
    """The answers of the resolver for names of a test, one after another; the last one stays."""
    book = {name: [addresses] for name, addresses in NAMES.items()}
    resolve = socket.getaddrinfo

    def answer(host: Any, port: Any, *args: Any, **more: Any) -> Any:
        if host not in book:
            return resolve(host, port, *args, **more)
        addresses = book[host].pop(0) if len(book[host]) > 1 else book[host][0]
        return [info for each in addresses for info in resolve(each, port, type=socket.SOCK_STREAM)]

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    return book


async def by_download(url: str, folder: Path, allowed: frozenset[str] = NOBODY) -> str:
    """Why the fetcher did not download it."""
    with pytest.raises(Refused) as refused:
        await download(url, folder / "file", allowed=allowed, limit=1 << 20, pauses=())
    return str(refused.value)


async def by_model(url: str, folder: Path, allowed: frozenset[str] = NOBODY) -> str:
    """Why the fetcher did not take it for a model."""
    store = FolderStore(folder / "store", public_url="http://x", key=KEY)
    models = ModelStager(store, configured="tiny", home=folder, allowed=allowed)
    meter = ProgressMeter("downloading", lambda **_: None, lambda: None)
    reference = ModelReference(url, "input.model")
    with pytest.raises(Refused) as refused:
        await models.stage(reference, folder, meter, InProcessReader(), own="own")
    return str(refused.value)


async def by_webhook(url: str, _: Path, allowed: frozenset[str] = NOBODY) -> str:
    """Why the notifier did not post to it, and never will."""
    due = WebhookDue(job="7b1c", run=1, attempt=1, webhook_id="msg-1", url=url, body="{}")
    async with guarded_session(allowed) as session:
        outcome = await post(session, webhook_secret(None, KEY), allowed, due)
    assert isinstance(outcome, WebhookFailed)
    assert outcome.permanent, outcome
    return outcome.reason


async def by_bucket(url: str, _: Path, allowed: frozenset[str] = NOBODY) -> str:
    """Why the notifier did not put anything there."""
    with pytest.raises(Refused) as refused:
        await put_into_bucket(url, allowed)
    return str(refused.value)


async def put_into_bucket(url: str, allowed: frozenset[str]) -> None:
    bucket = S3Store.for_bucket(
        "bucket", endpoint_url=url, access_key="a", secret_key="s", guard=Guard(allowed)
    )
    async with closing(bucket):
        await bucket.put("key", b"x")


USERS = {
    "data_url": by_download,
    "resume_ckpt_url": by_model,
    "webhook": by_webhook,
    "endpointUrl": by_bucket,
}


ALLOWING = {"data_url": by_download, "webhook": by_webhook, "endpointUrl": by_bucket}


@pytest.mark.parametrize("user", USERS)
async def test_no_spelling_of_an_address_inside_is_connected_to(
    canary: Canary, tmp_path: Path, user: str
) -> None:
    for name, url in URLS.items():
        reason = await USERS[user](canary.url(url), tmp_path)

        assert reason, name
        assert "secret" not in reason, name
        assert canary.callers == [], name


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("names")
async def test_a_name_that_leads_inside_is_refused_when_it_is_resolved(
    canary: Canary, tmp_path: Path, user: str, name: str
) -> None:
    reason = await USERS[user](canary.url(f"http://{name}:{{port}}/a"), tmp_path)

    assert f"private address; {ADVICE}" in reason
    assert name in reason
    assert canary.callers == []


@pytest.mark.parametrize("user", ["data_url", "webhook", "endpointUrl"])
async def test_the_guard_of_the_connection_holds_where_nothing_looks_at_the_url(
    canary: Canary, tmp_path: Path, user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbound, "why_not", lambda _url, _allows: None)

    for name in ("loopback", "loopback of IPv6", "mapped into IPv6", "localhost"):  # fmt: skip
        assert "private address" in await USERS[user](canary.url(URLS[name]), tmp_path), name
        assert canary.callers == [], name


# --- redirects, rebinding, and what the operator allows


def inside(canary: Canary) -> dict[str, str]:
    """Where a server outside may try to send somebody, and why nobody goes there."""
    ways = {
        "http://127.0.0.1:{port}/": "private address",
        "http://loopback.test:{port}/": "private address",
        "//127.0.0.1:{port}/": "private address",
        "http://169.254.169.254/latest/meta-data/": "private address",
        "http://2130706433:{port}/": "the host is a number",
        "http://user:secret@127.0.0.1:{port}/": "a user name or password is not taken",
        "file:///etc/passwd": "expected an http or https URL",
        "gopher://127.0.0.1:{port}/": "expected an http or https URL",
    }
    return {canary.url(way): why for way, why in ways.items()}


def only(web: Web) -> frozenset[str]:
    """As if this server were outside."""
    return frozenset({web.url("").removeprefix("http://")})


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.usefixtures("names")
async def test_no_redirect_leads_inside(
    canary: Canary, tmp_path: Path, web: Web, status: int
) -> None:
    for to, why in inside(canary).items():
        web.redirect("/next", to, status)
        url = web.redirect("/first", "next", status)

        reason = await by_download(url, tmp_path, only(web))

        assert why in reason, to
        assert "secret" not in reason, to
        assert canary.callers == [], to


async def test_redirects_without_end_are_given_up(tmp_path: Path, web: Web) -> None:
    web.redirect("/ping", "/pong")
    url = web.redirect("/pong", "/ping")
    for number in range(7):
        web.redirect(f"/{number}", f"/{number + 1}")

    assert "more than 5 redirects" in await by_download(url, tmp_path, only(web))
    assert "more than 5 redirects" in await by_download(web.url("/0"), tmp_path, only(web))
    assert "/6" not in {seen.path for seen in web.seen}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_neither_webhooks_nor_buckets_are_led_inside_by_a_redirect(
    canary: Canary, web: Web, status: int
) -> None:
    to = {"Location": canary.url("http://127.0.0.1:{port}/")}
    web.answer(Answer(status, to))
    web.serve("/bucket/key", Page(status=status, headers=to))
    due = WebhookDue(job="7b1c", run=1, attempt=1, webhook_id="msg-1", url=web.url(), body="{}")

    async with guarded_session(only(web)) as session:
        outcome = await post(session, webhook_secret(None, KEY), only(web), due)
    with pytest.raises(EveryDreamError):
        await put_into_bucket(web.url(""), only(web))

    assert isinstance(outcome, WebhookFailed)
    assert outcome.reason == f"answered with status {status}"
    assert canary.callers == []


async def test_a_name_that_leads_elsewhere_at_the_next_try_is_refused_there(
    tmp_path: Path, names: dict[str, list[tuple[str, ...]]]
) -> None:
    async with running_web() as outside:
        port = outside.url("").rpartition(":")[2]
        to = {"Location": "/second", "Connection": "close"}
        outside.serve("/first", Page(status=302, headers=to))
        names["rebound.test"] = [("127.0.0.1",), ("127.0.0.2",)]

        reason = await by_download(
            f"http://rebound.test:{port}/first", tmp_path, frozenset({f"127.0.0.1:{port}"})
        )

        assert "rebound.test resolves to a private address" in reason
        assert [seen.path for seen in outside.seen] == ["/first"]


@pytest.mark.parametrize(
    "allowed",
    ["127.0.0.1:1", "27.0.0.1", "0.1", "127.0.0.1.example", "example.127.0.0.1", "127.0.0.0",
     "localhost", "*", "", ".", "http://127.0.0.1", "[127.0.0.1", "127.0.0.1/8", "::1"],
)  # fmt: skip
@pytest.mark.parametrize("user", ["data_url", "webhook", "endpointUrl"])
async def test_what_the_operator_allows_lets_nothing_else_in(
    canary: Canary, tmp_path: Path, user: str, allowed: str
) -> None:
    url = canary.url("http://127.0.0.1:{port}/")

    assert "private address" in await ALLOWING[user](url, tmp_path, frozenset({allowed}))
    assert canary.callers == []


@pytest.mark.parametrize(
    ("allowed", "host", "port", "holds"),
    [
        ("files.internal:80", "files.internal", 80, True),
        ("files.internal:80", "FILES.internal.", 80, True),
        ("files.internal:80", "files.internal", 81, False),
        ("files.internal", "files.internal", 81, True),
        ("files.internal", "evil-files.internal", 80, False),
        ("files.internal", "files.internal.example", 80, False),
        ("files.internal", "a.files.internal", 80, False),
        ("[::1]:8000", "::1", 8000, True),
        ("[::1]:8000", "0:0:0:0:0:0:0:1", 8000, True),
        ("[::1]:8000", "::1:8000", 80, False),
        ("[::1]:8000", "::1", 80, False),
        ("::1", "::1", 80, True),
    ],
)
def test_an_allowed_host_is_one_host(allowed: str, host: str, port: int, *, holds: bool) -> None:
    assert AllowedHosts(frozenset({allowed}))(host, port) is holds


async def test_what_a_webhook_answers_is_neither_read_nor_waited_for(web: Web) -> None:
    web.answer(Answer(200, body=b"x" * (50 << 20)))
    due = WebhookDue(job="7b1c", run=1, attempt=1, webhook_id="msg-1", url=web.url(), body="{}")
    async with guarded_session(only(web)) as session:
        outcome = await post(session, webhook_secret(None, KEY), only(web), due)

    assert isinstance(outcome, WebhookDelivered)


# --- at admission


FIELDS: dict[str, Callable[[str], dict[str, Any]]] = {
    "input.train.data_url": lambda url: {"input": {"train": {"data_url": url}}},
    "input.train.resume_ckpt_url": lambda url: {
        "input": {"train": {"data_url": "https://example.com/a.zip", "resume_ckpt_url": url}}
    },
    "input.model": lambda url: {"input": {"model": url, "inference": {"prompt": "a cat"}}},
    "webhook": lambda url: {**REQUEST, "webhook": url},
    "s3Config.endpointUrl": lambda url: {**REQUEST, "s3Config": {**S3_CONFIG, "endpointUrl": url}},
}


@pytest.mark.parametrize("field", FIELDS)
async def test_what_a_url_tells_by_itself_is_told_at_admission(
    canary: Canary, tmp_path: Path, field: str
) -> None:
    async with world(tmp_path) as here:
        for name, text in URLS.items():
            answer = await here.ask("POST", RUN, json=FIELDS[field](canary.url(text)))

            assert answer.status in (400, 422), name
            assert [each.partition(":")[0] for each in answer.body["mistakes"]] == [field], name
            assert "secret" not in answer.body["error"], name
        assert await here.bus.depth(FETCHER) == 0
    assert canary.callers == []


async def test_an_endpoint_has_no_query_that_would_stand_in_messages(tmp_path: Path) -> None:
    request = FIELDS["s3Config.endpointUrl"]("https://s3.example.com/?key=secret")
    async with world(tmp_path) as here:
        answer = await here.ask("POST", RUN, json=request)

    assert answer.status == 400
    assert "without a query" in answer.body["error"]
    assert "secret" not in answer.body["error"]
