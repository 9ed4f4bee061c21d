"""Following a job, against a server with fixed answers."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from rich.console import Console

from everydream import client as client_module
from everydream import following
from everydream.access import Access, check_key, client_of
from everydream.client import Client, NoGateway
from everydream.following import Announcer, fetch, follow, watch
from everydream.results import Results
from everydream.terminal.display import Display
from shared.errors import Refused, Unavailable
from tests.support.servers.web import Page, Web

JSON = {"Content-Type": "application/json"}
JOB = "7b1c"
AGAIN = "fetch them again (a link into a bucket ends after seven days)"


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
    clock, into = (lambda: float(next(now))), " --output there"

    with pytest.raises(Unavailable) as lost:
        async for _ in watch(client, gateway, JOB, display, into=into, clock=clock):
            pass
    assert str(lost.value) == (
        f"no answer from {gateway.url} for 10 minutes;"
        f" the job is not affected:  everydream follow {JOB} --output there"
    )


async def test_ctrl_c_names_a_command_that_fetches_into_the_same_folder(
    gateway: Access, web: Web, display: Display, said: io.StringIO, tmp_path: Path
) -> None:
    shows(web, status="IN_PROGRESS")
    output = tmp_path / "my results"
    following_it = asyncio.create_task(follow(gateway, JOB, output, display, Announcer(display)))
    async with asyncio.timeout(10):
        while "waiting" not in said.getvalue():
            await asyncio.sleep(0.01)

    following_it.cancel()
    with pytest.raises(asyncio.CancelledError):
        await following_it

    assert f"results:  everydream follow {JOB} --output '{output}'\n" in said.getvalue()


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

    statuses = [
        status["status"] async for status in watch(client, gateway, JOB, display, clock=clock)
    ]

    assert statuses[-1] == "COMPLETED"
    assert asked * 20.0 > 300


async def test_a_proxy_s_own_pages_in_between_do_not_end_the_follower(
    client: Client, gateway: Access, web: Web, display: Display, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "POLL_SECONDS", 0.0)
    path = f"/v1/everydream-v1/status/{JOB}"
    pages = [Page(b'{"detail": "Bad Gateway"}', 502, JSON), Page(b"<html>"), Page(b"{}", 200, JSON)]
    shows(web, status="IN_PROGRESS")

    def clock() -> float:
        if not is_begun:
            pass
        elif pages:
            web.serve(path, pages.pop())
        else:
            shows(web, status="COMPLETED")
        return 1.0

    is_begun = False
    statuses = watch(client, gateway, JOB, display, clock=clock)
    assert (await anext(statuses))["status"] == "IN_PROGRESS"
    is_begun = True
    assert [each["status"] async for each in statuses] == ["COMPLETED"]
    assert pages == []


async def test_a_server_that_is_no_gateway_is_not_followed(
    client: Client, gateway: Access, web: Web, display: Display
) -> None:
    web.serve(f"/v1/everydream-v1/status/{JOB}", Page(b"{}", headers=JSON))

    with pytest.raises(NoGateway):
        await anext(watch(client, gateway, JOB, display))


async def test_a_job_that_there_is_not_ends_the_follower_at_once(
    gateway: Access, web: Web, display: Display, tmp_path: Path
) -> None:
    shows(web, 404, error="there is no job")

    with pytest.raises(Refused, match="there is no job"):
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
    results = Results(tmp_path, display, is_own=True)
    for _ in range(2):
        await results.keep_samples(client, {"samples": samples})

    lost, there = said.getvalue().splitlines()
    host = web.url("").removeprefix("http://")
    assert lost == f"warning: lost.png was not fetched from {host}: 404 Not Found"
    assert there == f"sample saved at {tmp_path}/samples/there.png: there"


async def test_a_sample_that_cannot_be_written_ends_no_following(
    client: Client, web: Web, display: Display, said: io.StringIO, tmp_path: Path
) -> None:
    (tmp_path / "samples").write_text("in the way")
    sample = {"step": 0, "prompt": "x", "image": web.serve("/x.png", b"png")}

    kept = await Results(tmp_path, display, is_own=True).keep_samples(client, {"samples": [sample]})

    assert kept == []
    assert said.getvalue().startswith("warning: x.png was not written: ")


@pytest.mark.parametrize(("is_own", "now"), [(True, b"before"), (False, b"this")])
async def test_a_sample_that_is_there_is_taken_for_the_job_s_only_in_the_job_s_own_folder(
    client: Client, web: Web, display: Display, tmp_path: Path, *, is_own: bool, now: bytes
) -> None:
    before = tmp_path / "samples" / "x.png"
    before.parent.mkdir()
    before.write_bytes(b"before")
    sample = {"step": 0, "prompt": "x", "image": web.serve("/x.png", b"this")}

    await Results(tmp_path, display, is_own=is_own).keep_samples(client, {"samples": [sample]})

    assert before.read_bytes() == now


@pytest.mark.parametrize(("owner", "is_said"), [(JOB, False), ("another", True)])
async def test_results_of_another_job_in_the_folder_are_said_to_be_replaced(
    gateway: Access, web: Web, display: Display, said: io.StringIO, tmp_path: Path,
    owner: str, *, is_said: bool,
) -> None:  # fmt: skip
    (tmp_path / "summary.json").write_text(json.dumps({"id": owner}))
    shows(web, status="COMPLETED", output={})

    await fetch(gateway, JOB, tmp_path, display)

    warning = f"warning: {tmp_path} has the results of job another: files with the same names"
    assert said.getvalue().startswith(warning) is is_said


def artifact(url: str, content: bytes, kind: str = "image") -> dict[str, Any]:
    digest = hashlib.sha256(content).hexdigest()
    name = url.rpartition("/")[2]
    return {"kind": kind, "name": name, "url": url, "sha256": digest, "bytes": len(content)}


async def test_files_that_cannot_be_had_are_named_with_their_host_and_hold_up_no_other(
    gateway: Access, web: Web, display: Display, said: io.StringIO, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(client_module, "RETRY_DELAYS", (0.0,) * 3)
    web.serve("/old.safetensors", Page(b"", status=403))
    silent = Page(b"", status=503)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "images").mkdir()
    (tmp_path / "there" / "images" / "way.png").mkdir()
    artifacts = [
        artifact(web.url("/old.safetensors"), b"old", "checkpoint"),
        artifact(web.serve("/1.png", silent), b"one"),
        artifact(web.serve("/2.png", silent), b"two"),
        artifact(web.serve("/way.png", b"way"), b"way"),
        artifact(web.serve("/there.png", b"there"), b"there"),
        artifact(web.serve("/samples/1.png", b"alike"), b"alike", "sample"),
    ]
    shows(web, status="COMPLETED", output={"artifacts": artifacts})

    ended = await fetch(gateway, JOB, tmp_path / "there", display)

    lost = ["old.safetensors", "1.png", "2.png", "way.png"]
    assert ended.lost == lost
    assert json.loads((tmp_path / "there" / "summary.json").read_text())["status"] == "COMPLETED"
    assert (tmp_path / "there" / "images" / "there.png").read_bytes() == b"there"
    lines = [line for line in said.getvalue().splitlines() if not line.startswith("fetching")]
    host = web.url("").removeprefix("http://")
    assert lines[:3] == [
        f"warning: old.safetensors was not fetched from {host}: 403 Forbidden",
        f"warning: 1.png was not fetched from {host}: 503 Service Unavailable",
        f"warning: 2.png was not fetched from {host}: 503 Service Unavailable",
    ]
    assert lines[3].startswith("warning: way.png was not written: ")
    assert lines[4:] == [
        "COMPLETED",
        f"files in {tmp_path}/there/: 1 image, 1 sample",
        f"missing, 4 files: {', '.join(lost)}",
        f"{AGAIN}:  everydream fetch {JOB} --output {tmp_path}/there",
    ]
    assert [seen.path for seen in web.seen].count("/2.png") == 1


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
