"""What belongs to one request: its id, its trace, and its lines in the log."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from shared.messaging.messages import JobRequested, StageFailed
from shared.messaging.topology import FETCHER, NOTIFIER_WEBHOOKS
from shared.telemetry import logs, tracing
from tests.support.gateway_world import (
    DEADLINE,
    REQUEST,
    TRAIN_ONLY,
    Answer,
    World,
    training,
    world,
)

ROOT = "/v1/everydream-v1"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
CONTEXT = tracing.Context(TRACEPARENT, "shop=cart,other=1")
OTHER = tracing.Context(f"00-{TRACE[::-1]}-{PARENT}-00", "fetcher=1")
FROM_CLIENT = CONTEXT.headers
MOST_AHEAD = 12
"""More than are released at once while nobody works."""


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path, access_log=True) as one:
        yield one


async def test_a_request_s_own_id_is_in_its_answer_and_in_each_of_its_lines(
    here: World, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure("gateway")
    await here.ask("GET", f"{ROOT}/health", headers={"X-Request-Id": "other"})
    answer = await here.ask(
        "POST",
        f"{ROOT}/run",
        json={"input": {"train": {"data_url": "https://example.com/dataset.zip"}}},
        headers={"X-Request-Id": "shop/order-42"},
    )
    job = answer.body["id"]
    await here.ask("GET", f"{ROOT}/status/{job}", headers={"X-Request-Id": "poll"})

    assert id_of(answer) == "shop/order-42"
    lines = written(capsys)
    admitted, request = (line for line in lines if line.get("request_id") == "shop/order-42")
    assert (admitted["event"], admitted["job"]) == ("job_admitted", job)
    assert (request["event"], request["method"], request["status"]) == ("request", "POST", 200)
    assert request["path"] == f"{ROOT}/run"
    assert 0 < request["seconds"] < 60
    (poll,) = (line for line in lines if line.get("request_id") == "poll")
    assert poll["job"] == job


@pytest.mark.parametrize("given", ["", "x" * 129, "two words", "émile", "<script>"])
async def test_an_id_that_is_none_is_replaced(here: World, given: str) -> None:
    answer = await here.ask("GET", f"{ROOT}/status/nothing", headers={"X-Request-Id": given})

    assert answer.status == 404
    assert re.fullmatch("[0-9a-f]{32}", id_of(answer))


async def test_without_an_id_of_its_own_a_request_has_that_of_its_trace(here: World) -> None:
    answer = await here.ask("GET", f"{ROOT}/health", headers={"traceparent": TRACEPARENT})

    assert id_of(answer) == TRACE


async def test_what_no_route_takes_has_an_id_and_a_line_too(
    here: World, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure("gateway")
    answer = await here.ask("GET", "/nowhere?secret=1", headers={"X-Request-Id": "lost"})

    assert (answer.status, id_of(answer)) == (404, "lost")
    (line,) = written(capsys)
    assert (line["status"], line["path"], line["request_id"]) == (404, "/nowhere", "lost")


# --- The trace, which goes on whether or not somebody collects it


async def test_a_request_s_trace_goes_on_to_the_job_s_messages_and_workers(here: World) -> None:
    answer = await here.ask("POST", f"{ROOT}/run", json=REQUEST, headers=FROM_CLIENT)
    assert {name: answer.headers[name] for name in FROM_CLIENT} == FROM_CLIENT
    job = answer.body["id"]
    async with asyncio.timeout(DEADLINE):
        submitted = await here.bus.get(FETCHER)
    await submitted.ack()
    fetcher = await here.claim(job, "staging")

    assert tracing.context_of(submitted.envelope) == CONTEXT
    assert tracing.context_of(fetcher.grant) == CONTEXT


async def test_a_job_that_waits_for_its_turn_keeps_its_trace(here: World) -> None:
    """The gateway releases it by itself, long after the request."""
    jobs = [await here.run() for _ in range(MOST_AHEAD)]
    answer = await here.ask("POST", f"{ROOT}/run", json=REQUEST, headers=FROM_CLIENT)
    late = answer.body["id"]
    assert (await here.jobs.get(late)).released_at is None
    for job in jobs:
        await here.ask("POST", f"{ROOT}/cancel/{job}")

    async with asyncio.timeout(DEADLINE):
        while (submitted := await here.bus.get(FETCHER)).message.job != late:
            await submitted.ack()
    await submitted.ack()
    assert tracing.context_of(submitted.envelope) == CONTEXT


async def test_what_a_fact_causes_belongs_to_its_trace_and_a_webhook_to_the_request_s(
    here: World,
) -> None:
    request = {**TRAIN_ONLY, "webhook": "https://example.com/hook"}
    answer = await here.ask("POST", f"{ROOT}/run", json=request, headers=FROM_CLIENT)
    await here.get(FETCHER)
    fetcher = await here.claim(answer.body["id"], "staging")
    with tracing.within(OTHER):
        await fetcher.publish(StageFailed, kind="passing", reason="the server is away")
    async with asyncio.timeout(DEADLINE):
        again = await here.bus.get(FETCHER)
    await again.ack()
    fetcher = await here.claim(answer.body["id"], "staging")
    with tracing.within(OTHER):
        await fetcher.publish(StageFailed, kind="refused", reason="there is no zip")
    async with asyncio.timeout(DEADLINE):
        due = await here.bus.get(NOTIFIER_WEBHOOKS)
    await due.ack()

    assert tracing.context_of(again.envelope) == OTHER
    assert tracing.context_of(fetcher.grant) == CONTEXT
    assert tracing.context_of(due.envelope) == CONTEXT


async def test_another_run_of_a_job_belongs_to_the_request_that_asked_for_it(here: World) -> None:
    job, trainer = await training(here)
    await trainer.publish(StageFailed, kind="refused", reason="the images are gone")
    await here.status_becomes(job, "FAILED")

    await here.ask("POST", f"{ROOT}/retry/{job}", headers=FROM_CLIENT)

    assert tracing.context_of((await here.claim(job, "training")).grant) == CONTEXT


async def test_a_direct_producer_s_trace_goes_on_too(here: World) -> None:
    with tracing.within(CONTEXT):
        await here.bus.publish(JobRequested(request=REQUEST))

    async with asyncio.timeout(DEADLINE):
        submitted = await here.bus.get(FETCHER)
    await submitted.ack()
    assert tracing.context_of(submitted.envelope) == CONTEXT


def written(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def id_of(answer: Answer) -> str:
    (found,) = (text for name, text in answer.headers.items() if name.lower() == "x-request-id")
    return found
