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

from services.fetcher.base_model import BaseModels, Named
from services.fetcher.download import download
from services.fetcher.meter import Meter
from services.notifier.webhook import post
from shared import outbound
from shared.adapters.folder import FolderStore
from shared.adapters.s3 import S3Store
from shared.addresses import ADVICE
from shared.errors import Refused
from shared.keys import webhook_secret
from shared.messages import FETCHER, WebhookDue, WebhookFailed
from shared.outbound import Guard, guarded_session
from shared.process import closing
from tests.corpora.urls import NAMES, URLS
from tests.gateway_world import KEY, REQUEST, S3_CONFIG, world

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
    bases = BaseModels(store, configured="tiny", home=folder, allowed=allowed)
    meter = Meter("downloading", lambda **_: None, lambda: None)
    with pytest.raises(Refused) as refused:
        await bases.stage(Named(url, "input.model"), folder, meter)
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
