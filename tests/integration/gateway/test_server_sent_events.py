"""Following a job: every event once, in order, wherever the connection is cut."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import aiohttp
import msgspec
import pytest

from services.gateway.app import Gateway
from services.gateway.endpoints import server_sent_events
from services.gateway.jobs import change_notifier
from services.gateway.key_ports import StoredKey
from services.gateway.ports import StoredEvent
from services.gateway.web import rate_limits
from services.gateway.web.authentication import digest_of
from services.gateway.web.rate_limits import Rate
from shared.messaging.messages import CheckpointSaved, SamplesGenerated, TrainingProgressed
from shared.service_process import closing
from tests.support.gateway_world import (
    API_KEY,
    KEY,
    OTHER_KEY,
    TRAIN_ONLY,
    World,
    eventually,
    running,
    training,
    without_signatures,
    world,
)

ROOT = "/v2/everydream-v1"
SECONDS = 30


@dataclass
class Event:
    """One event as a client reads it."""

    id: str
    """Empty: it has none."""
    kind: str
    data: dict[str, Any]


class Source:
    """A connection to ``/events``, read as the HTML standard says."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self.answer = answer
        self.comments = 0

    async def next(self) -> Event | None:
        """The next event; None: the stream has ended."""
        fields: dict[str, str] = {}
        async with asyncio.timeout(SECONDS):
            while line := (await self.answer.content.readline()).decode():
                name, _, value = line.removesuffix("\n").partition(": ")
                if name == ":":
                    self.comments += 1
                elif name:
                    fields[name] = value
                elif fields:
                    return Event(fields.get("id", ""), fields["event"], json.loads(fields["data"]))
        return None

    async def take(self, number: int) -> list[Event]:
        return [told for _ in range(number) if (told := await self.next())]

    async def rest(self) -> list[Event]:
        found = []
        while told := await self.next():
            found.append(told)
        return found

    async def until(self, kind: str) -> Event:
        while told := await self.next():
            if told.kind == kind:
                return told
        raise AssertionError(f"the stream has ended without {kind}")


@asynccontextmanager
async def following(
    here: World, job: str, *, after: str | None = None, gateway: Gateway | None = None
) -> AsyncIterator[Source]:
    """Connect, and disconnect at the end."""
    headers = {"Authorization": f"Bearer {API_KEY}"}
    if after is not None:
        headers["Last-Event-ID"] = after
    url = f"http://127.0.0.1:{(gateway or here.gateway).port}{ROOT}/events/{job}"
    async with here.session.get(url, headers=headers) as answer:
        assert answer.status == 200, await answer.text()
        yield Source(answer)
        answer.close()


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as one:
        yield one


async def save_checkpoint(trainer: Any) -> None:
    artifact = await trainer.put(
        f"jobs/{trainer.job}/training/1/job-ep01.safetensors", "checkpoint"
    )
    await trainer.publish(CheckpointSaved, artifact=artifact, step=4, epoch=1)


async def show_samples(here: World, trainer: Any) -> None:
    samples = (await trainer.sample(0, 0), await trainer.sample(0, 1))
    await here.publish(SamplesGenerated(job=trainer.job, samples=samples))


async def eventful(here: World) -> str:
    """An ended job that had every kind of event."""
    job, trainer = await training(here)
    await show_samples(here, trainer)
    await save_checkpoint(trainer)
    await trainer.finish_training()
    await here.status_becomes(job, "COMPLETED")
    return job


def kinds(told: list[Event]) -> list[str]:
    return [each.kind for each in told]


def comparable(told: list[Event]) -> list[Event]:
    """The same events, without what each answer signs anew."""
    return [replace(each, data=without_signatures(each.data)) for each in told]


# --- The whole story


async def test_a_job_that_has_ended_is_streamed_from_its_beginning_to_its_end(here: World) -> None:
    job = await eventful(here)

    async with following(here, job) as source:
        told = await source.rest()
        headers = source.answer.headers

    assert headers["Content-Type"] == "text/event-stream"
    assert (headers["Cache-Control"], headers["X-Accel-Buffering"]) == ("no-store", "no")
    assert kinds(told) == [
        *("stage", "status"),  # staging waits
        *("stage", "stage", "stage", "dataset"),  # is claimed, is done; training waits
        *("stage", "status"),  # is claimed
        *("sample", "sample", "checkpoint"),
        *("stage", "checkpoint", "status"),
    ]
    assert told[0].id == "1.0"
    assert told[-1].data["status"] == "COMPLETED"
    assert all(each.data["at"].endswith("Z") for each in told)


async def test_files_are_links_that_hold(here: World) -> None:
    job = await eventful(here)

    async with following(here, job) as source:
        told = [each for each in await source.rest() if "name" in each.data]

    assert kinds(told) == ["sample", "sample", "checkpoint", "checkpoint"]
    assert [each.data.get("final") for each in told] == [None, None, None, True]
    for each in told:
        assert "key" not in each.data
        path = each.data["url"].removeprefix(here.settings.public_url)
        async with here.session.get(here.url(path)) as file:
            assert file.status == 200
            assert (await file.text()).endswith(each.data["name"])


