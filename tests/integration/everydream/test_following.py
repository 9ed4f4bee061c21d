"""Following a job, against a server with fixed answers."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from rich.console import Console

from everydream import following
from everydream.access import Access, check_key, client_of
from everydream.client import Client
from everydream.following import Announcer, follow, watch
from everydream.results import Results
from everydream.terminal.display import Display
from shared.errors import Refused, Unavailable
from tests.support.servers.web import Page, Web

JSON = {"Content-Type": "application/json"}
JOB = "7b1c"


@pytest.fixture
def said() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def display(said: io.StringIO) -> Display:
    return Display(Console(file=said))


@pytest.fixture
def gateway(web: Web) -> Access:
    return Access(web.url("").rstrip("/"), "k")


@pytest.fixture
async def client(gateway: Access) -> AsyncIterator[Client]:
    async with aiohttp.ClientSession() as session:
        yield Client(session, gateway.url, gateway.key)


def shows(web: Web, code: int = 200, **answer: Any) -> None:
    """Let the endpoint show this as the job's status."""
    body = {"id": JOB, "delayTime": 0, "executionTime": 0, "gpu": "cpu", "input": {}, **answer}
    page = Page(json.dumps(body).encode(), status=code, headers=JSON)
    web.serve(f"/v1/everydream-v1/status/{JOB}", page)


async def test_a_gateway_that_is_away_for_long_ends_the_follower_and_not_the_job(
    client: Client, gateway: Access, web: Web, display: Display, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "POLL_SECONDS", 0.0)
    shows(web, 503, error="the database does not answer")
    now = iter(range(0, 10_000, 50))

    with pytest.raises(Unavailable) as lost:
        async for _ in watch(client, gateway, JOB, display, clock=lambda: float(next(now))):
            pass
    assert str(lost.value) == (
        f"no answer from {gateway.url} for 10 minutes;"
        f" the job is not affected: everydream follow {JOB}"
    )


async def test_an_answer_in_between_starts_the_patience_anew(
    client: Client, gateway: Access, web: Web, display: Display, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(following, "LOST_SECONDS", 100.0)
    asked = 0

    def clock() -> float:
        nonlocal asked
        asked += 1
        code = (503, 503, 200)[asked % 3]
        shows(web, code, error="away", status="IN_PROGRESS" if asked < 30 else "COMPLETED")
        return asked * 20.0

    statuses = [status["status"] async for status in watch(client, gateway, JOB, display, clock)]

    assert statuses[-1] == "COMPLETED"
    assert asked * 20.0 > 300


async def test_a_job_that_there_is_not_ends_the_follower_at_once(
    gateway: Access, web: Web, display: Display, tmp_path: Path
) -> None:
    shows(web, 404, error="there is no such job")

    with pytest.raises(Refused, match="there is no such job"):
        await follow(gateway, JOB, tmp_path, display, Announcer(display))


async def test_a_key_without_the_right_to_look_may_submit_all_the_same(
    client: Client, web: Web
) -> None:
    for status, may_look in ((200, True), (403, False)):
        page = Page(b'{"error": "no", "workers": {}}', status=status, headers=JSON)
        web.serve("/v1/everydream-v1/health", page)
        assert await check_key(client) is may_look


async def test_a_wrong_key_is_said_alike_whatever_was_asked(gateway: Access, web: Web) -> None:
    said = []
    for path in ("health", "jobs"):
        web.serve(f"/v1/everydream-v1/{path}", Page(b'{"error": "no"}', status=401, headers=JSON))
        with pytest.raises(Refused) as refused:
            async with client_of(gateway) as client:
                await (check_key(client) if path == "health" else client.jobs())
        said.append(str(refused.value))

    assert said == 2 * [
        f"{gateway.url} does not let this key in; give another by --key or EVERYDREAM_API_KEY"
    ]


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1:9", "nothing answers there (connection refused)"),
        ("http://no-such-host.invalid", "there is no host named no-such-host.invalid"),
    ],
)
async def test_a_server_that_is_not_there_is_said_in_plain_words(url: str, reason: str) -> None:
    with pytest.raises(Unavailable) as away:
        async with client_of(Access(url, "k")) as client:
            await client.jobs()

    assert str(away.value).startswith(f"{url}: {reason}; is the server up, and is that its address")
    assert "everydream serve" in str(away.value)
    assert "--url" in str(away.value)


async def test_a_sample_that_cannot_be_fetched_is_said_once_and_delays_no_other(
    client: Client, web: Web, display: Display, said: io.StringIO, tmp_path: Path
) -> None:
    samples = [
        {"step": 0, "prompt": "lost", "image": web.url("/lost.png")},
        {"step": 0, "prompt": "there", "image": web.serve("/there.png", b"png")},
    ]
    results = Results(tmp_path, display)
    for _ in range(2):
        await results.keep_samples(client, {"samples": samples})

    lost, there = said.getvalue().splitlines()
    assert lost.startswith("warning: sample lost.png was not fetched: 404")
    assert there == f"sample saved at {tmp_path}/samples/there.png: there"


def test_the_report_and_each_warning_are_said_once(display: Display, said: io.StringIO) -> None:
    announcer = Announcer(display)
    report = {"images": 2, "skipped": [{"file": "x.heic", "reason": "unknown"}], "skipped_count": 1,
              "warnings": ["of it"]}  # fmt: skip
    for warnings in ([], ["one"], ["one", "two"]):
        retry = {"stage": "staging", "number": 2, "tries": 3, "reason": "500", "next_at": None}
        output = {"dataset": report, "warnings": ["of it", *warnings], "retries": [retry]}
        announcer.see({"status": "IN_PROGRESS", "output": output})

    assert said.getvalue().splitlines() == [
        "2 pictures used; 1 left out:", "  left out: x.heic: unknown", "warning: of it",
        "warning: preparing the pictures: try 1 of 3 failed: 500", "warning: one", "warning: two",
    ]  # fmt: skip
