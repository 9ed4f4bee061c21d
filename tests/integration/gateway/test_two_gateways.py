"""Two gateways on one PostgreSQL and one RabbitMQ: both give the same answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from shared.messaging.messages import TrainingProgressed
from shared.messaging.topology import FETCHER
from tests.integration.gateway.test_server_sent_events import (
    Event,
    comparable,
    eventful,
    following,
    save_checkpoint,
)
from tests.support.gateway_world import (
    TRAIN_ONLY,
    Answer,
    Claimed,
    World,
    eventually,
    training,
    world,
)

ROOT = "/v2/everydream-v1"
AT_ONCE = 10
SECONDS = 30


class Pair(NamedTuple):
    """Two gateways; both worlds share workers and store."""

    one: World
    other: World


@pytest.fixture
async def both(tmp_path: Path, postgres_url: str, amqp_url: str) -> AsyncIterator[Pair]:
    # The heartbeat is slow enough for workers that send none by themselves.
    shared: dict[str, Any] = {"amqp_url": amqp_url, "database_url": postgres_url, "heartbeat": 5.0}
    async with world(tmp_path, **shared) as one, world(tmp_path, **shared) as other:
        yield Pair(one, other)


async def submit(here: World, key: str, request: dict[str, Any]) -> Answer:
    headers = {"Idempotency-Key": key}
    return await here.ask("POST", f"{ROOT}/run", json=request, headers=headers)


async def test_one_idempotency_key_at_both_at_once_is_one_job(both: Pair) -> None:
    answers = await asyncio.gather(
        *(submit(here, "mine", TRAIN_ONLY) for here in both for _ in range(AT_ONCE))
    )

    assert [answer.status for answer in answers] == [200] * 2 * AT_ONCE
    (job,) = {answer.body["id"] for answer in answers}
    listed = (await both.other.ask("GET", f"{ROOT}/jobs")).body["jobs"]
    assert [each["id"] for each in listed] == [job]
    assert getattr(await both.one.get(FETCHER), "job", None) == job
    assert await nothing_more_is_asked(both)


async def nothing_more_is_asked(both: Pair) -> bool:
    """The staging of a later job is the next delivery."""
    later = await both.one.run(TRAIN_ONLY)
    return getattr(await both.one.get(FETCHER), "job", None) == later


async def test_of_two_requests_with_one_key_at_once_one_is_refused(both: Pair) -> None:
    another = {"input": {"train": {"data_url": "https://example.com/another.zip"}}}

    answers = await asyncio.gather(
        *(submit(both.one, "mine", TRAIN_ONLY) for _ in range(AT_ONCE)),
        *(submit(both.other, "mine", another) for _ in range(AT_ONCE)),
    )

    by_request = answers[:AT_ONCE], answers[AT_ONCE:]
    statuses = [{answer.status for answer in group} for group in by_request]
    assert sorted(statuses, key=min) == [{200}, {422}]
    assert len({answer.body["id"] for answer in answers if answer.status == 200}) == 1


async def test_both_stream_the_same_events_and_each_goes_on_where_the_other_was_left(
    both: Pair,
) -> None:
    job = await eventful(both.one)
    stories = [await told_by(here, job) for here in both]
    assert stories[0] == stories[1]

    for cut in range(1, len(stories[0])):
        async with following(both.one, job) as source:
            first = await source.take(cut)
        rest = await told_by(both.other, job, after=first[-1].id)
        assert ids([*first, *rest]) == ids(stories[0])


async def told_by(here: World, job: str, after: str | None = None) -> list[Event]:
    async with following(here, job, after=after) as source:
        return comparable(await source.rest())


def ids(told: list[Event]) -> list[str]:
    return [each.id for each in told]


async def test_followers_at_either_receive_new_events(both: Pair) -> None:
    job, trainer = await training(both.one)
    async with following(both.one, job) as here, following(both.other, job) as there:
        await save_checkpoint(trainer)
        for source in (here, there):
            assert (await source.until("checkpoint")).data["step"] == 4
        await trainer.finish_training()
        for source in (here, there):
            assert (await source.rest())[-1].data["status"] == "COMPLETED"


async def test_a_stream_that_is_read_at_both_gives_each_piece_once(both: Pair) -> None:
    job, trainer = await training(both.one)
    readers = [asyncio.create_task(read_to_the_end(here, job)) for here in both]
    for step in (1, 2, 3):
        await eventually(partial(tells_step, both.other, trainer, step))
    await trainer.finish_training()
    async with asyncio.timeout(SECONDS):
        pieces = [piece for read in await asyncio.gather(*readers) for piece in read]

    steps = [step for each in pieces if (step := each["output"].get("step")) is not None]
    assert sorted(set(steps)) == sorted(steps)
    assert ["train" in each["output"] for each in pieces].count(True) == 1


async def read_to_the_end(here: World, job: str) -> list[Any]:
    pieces: list[Any] = []
    while True:
        answer = (await here.ask("GET", f"{ROOT}/stream/{job}?wait=5000")).body
        pieces += answer["stream"]
        if answer["status"] == "COMPLETED" and not answer["stream"]:
            return pieces


async def tells_step(here: World, trainer: Claimed, step: int) -> bool | None:
    """Repeat, as a worker does, because not every progress is written."""
    await trainer.publish(TrainingProgressed, progress={"step": step})
    output = (await here.status(trainer.job)).get("output") or {}
    return output.get("step") == step or None


async def test_a_wait_at_one_ends_with_the_job_at_the_other(both: Pair) -> None:
    job = await both.one.run(TRAIN_ONLY)
    waiting = asyncio.create_task(both.other.ask("GET", f"{ROOT}/status-sync/{job}?wait=60000"))

    await both.one.ask("POST", f"{ROOT}/cancel/{job}")

    async with asyncio.timeout(SECONDS):
        assert (await waiting).body["status"] == "CANCELLED"


async def test_what_one_accepts_goes_on_when_it_is_gone(both: Pair) -> None:
    job, trainer = await training(both.one)

    await both.one.gateway_stops()
    await trainer.finish_training()

    assert await both.other.status_becomes(job, "COMPLETED")