async def test_events_come_while_the_job_goes_on_and_end_with_it(here: World) -> None:
    job, trainer = await training(here)

    async with following(here, job) as source:
        await trainer.publish(TrainingProgressed, progress={"step": 3, "steps": 8})
        progress = await source.until("progress")
        assert progress.data == {"stage": "training", "step": 3, "steps": 8}
        assert re.fullmatch(r"\d+-1", progress.id)
        await trainer.finish_training()
        rest = await source.rest()

    assert kinds(rest) == ["stage", "checkpoint", "checkpoint", "status"]
    assert rest[-1].data["status"] == "COMPLETED"


async def test_progress_comes_once_and_not_more_than_once_a_second(
    here: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_sent_events, "PROGRESS_SECONDS", 3600.0)
    job, trainer = await training(here)

    async with following(here, job) as source:
        await trainer.publish(TrainingProgressed, progress={"step": 3})
        first = await source.until("progress")
        await show_samples(here, trainer)
        await source.until("sample")
        await trainer.publish(TrainingProgressed, progress={"step": 4})
        await eventually(lambda: step_is(here, job, 4))
        await trainer.finish_training()
        rest = await source.rest()

    assert first.data["step"] == 3
    assert "progress" not in kinds(rest)


async def test_progress_changes_neither_the_record_nor_its_version(tmp_path: Path) -> None:
    async with world(tmp_path, heartbeat=10.0) as here:  # so long that no claim is lost
        job, trainer = await training(here)
        before = await here.jobs.get(job)

        async with following(here, job) as source:
            for step in (3, 4):
                await trainer.publish(TrainingProgressed, progress={"step": step})
                assert (await source.until("progress")).data["step"] == step

        assert await here.jobs.get(job) == before


@pytest.mark.parametrize("again", [False, True], ids=["newer", "the same"])
async def test_who_goes_on_after_progress_is_told_the_newer_and_not_the_same(
    here: World,
    again: bool,  # noqa: FBT001
) -> None:
    job, trainer = await training(here)
    async with following(here, job) as source:
        await trainer.publish(TrainingProgressed, progress={"step": 3})
        seen = await source.until("progress")
    if not again:
        await trainer.publish(TrainingProgressed, progress={"step": 4})
        await eventually(lambda: step_is(here, job, 4))

    async with following(here, job, after=seen.id) as source:
        await trainer.finish_training()
        rest = await source.rest()

    steps = [each.data["step"] for each in rest if each.kind == "progress"]
    assert steps == ([] if again else [4])


async def step_is(here: World, job: str, step: int) -> bool | None:
    return (await here.status(job))["output"].get("step") == step or None


async def test_what_another_gateway_writes_is_streamed_too(tmp_path: Path) -> None:
    async with world(tmp_path) as here, closing(here.broker.bus("gateway/other")) as bus:
        other = Gateway(here.settings, KEY, bus, here.store, here.stores)
        async with running(other):
            job = await here.run()
            async with following(here, job, gateway=other) as source:
                await source.until("status")
                await here.ask("POST", f"{ROOT}/cancel/{job}")
                ended = await source.until("status")
                assert ended.data["status"] == "CANCELLED"
                assert await source.next() is None


# --- Going on


async def test_wherever_it_is_cut_nothing_is_lost_or_sent_twice(here: World) -> None:
    job = await eventful(here)
    async with following(here, job) as source:
        everything = await source.rest()

    for cut in range(1, len(everything)):
        async with following(here, job) as first:
            before = await first.take(cut)
        async with following(here, job, after=before[-1].id) as second:
            after = await second.rest()
        assert [each.id for each in (*before, *after)] == [each.id for each in everything]


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
async def test_a_reader_who_is_cut_off_after_progress_goes_on_at_another_gateway(
    tmp_path: Path, request: pytest.FixtureRequest, database: str
) -> None:
    server = database == "postgresql"
    changes = {"database_url": request.getfixturevalue("postgres_url")} if server else {}
    async with world(tmp_path, **changes) as here, closing(here.broker.bus("gateway/other")) as bus:
        other = Gateway(here.settings, KEY, bus, here.store, here.stores)
        async with running(other):
            job, trainer = await training(here)
            async with following(here, job) as source:
                await trainer.publish(TrainingProgressed, progress={"step": 3})
                seen = await source.until("progress")
            await show_samples(here, trainer)
            await trainer.finish_training()
            async with following(here, job, after=seen.id, gateway=other) as source:
                rest = await source.rest()

    assert [kind for kind in kinds(rest) if kind != "progress"] == [
        *("sample", "sample", "stage", "checkpoint", "checkpoint", "status")
    ]


