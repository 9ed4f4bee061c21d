"""A client's list of jobs: the test reads it page by page."""

from __future__ import annotations

import asyncio
import base64
import time
from collections import Counter
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from services.gateway.database.connection import Database
from services.gateway.jobs.record import Job
from services.gateway.jobs.rows import row_of
from services.gateway.request_owner import request_owner
from services.gateway.web.authentication import digest_of
from shared.messaging.messages import SamplesGenerated, StageFailed, TrainingProgressed
from shared.messaging.topology import FETCHER, TRAINER
from tests.support.gateway_world import (
    API_KEY,
    OTHER_KEY,
    REQUEST,
    TRAIN_ONLY,
    World,
    eventually,
    training,
    world,
)

FEW = 3
"""Queries of a kind: what is remembered for a moment may be read anew."""
ROOT = "/v2/everydream-v1"
ALL = "IN_QUEUE, IN_PROGRESS, COMPLETED, FAILED, CANCELLED, TIMED_OUT"


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as one:
        yield one


async def listed(here: World, query: str = "", **more: Any) -> dict[str, Any]:
    answer = await here.ask("GET", f"{ROOT}/jobs{query}", **more)
    assert answer.status == 200, answer
    body: dict[str, Any] = answer.body
    return body


async def names(here: World, query: str = "", **more: Any) -> list[str]:
    return [each["id"] for each in (await listed(here, query, **more))["jobs"]]


async def failed(here: World) -> str:
    job = await here.run()
    submitted = await here.get(FETCHER)
    await (await here.claim(job, "staging")).stage_dataset(submitted)
    await here.get(TRAINER)
    trainer = await here.claim(job, "training", gpu="card")
    await trainer.publish(StageFailed, kind="refused", reason="the images are gone")
    await here.status_becomes(job, "FAILED")
    return job


async def test_ones_own_jobs_come_newest_first(here: World) -> None:
    jobs = [await here.run() for _ in range(3)]
    theirs = await here.ask("POST", f"{ROOT}/run", json=REQUEST, key=OTHER_KEY)

    assert await names(here) == jobs[::-1]
    assert await names(here, key=OTHER_KEY) == [theirs.body["id"]]
    assert (await here.ask("GET", f"{ROOT}/jobs", key="none")).status == 401


async def test_an_entry_shows_the_state_of_the_job_and_its_times(here: World) -> None:
    before = time.time()
    job = await failed(here)
    waiting = await here.run()

    line, last = (await listed(here))["jobs"][::-1]

    status = await here.status(job)
    common = ("id", "status", "delayTime", "executionTime", "gpu", "error")
    assert {name: line.pop(name) for name in common} == {name: status[name] for name in common}
    times = [
        datetime.fromisoformat(line.pop(name)).timestamp()
        for name in ("created_at", "started_at", "ended_at")
    ]
    assert before - 0.001 <= times[0] <= times[1] <= times[2] <= time.time()
    assert line == {"kind": "train", "draws": True}
    assert last["queue"] == {"position": 1, "estimated_start": None}
    assert last["progress"]["stage"] == "staging"
    assert (last["id"], last["started_at"], last["ended_at"]) == (waiting, None, None)
    assert "error" not in last


async def test_an_entry_shows_where_a_live_job_stands_without_asking_for_each(here: World) -> None:
    """Also a picture and the number of warnings, as the job's status has them."""
    job, trainer = await training(here)
    for _ in range(2):
        await here.run()
    await trainer.publish(TrainingProgressed, progress={"step": 7, "steps": 9, "loss": 0.5})
    sample = await trainer.sample(1, 0)
    await here.publish(SamplesGenerated(job=job, samples=(sample,), warnings=("slow", "dark")))

    async def shows_it() -> dict[str, Any] | None:
        status = await here.status(job)
        return status if status["output"]["step"] and status["output"]["samples"] else None

    status = await eventually(shows_it)

    *waiting, running = (await listed(here))["jobs"]

    assert status["output"] == {**status["output"], **running["progress"]}
    assert running["progress"]["step"] == 7
    assert running["warnings"] == len(status["output"]["warnings"]) == 2
    assert path_of(running["preview"]) == path_of(status["output"]["samples"][0]["thumbnail"])
    assert "queue" not in running
    told = [(await here.status(each["id"]))["queue"] for each in waiting]
    assert [each["queue"] for each in waiting] == told
    assert [each["position"] for each in told] == [2, 1]


def path_of(link: str) -> str:
    return link.partition("?")[0]


