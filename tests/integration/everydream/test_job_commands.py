"""Commands for jobs that were submitted, against a server with fixed answers."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from everydream.commands import jobs
from tests.support.servers.web import Answer, Page, Web

ROOT = "/v1/everydream-v1"
JSON = {"Content-Type": "application/json"}


def answers(web: Web, operation: str, **body: Any) -> None:
    web.answer(Answer(200, JSON, json.dumps(body).encode()), path=f"{ROOT}{operation}")


async def test_a_key_that_may_only_submit_sees_what_its_cancel_has_done(
    web: Web, capsys: pytest.CaptureFixture[str]
) -> None:
    answers(web, "/cancel/7b1c", id="7b1c", status="CANCELLED")
    web.serve(f"{ROOT}/status/7b1c", Page(b'{"error": "no"}', status=403, headers=JSON))

    await asyncio.to_thread(jobs.cancel, "7b1c", yes=True, url=web.url(), key="k")

    assert capsys.readouterr().out == "CANCELLED\n"


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
