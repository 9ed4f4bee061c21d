"""The curves of a training by HTTP: the test stores the pieces, as a trainer does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from services.gateway.endpoints import metrics
from shared.errors import NotFound, Unavailable
from shared.storage.metrics import MetricsPiece, metrics_of, piece_key
from tests.support.gateway_world import OTHER_KEY, World, eventually, world

ROOT = "/v2/everydream-v1"


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as one:
        yield one


async def store(here: World, job: str, *steps: int, attempt: int = 1, **numbers: float) -> None:
    """A piece, with a point for each step."""
    lines = [{"time": 1.5, "step": step, "epoch": 0, **numbers} for step in steps]
    piece = MetricsPiece(attempt=attempt, first_step=steps[0])
    await here.store.put(piece_key(job, piece), msgspec.json.Encoder().encode_lines(lines))


async def curve(here: World, job: str, query: str = "") -> dict[str, Any]:
    answer = await here.ask("GET", f"{ROOT}/jobs/{job}/metrics{query}")
    assert answer.status == 200, answer
    body: dict[str, Any] = answer.body
    return body


async def steps(here: World, job: str, query: str = "") -> list[int]:
    return [point["step"] for point in (await curve(here, job, query))["points"]]


async def test_a_curve_has_the_numbers_that_there_are_and_its_last_step(here: World) -> None:
    job = await here.run()
    await store(here, job, 0, validation_loss=0.5)
    await store(here, job, 4, loss=0.25, lr=1e-6, text_encoder_lr=5e-7, images_per_second=3.5)

    assert await curve(here, job) == {
        "points": [
            {"step": 0, "epoch": 0, "time": 1.5, "validation_loss": 0.5},
            {"step": 4, "epoch": 0, "time": 1.5, "loss": 0.25, "lr": 1e-6,
             "text_encoder_lr": 5e-7, "images_per_second": 3.5},
        ],
        "last_step": 4,
    }  # fmt: skip
    assert await curve(here, job, "?after=4") == {"points": [], "last_step": 4}


async def test_a_job_without_a_training_has_an_empty_curve(here: World) -> None:
    assert await curve(here, await here.run()) == {"points": [], "last_step": None}


async def test_of_a_resumed_training_each_step_is_given_once_from_the_newest_attempt(
    here: World,
) -> None:
    job = await here.run()
    await store(here, job, 1, 2, 3, loss=0.1)
    await store(here, job, 4, 5, 6, loss=0.1)
    await store(here, job, 7, loss=0.1)
    await store(here, job, 3, 5, attempt=2, loss=0.2)

    points = (await curve(here, job))["points"]

    found = [(point["step"], point["loss"]) for point in points]
    assert found == [(1, 0.1), (2, 0.1), (3, 0.2), (5, 0.2)]


async def test_who_goes_on_from_a_step_costs_the_store_the_pieces_after_it_alone(
    here: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, read = await here.run(), []
    for first in range(0, 60, 10):
        await store(here, job, *range(first, first + 10))
    get = here.store.get

    async def counted(key: str) -> bytes:
        read.append(key.rpartition("/")[2])
        return await get(key)

    monkeypatch.setattr(here.store, "get", counted)

    assert await steps(here, job, "?after=44") == [*range(45, 60)]
    assert read == ["40.jsonl", "50.jsonl"]


async def test_a_long_curve_is_thinned_to_the_points_that_are_asked_for(here: World) -> None:
    job = await here.run()
    for first in range(0, 1000, 100):
        await store(here, job, *range(first, first + 100))

    assert len(await steps(here, job)) == 1000
    thinned = await steps(here, job, "?points=20")
    assert len(thinned) <= 21
    assert (thinned[0], thinned[-1]) == (0, 999)


async def test_of_a_very_long_curve_an_answer_has_the_beginning_and_the_next_one_goes_on(
    here: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "MOST_PIECES", 2)
    job = await here.run()
    for first in range(0, 50, 10):
        await store(here, job, *range(first, first + 10))

    found = await steps(here, job)
    assert found == [*range(20)]
    while more := await steps(here, job, f"?after={found[-1]}"):
        found += more

    assert found == [*range(50)]


async def test_mistakes_in_the_parameters_are_named_all_at_once(here: World) -> None:
    job = await here.run()

    answer = await here.ask("GET", f"{ROOT}/jobs/{job}/metrics?after=-1&points=5001&until=7")

    assert answer.status == 400
    assert answer.body["mistakes"] == [
        "until: no such parameter; known: after, points",
        "after: expected an integer from 0 to 999999999, got '-1'",
        "points: expected an integer from 1 to 5000, got '5001'",
    ]


@pytest.mark.parametrize(
    "query", ["after=", "after=1e3", "after=0000000001", "points=0", "points=²"]
)
async def test_what_is_no_number_is_a_mistake(here: World, query: str) -> None:
    job = await here.run()

    assert (await here.ask("GET", f"{ROOT}/jobs/{job}/metrics?{query}")).status == 400


async def test_a_curve_is_the_owners_alone(here: World) -> None:
    job = await here.run()
    path = f"{ROOT}/jobs/{job}/metrics"

    assert (await here.ask("GET", path, key=OTHER_KEY)).status == 404
    assert (await here.ask("GET", f"{ROOT}/jobs/unknown/metrics")).status == 404


@pytest.mark.parametrize(("error", "status"), [(Unavailable("away"), 503), (NotFound("gone"), 404)])
async def test_a_store_that_is_away_or_a_job_that_is_removed_meanwhile_is_told(
    here: World, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int
) -> None:
    job = await here.run()
    await store(here, job, 1)

    async def fails(_key: str) -> bytes:
        raise error

    monkeypatch.setattr(here.store, "get", fails)

    assert (await here.ask("GET", f"{ROOT}/jobs/{job}/metrics")).status == status


async def test_a_curve_goes_with_its_job(here: World) -> None:
    job = await here.run()
    await store(here, job, 1)

    assert (await here.ask("DELETE", f"{ROOT}/jobs/{job}")).status == 200

    async def is_gone() -> bool:
        return not [each async for each in here.store.list(metrics_of(job))]

    assert await eventually(is_gone)