async def test_a_page_takes_as_few_queries_however_many_jobs_it_has(
    here: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some of them have had their turn and wait for a worker, others wait for their turn."""
    await asyncio.gather(*(here.run() for _ in range(30)))
    asked: list[str] = []
    every = Database.all

    async def noted(self: Database, statement: Any, *values: Any) -> Any:
        if request_owner() is not None:  # the gateway itself asks meanwhile, too
            asked.append(str(statement))
        return await every(self, statement, *values)

    monkeypatch.setattr(Database, "all", noted)
    page = await listed(here, "?limit=30")

    assert {each["queue"]["position"] for each in page["jobs"]} == {*range(1, 31)}
    assert sum("row_number" in statement for statement in asked) == 1
    assert max(Counter(asked).values()) <= FEW


async def test_pages_follow_one_another_while_new_jobs_come(here: World) -> None:
    jobs = [await here.run() for _ in range(5)][::-1]

    first = await listed(here, "?limit=2")
    await here.run()
    second = await listed(here, f"?limit=2&cursor={first['next']}")
    third = await listed(here, f"?limit=2&cursor={second['next']}")

    pages = [[each["id"] for each in page["jobs"]] for page in (first, second, third)]
    assert pages == [jobs[:2], jobs[2:4], jobs[4:]]
    assert third["next"] is None


async def test_a_page_that_just_holds_all_is_the_last(here: World) -> None:
    await asyncio.gather(*(here.run() for _ in range(21)))

    assert (await listed(here, "?limit=21"))["next"] is None
    assert len(await names(here)) == 20
    assert await listed(here, key=OTHER_KEY) == {"jobs": [], "next": None}


@pytest.mark.parametrize(
    "query",
    [
        "?status=FAILED,CANCELLED",
        "?status=FAILED&status=CANCELLED",
        "?status=FAILED,FAILED,CANCELLED",
    ],
)
async def test_statuses_choose(here: World, query: str) -> None:
    broken, cancelled = await failed(here), await here.run()
    await here.ask("POST", f"{ROOT}/cancel/{cancelled}")
    waiting = await here.run()

    assert await names(here, query) == [cancelled, broken]
    assert await names(here, "?status=IN_QUEUE") == [waiting]
    assert await names(here, "?status=COMPLETED") == []
    assert await names(here, f"?id={broken[:8]}") == [broken]
    assert await names(here, f"?status=IN_QUEUE&id={broken[:8]}") == []


async def test_kinds_choose_page_by_page(here: World) -> None:
    """Also among jobs of 0.1.0, whose rows do not tell theirs."""
    now = time.time() - 60
    for number, trains in enumerate((True, False)):
        old = Job(
            id=f"old-{number}", owner=digest_of(API_KEY), status="COMPLETED", input={},
            trains=trains, draws=not trains, created_at=now + number, ended_at=now,
        )  # fmt: skip
        await here.jobs.insert(msgspec.structs.replace(row_of(old, 1), line=None), [])
    checked = (await here.ask("POST", f"{ROOT}/dataset/check", json=TRAIN_ONLY)).body["id"]
    trained = await here.run(TRAIN_ONLY)
    drawn = await here.run({"input": {"model": "org/name", "inference": {"prompt": "a cat"}}})

    assert await names(here, "?kind=train") == [trained, "old-0"]
    assert await names(here, "?kind=draw&status=COMPLETED") == ["old-1"]
    first = await listed(here, "?kind=check,draw&limit=2")
    assert [each["id"] for each in first["jobs"]] == [drawn, checked]
    assert [each["draws"] for each in first["jobs"]] == [True, False]
    assert await names(here, f"?kind=check&kind=draw&cursor={first['next']}") == ["old-1"]


async def test_an_unknown_parameter_gets_the_nearest_known_name(here: World) -> None:
    answer = await here.ask("GET", f"{ROOT}/jobs?stats=FAILED")

    assert answer.status == 400
    assert answer.body["mistakes"] == ["stats: no such parameter; did you mean status?"]


async def test_all_mistakes_are_reported_at_once(here: World) -> None:
    query = "status=DONE,FAILED&kind=paint&limit=0&cursor=x&page=2&id=9%25"
    answer = await here.ask("GET", f"{ROOT}/jobs?{query}")

    assert answer.status == 400
    assert answer.body["mistakes"] == [
        "page: no such parameter; known: status, kind, id, limit, cursor",
        f"status: expected one of {ALL}, got 'DONE'",
        "kind: expected one of train, draw, check, got 'paint'",
        "id: expected the first of a job id's characters 0-9, a-f and -, got '9%'",
        "limit: expected an integer from 1 to 100, got '0'",
        "cursor: expected what a page gave as next, got 'x'",
    ]


@pytest.mark.parametrize("limit", ["", "101", "-1", "1.0", "²", "9" * 5000])
async def test_a_limit_out_of_bounds_is_refused(here: World, limit: str) -> None:
    answer = await here.ask("GET", f"{ROOT}/jobs", params={"limit": limit})

    assert answer.status == 400
    assert "limit: expected an integer from 1 to 100" in answer.body["error"]


@pytest.mark.parametrize(
    "text",
    ['["now","a"]', "[1.0]", '[1.0,"a","b"]', '[1.0,"\\u0000"]', "{}", "nonsense", '[1e999,"a"]'],
)
async def test_a_cursor_of_somebodys_own_making_is_refused(here: World, text: str) -> None:
    cursor = base64.urlsafe_b64encode(text.encode()).decode()

    answer = await here.ask("GET", f"{ROOT}/jobs", params={"cursor": cursor})

    assert answer.status == 400
    assert "cursor: expected what a page gave as next" in answer.body["error"]


async def test_without_the_database_there_is_no_list(here: World) -> None:
    here.jobs.unavailable = True

    assert (await here.ask("GET", f"{ROOT}/jobs")).status == 503
