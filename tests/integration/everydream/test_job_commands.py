"""Commands for jobs that were submitted, against a server with fixed answers."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from everydream.commands import jobs, training
from everydream.image_options import Drawing
from tests.support.servers.web import Answer, Page, Web

ROOT = "/v1/everydream-v1"
JSON = {"Content-Type": "application/json"}


def answers(web: Web, operation: str, **body: Any) -> None:
    web.answer(Answer(200, JSON, json.dumps(body).encode()), path=f"{ROOT}{operation}")


def shows(web: Web, operation: str, **body: Any) -> None:
    web.serve(f"{ROOT}{operation}", Page(json.dumps(body).encode(), headers=JSON))


async def test_a_key_that_may_only_submit_sees_what_its_cancel_has_done(
    web: Web, capsys: pytest.CaptureFixture[str]
) -> None:
    answers(web, "/cancel/7b1c", id="7b1c", status="CANCELLED")
    web.serve(f"{ROOT}/status/7b1c", Page(b'{"error": "no"}', status=403, headers=JSON))

    await asyncio.to_thread(jobs.cancel, "7b1c", yes=True, url=web.url(), key="k")

    assert capsys.readouterr().out == "CANCELLED\n"


async def test_a_job_that_has_ended_otherwise_is_said_to_be_too_late_to_cancel(
    web: Web, capsys: pytest.CaptureFixture[str]
) -> None:
    answers(web, "/cancel/7b1c", id="7b1c", status="COMPLETED")

    await asyncio.to_thread(jobs.cancel, "7b1c", yes=True, url=web.url(), key="k")

    assert capsys.readouterr().out == "7b1c has ended as COMPLETED: nothing to cancel\n"


@pytest.mark.parametrize(("status", "code"), [("FAILED", 1), ("IN_QUEUE", 1), ("COMPLETED", 0)])
async def test_fetching_a_job_that_is_not_completed_is_no_success(
    web: Web, capsys: pytest.CaptureFixture[str], tmp_path: Path, status: str, code: int
) -> None:
    asked = {"train": {"data_url": "https://example.com/photos.zip"}}
    shows(web, "/status/7b1c", id="7b1c", status=status, input=asked, output={})

    ended = await asyncio.to_thread(
        training.fetch, "7b1c", output=tmp_path / "there", url=web.url(), key="k"
    )

    assert ended == code
    assert ("not there" in capsys.readouterr().err) is bool(code)


@pytest.mark.parametrize("as_json", [True, False])
async def test_a_job_that_is_not_waited_for_is_named_once(
    web: Web, capsys: pytest.CaptureFixture[str], *, as_json: bool
) -> None:
    shows(web, "/health")
    answers(web, "/run", id="7b1c", status="IN_QUEUE")

    await asyncio.to_thread(
        training.draw, "org/name", drawing=Drawing(("one",)), no_wait=True, json=as_json,
        url=web.url(), key="k",
    )  # fmt: skip

    said = capsys.readouterr()
    assert (said.out + said.err).count("7b1c") == 1


async def test_what_is_said_to_be_next_reaches_the_same_server(
    web: Web, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers(web, "/retry/7b1c", id="7b1c", status="IN_QUEUE")
    at = web.url().rstrip("/")

    await asyncio.to_thread(jobs.retry, "7b1c", url=at, key="k")
    assert capsys.readouterr().out == f"IN_QUEUE; watch it: everydream follow 7b1c --url {at}\n"

    monkeypatch.setenv("EVERYDREAM_URL", at)
    answers(web, "/retry/7b1c", id="7b1c", status="IN_QUEUE")
    await asyncio.to_thread(jobs.retry, "7b1c", url=at, key="k")
    assert capsys.readouterr().out == "IN_QUEUE; watch it: everydream follow 7b1c\n"
