"""What a gateway shows on its port for operators, while jobs go through it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from shared.messaging.messages import StageFailed, StagingDue, StagingInterrupted
from shared.messaging.topology import FETCHER, TRAINER
from tests.support.gateway_world import TRAIN_ONLY, World, eventually, world
from tests.support.scraping import Port, Samples, parsed, port_of_this_process, value

LOW = {**TRAIN_ONLY, "policy": {"lowPriority": True}}


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as one:
        yield one


@pytest.fixture
async def port(here: World) -> AsyncIterator[Port]:
    async with port_of_this_process(here.settings) as one:
        yield one


async def scraped_when(port: Port, name: str, is_: float, **labels: str) -> Samples:
    """The first samples in which this series has this value."""

    async def look() -> Samples | None:
        text = await port.text()
        return parsed(text) if value(parsed(text, name), name, **labels) == is_ else None

    return await eventually(look)


def grown(before: Samples, after: Samples, name: str, **labels: str) -> float:
    return value(after, name, **labels) - value(before, name, **labels)


async def test_a_job_is_seen_to_wait_to_be_worked_on_and_to_end(here: World, port: Port) -> None:
    at_first = await port.scrape()
    job = await here.run(LOW)
    waiting = {"stage": "staging", "state": "waiting"}
    seen = await scraped_when(port, "everydream_stage_jobs", 1, **waiting)
    assert value(seen, "everydream_stage_open_jobs", stage="staging") == 1
    assert value(seen, "everydream_stage_priority_jobs", priority="low", **waiting) == 1
    assert value(seen, "everydream_stage_priority_jobs", priority="normal", **waiting) == 0
    assert value(seen, "everydream_stage_oldest_waiting_seconds", stage="staging") > 0
    assert value(seen, "everydream_database_up") == 1

    submitted = await here.get(FETCHER)
    claimed = await here.claim(job, "staging")
    claimed_now = {"stage": "staging", "state": "claimed"}
    seen = await scraped_when(port, "everydream_stage_jobs", 1, **claimed_now)
    assert value(seen, "everydream_stage_jobs", **waiting) == 0
    assert value(seen, "everydream_stage_open_jobs", stage="staging") == 1

    await claimed.stage_dataset(submitted)
    await here.get(TRAINER)
    trainer = await here.claim(job, "training", gpu="card")
    await trainer.finish_training()
    await here.status_becomes(job, "COMPLETED")
    fact = {"type": "checkpoint.final"}
    recorded = value(at_first, "everydream_fact_record_seconds_count", **fact) + 1
    await scraped_when(port, "everydream_fact_record_seconds_count", recorded, **fact)
    seen = await scraped_when(port, "everydream_stage_open_jobs", 0, stage="training")
    assert grown(at_first, seen, "everydream_jobs_admitted_total", line="train") == 1
    assert grown(at_first, seen, "everydream_stage_attempts_total", stage="training") == 1
    done = {"stage": "training", "outcome": "done"}
    assert grown(at_first, seen, "everydream_stage_seconds_count", **done) == 1
    of_job = {"line": "train", "status": "completed"}
    assert grown(at_first, seen, "everydream_job_seconds_count", **of_job) == 1
    assert grown(at_first, seen, "everydream_job_wait_seconds_count", line="train") == 1
    assert value(seen, "everydream_recorder_active") == 1
    assert 0 <= value(seen, "everydream_recorder_lag_seconds") < 60
    asked = {"method": "GET", "route": "/status/{job}", "code": "200"}
    assert grown(at_first, seen, "everydream_http_request_seconds_count", **asked) >= 1


async def test_attempts_that_fail_are_counted_by_their_reason(here: World, port: Port) -> None:
    at_first = await port.scrape()
    failures: list[tuple[Any, str]] = [
        ("passing: out of memory; settings that need less: none", "out_of_memory"),
        ("passing: the server answered 500", "failed"),
        ("refused: the address is private", "refused"),
    ]
    job = await here.run(TRAIN_ONLY)
    for number, (text, _) in enumerate(failures):
        kind, _, reason = text.partition(": ")
        here.clock.ahead += 1000.0 * number  # past the pause before the next try
        assert isinstance(await here.get(FETCHER), StagingDue)
        claimed = await here.claim(job, "staging")
        await claimed.publish(StageFailed, kind=kind, reason=reason)
    await here.status_becomes(job, "FAILED")

    seen = await port.scrape()
    for _, reason in failures:
        labels = {"stage": "staging", "reason": reason}
        assert grown(at_first, seen, "everydream_stage_failures_total", **labels) == 1
    failed = {"stage": "staging", "outcome": "failed"}
    assert grown(at_first, seen, "everydream_stage_seconds_count", **failed) == 3


async def test_work_that_is_handed_over_is_no_failure(here: World, port: Port) -> None:
    at_first = await port.scrape()
    job = await here.run(TRAIN_ONLY)
    await here.get(FETCHER)
    await (await here.claim(job, "staging")).publish(StagingInterrupted)
    assert isinstance(await here.get(FETCHER), StagingDue)

    seen = await port.scrape()
    handed_over = {"stage": "staging", "outcome": "interrupted"}
    assert grown(at_first, seen, "everydream_stage_seconds_count", **handed_over) == 1
    assert not any(
        grown(at_first, seen, name, **dict(labels))
        for name, labels in seen
        if name == "everydream_stage_failures_total"
    )


async def test_no_series_names_a_job_a_key_or_a_path_with_an_id(here: World, port: Port) -> None:
    job = await here.run(TRAIN_ONLY)
    await here.ask("GET", f"/v1/everydream-v1/status/{job}")
    await here.ask("GET", f"/v1/everydream-v1/nothing-at/{job}")
    await here.ask("GET", f"/{job}")
    async with here.session.request("PROPFIND", here.url(f"/{job}")) as answer:
        assert answer.status in {404, 405}
    text = await port.text()
    assert job not in text
    assert "PROPFIND" not in text
    for key in here.settings.api_keys:
        assert key not in text


async def test_a_probe_for_liveness_needs_neither_database_nor_broker(
    here: World, port: Port
) -> None:
    await eventually(lambda: is_ready(port))
    here.jobs.unavailable = True
    for path in ("/livez", "/healthz"):
        expected = 200 if path == "/livez" else 503
        assert (await port.probe(path))[0] == expected
        async with here.session.get(here.url(path)) as answer:
            assert answer.status == expected
    assert await port.lacking() == {"database": "does not answer"}
    assert value(await port.scrape(), "everydream_ready") == 0
    here.jobs.unavailable = False
    await eventually(lambda: is_ready(port))
    assert value(await port.scrape(), "everydream_ready") == 1


async def is_ready(port: Port) -> bool:
    return not await port.lacking()