async def test_page_after_page_gives_everything(
    here: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await eventful(here)
    async with following(here, job) as source:
        everything = comparable(await source.rest())
    monkeypatch.setattr(server_sent_events, "PAGE", 2)

    async with following(here, job) as source:
        assert comparable(await source.rest()) == everything


async def test_who_has_read_the_end_is_sent_away_for_good(here: World) -> None:
    job = await eventful(here)
    async with following(here, job) as source:
        last = (await source.rest())[-1]
    headers = {"Authorization": API_KEY, "Last-Event-ID": last.id}

    async with here.session.get(here.url(f"{ROOT}/events/{job}"), headers=headers) as answer:
        assert (answer.status, await answer.read()) == (204, b"")


async def test_a_retried_job_goes_on_for_who_has_read_its_first_end(here: World) -> None:
    job = await here.run({**TRAIN_ONLY, "policy": {"ttl": 10_000}})
    here.clock.ahead += 11
    await here.status_becomes(job, "TIMED_OUT")
    async with following(here, job) as source:
        first = (await source.rest())[-1]
    assert first.data["status"] == "TIMED_OUT"
    await here.ask("POST", f"{ROOT}/retry/{job}")

    async with following(here, job, after=first.id) as source:
        again = await source.until("status")

    assert (again.data["status"], again.data["run"]) == ("IN_QUEUE", 2)


@pytest.mark.parametrize("text", ["nonsense", "", "99999"])
async def test_an_invalid_id_is_reported(here: World, text: str) -> None:
    job = await here.run()

    answer = await here.ask("GET", f"{ROOT}/events/{job}?last_event_id={text}")

    assert answer.status == 400
    assert "expected the id of an event of this job" in answer.body["mistakes"][0]


async def test_nobody_follows_anothers_job(here: World) -> None:
    job = await here.run()

    assert (await here.ask("GET", f"{ROOT}/events/{job}", key=OTHER_KEY)).status == 404
    assert (await here.ask("GET", f"{ROOT}/events/{job}", key="none")).status == 401


# --- Long silences, and readers who are no good


async def test_a_silence_is_broken_by_comments(
    here: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_sent_events, "HEARTBEAT_SECONDS", 0.0)
    monkeypatch.setattr(change_notifier, "POLL_SECONDS", 0.01)
    job = await here.run()

    async with following(here, job) as source:
        await source.until("status")
        async with asyncio.timeout(SECONDS):
            line = await source.answer.content.readuntil(b"\n\n")

    assert line == b":\n\n"


@pytest.fixture
def _one_reader_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = cast("dict[str, Rate]", rate_limits.RATES)
    monkeypatch.setitem(rates, "stream", Rate(10_000, 1.0, 1))


@pytest.mark.usefixtures("_one_reader_at_a_time")
async def test_a_closed_connection_frees_its_slot(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        job = await here.run()
        async with following(here, job) as source:
            await source.until("status")
            assert await is_full(here, job)

        soon = server_sent_events.HEARTBEAT_SECONDS / 2  # before a write would fail
        await eventually(lambda: has_a_place(here, job), soon)


async def is_full(here: World, job: str) -> bool:
    return (await here.ask("GET", f"{ROOT}/events/{job}")).status == 429


async def has_a_place(here: World, job: str) -> bool | None:
    headers = {"Authorization": API_KEY}
    async with here.session.get(here.url(f"{ROOT}/events/{job}"), headers=headers) as answer:
        answer.close()
        return answer.status == 200 or None


async def test_a_stream_ends_when_its_key_is_disabled(
    here: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_sent_events, "KEY_SECONDS", 0.0)
    key, keys = "a-key-in-the-database", here.stores.keys
    of_cleo = StoredKey(digest=digest_of(key), name="cleo", scopes=("read", "submit"), created_at=0)
    await keys.add(of_cleo)
    answer = await here.ask("POST", f"{ROOT}/run", json=TRAIN_ONLY, key=key)
    url = here.url(f"{ROOT}/events/{answer.body['id']}")

    async with here.session.get(url, headers={"Authorization": key}) as events:
        source = Source(events)
        await source.until("status")
        await keys.disable("cleo", 1.0)

        assert await source.rest() == []


@pytest.mark.usefixtures("_one_reader_at_a_time")
async def test_who_does_not_read_is_cut_off_and_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_sent_events, "WRITE_SECONDS", 0.2)
    async with world(tmp_path) as here:
        job = await here.run()
        await tell_at_length(here, job)
        async with following(here, job) as source:
            await eventually(lambda: has_a_place(here, job))
            with pytest.raises(aiohttp.ClientError):
                await source.rest()


async def tell_at_length(here: World, job: str) -> None:
    """More than any socket buffers."""
    row = await here.jobs.get(job)
    data = json.dumps({"text": "x" * 500_000}).encode()
    told = [
        StoredEvent(job=job, version=2, number=number, at=0.0, type="dataset", data=data)
        for number in range(64)
    ]
    await here.jobs.replace(msgspec.structs.replace(row, version=2), [], told, expected_version=1)


async def test_without_the_database_the_stream_ends_and_can_be_taken_up_again(
    here: World,
) -> None:
    job = await here.run()
    async with following(here, job) as source:
        last = await source.until("status")
        here.jobs.unavailable = True
        assert await source.next() is None
    here.jobs.unavailable = False
    await here.ask("POST", f"{ROOT}/cancel/{job}")

    async with following(here, job, after=last.id) as source:
        rest = await source.rest()

    assert [each.data.get("status") for each in rest] == ["CANCELLED"]
