"""Following all of a key's jobs: every event, wherever it was written and the connection is cut."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, MutableMapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import msgspec
import pytest
from structlog.testing import capture_logs

from services.gateway.app import Gateway
from services.gateway.database.events import SqlEventStore
from services.gateway.endpoints import all_events, server_sent_events
from services.gateway.endpoints.all_events import WINDOW_SECONDS
from services.gateway.jobs import change_notifier
from services.gateway.key_ports import StoredKey
from services.gateway.ports import EventPlace, StoredEvent
from services.gateway.web.authentication import digest_of
from shared.errors import Unavailable
from shared.messaging.messages import TrainingProgressed
from shared.service_process import closing
from tests.integration.gateway.test_server_sent_events import (
    Event,
    Source,
    eventful,
    kinds,
    save_checkpoint,
    show_samples,
    step_is,
    tell_at_length,
)
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
from tests.support.servers.proxy import RESET

ROOT = "/v1/everydream-v1"
SECONDS = 30
LEFT = "reader_gone"


class Pair(NamedTuple):
    """Two gateways on one database; both worlds share the store."""

    one: World
    other: World


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as one:
        yield one


@pytest.fixture(params=["sqlite", "postgresql"])
async def both(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Pair]:
    shared: dict[str, Any] = {"heartbeat": 5.0}
    if request.param == "postgresql":
        shared["database_url"] = request.getfixturevalue("postgres_url")
    async with world(tmp_path, **shared) as one, closing(one.broker.bus("gateway/other")) as bus:
        clock = type(one.clock)()
        other = Gateway(one.settings, KEY, bus, one.store, one.stores, clock=clock)
        async with running(other):
            yield Pair(one, replace(one, gateway=other, clock=clock))


class All(Source):
    """A connection to the stream of all jobs."""

    async def next(self) -> Event | None:
        told = await super().next()
        assert told is None or "job" in told.data
        return told

    async def until_status(self, status: str) -> list[Event]:
        """All events up to this one."""
        told = []
        while each := await self.next():
            told.append(each)
            if each.data.get("status") == status:
                return told
        raise AssertionError(f"the stream has ended without {status}")


@asynccontextmanager
async def following_all(
    here: World, *, after: str | None = None, key: str = API_KEY
) -> AsyncIterator[All]:
    headers = {"Authorization": f"Bearer {key}"}
    if after is not None:
        headers["Last-Event-ID"] = after
    async with here.session.get(here.url(f"{ROOT}/events"), headers=headers) as answer:
        assert answer.status == 200, await answer.text()
        yield All(answer)
        answer.close()


async def of_job(here: World, job: str) -> list[tuple[str, dict[str, Any]]]:
    """What the job's own stream has told, as it is told among others."""
    headers = {"Authorization": f"Bearer {API_KEY}"}
    async with here.session.get(here.url(f"{ROOT}/events/{job}"), headers=headers) as answer:
        told = await Source(answer).rest()
    return [(each.kind, without_signatures({"job": job, **each.data})) for each in told]


def kept(told: Sequence[Event]) -> list[tuple[str, dict[str, Any]]]:
    return [(each.kind, without_signatures(each.data)) for each in told if each.id]


# --- The whole story


async def test_it_begins_now_and_tells_of_every_job_what_its_own_stream_does(here: World) -> None:
    await eventful(here)

    async with following_all(here) as source:
        headers = source.answer.headers
        job = await eventful(here)
        told = await source.until_status("COMPLETED")
        other = await here.run()
        await here.ask("POST", f"{ROOT}/cancel/{other}")
        later = await source.until_status("CANCELLED")

    assert headers["Content-Type"] == "text/event-stream"
    assert (headers["Cache-Control"], headers["X-Accel-Buffering"]) == ("no-store", "no")
    assert kept(told) == await of_job(here, job)
    assert kept(later) == await of_job(here, other)
    assert len({each.id for each in (*told, *later) if each.id}) == len(kept([*told, *later]))


async def test_nobody_is_told_of_another_s_jobs(here: World) -> None:
    async with following_all(here, key=OTHER_KEY) as source:
        await eventful(here)
        answer = await here.ask("POST", f"{ROOT}/run", json=TRAIN_ONLY, key=OTHER_KEY)
        told = await source.take(2)

    assert {each.data["job"] for each in told} == {answer.body["id"]}


async def test_progress_comes_as_it_changes_and_has_no_id(tmp_path: Path) -> None:
    async with world(tmp_path, heartbeat=10.0) as here:  # so long that no claim is lost
        job, trainer = await training(here)
        await trainer.publish(TrainingProgressed, progress={"step": 3, "steps": 8})

        async with following_all(here) as source:
            first = await source.until("progress")
            await trainer.publish(TrainingProgressed, progress={"step": 4, "steps": 8})
            second = await source.until("progress")
            await trainer.finish_training()
            rest = await source.until_status("COMPLETED")

    assert first.data == {"job": job, "stage": "training", "step": 3, "steps": 8}
    assert second.data["step"] == 4
    assert first.id == second.id == ""
    assert "progress" not in kinds(rest)


async def test_progress_comes_at_most_once_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(all_events, "PROGRESS_SECONDS", 3600.0)
    async with world(tmp_path, heartbeat=10.0) as here:
        job, trainer = await training(here)
        await trainer.publish(TrainingProgressed, progress={"step": 3})
        await eventually(partial(step_is, here, job, 3))
        async with following_all(here) as source:
            await source.until("progress")
            await trainer.publish(TrainingProgressed, progress={"step": 4})
            await eventually(partial(step_is, here, job, 4))
            await asyncio.sleep(2)
            await trainer.finish_training()
            rest = await source.until_status("COMPLETED")

    assert "progress" not in kinds(rest)


async def test_a_deletion_is_told_to_who_is_there_and_to_who_comes_back(both: Pair) -> None:
    job = await both.one.run()
    async with following_all(both.one) as here, following_all(both.other) as there:
        await both.one.ask("DELETE", f"{ROOT}/jobs/{job}")
        for source in (here, there):
            gone = await source.until("deleted")
            assert gone.data.keys() == {"at", "job"}
            assert gone.data["job"] == job
    later = await both.one.run()
    async with following_all(both.other) as source:
        await both.one.ask("POST", f"{ROOT}/cancel/{later}")
        last = (await source.until_status("CANCELLED"))[-1]
    await both.one.ask("DELETE", f"{ROOT}/jobs/{later}")

    async with following_all(both.other, after=last.id) as source:
        while (gone := await source.until("deleted")).data["job"] != later:
            pass


# --- Several gateways


async def test_what_is_written_at_one_gateway_is_told_at_the_other(both: Pair) -> None:
    async with following_all(both.other) as source:
        job, trainer = await training(both.one)
        await show_samples(both.one, trainer)
        await save_checkpoint(trainer)
        await trainer.finish_training()
        told = await source.until_status("COMPLETED")

    assert kept(told) == await of_job(both.one, job)


async def test_wherever_it_is_cut_another_gateway_goes_on_without_a_gap(both: Pair) -> None:
    async with following_all(both.one) as source:
        jobs = [await eventful(both.one) for _ in range(2)]
        await both.one.run()
        everything = [each for _ in jobs for each in await source.until_status("COMPLETED")]
        everything += await source.until_status("IN_QUEUE")
    ids = [each.id for each in everything if each.id]

    for cut in range(0, len(ids), 5):
        async with following_all(both.other, after=ids[cut]) as source:
            told: list[str] = []
            while not told or told[-1] != ids[-1]:
                if (each := await source.next()) and each.id:
                    told.append(each.id)
        assert set(ids[cut + 1 :]) <= set(told)
        assert ids[cut] not in told
        assert len(set(told)) == len(told)


async def test_who_resumes_gets_again_only_what_stands_in_the_window(both: Pair) -> None:
    early = await both.one.run()
    for each in both:
        each.clock.ahead += WINDOW_SECONDS + 1
    async with following_all(both.one) as source:
        late = await both.one.run()
        last = (await source.until_status("IN_QUEUE"))[-1]
    both.one.clock.ahead += 5
    newest = await both.one.run()

    async with following_all(both.other, after=last.id) as source:
        told = await source.until_status("IN_QUEUE")

    assert {each.data["job"] for each in told} == {newest}
    assert early != late


async def test_an_event_that_is_committed_late_is_told(both: Pair) -> None:
    job, other = await both.one.run(), await both.one.run()
    async with following_all(both.other) as source:
        await both.one.ask("POST", f"{ROOT}/cancel/{other}")
        cancelled = (await source.until_status("CANCELLED"))[-1]
        place = all_events.place_of(cancelled.id)
        assert place is not None
        at = place.at - WINDOW_SECONDS / 2
        late = await write(both.one, job, at=at)
        found = await source.until("stage")

    told = all_events.place_of(found.id)
    assert told is not None
    assert told.job == job
    assert told.at < place.at
    async with following_all(both.one, after=cancelled.id) as source:
        again = [await source.until("stage") for _ in range(1)]
    assert late.version == told.version
    assert again


async def write(here: World, job: str, *, at: float) -> StoredEvent:
    """Commit an event that has happened a while ago, of a job without later ones."""
    row = await here.jobs.get(job)
    version = row.version + 1
    told = StoredEvent(
        job=job, version=version, number=0, at=at, type="stage", data=b'{"stage":"staging"}'
    )
    new = msgspec.structs.replace(row, version=version)
    assert await here.jobs.replace(new, [], [told], expected_version=row.version)
    return told


async def test_a_gateway_with_a_fast_clock_hides_nothing_of_the_others(both: Pair) -> None:
    both.one.clock.ahead += 10 * WINDOW_SECONDS
    async with following_all(both.other) as source:
        await both.one.run()
        await source.until_status("IN_QUEUE")

        job = (await both.other.ask("POST", f"{ROOT}/run", json=TRAIN_ONLY)).body["id"]
        told = await source.until_status("IN_QUEUE")

    assert {each.data["job"] for each in told} == {job}


async def test_a_job_that_gateways_with_different_clocks_change_is_told_in_its_order(
    both: Pair,
) -> None:
    both.one.clock.ahead += 20
    async with following_all(both.other) as source:
        job = await both.one.run()
        await both.other.ask("POST", f"{ROOT}/cancel/{job}")
        told = await source.until_status("CANCELLED")

    assert [each.data["status"] for each in told if each.kind == "status"] == [
        *("IN_QUEUE", "CANCELLED")
    ]


# --- Bad ids, long silences, and readers who are no good


@pytest.mark.parametrize("text", ["nonsense", "", "1.0", "WzEsMl0="])
async def test_an_invalid_id_is_reported(here: World, text: str) -> None:
    answer = await here.ask("GET", f"{ROOT}/events?last_event_id={text}")

    assert answer.status == 400
    assert "expected the id of an event of this stream" in answer.body["mistakes"][0]


async def test_without_a_key_there_is_no_stream(here: World) -> None:
    assert (await here.ask("GET", f"{ROOT}/events", key="none")).status == 401


async def test_a_silence_is_broken_by_comments(
    here: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_sent_events, "HEARTBEAT_SECONDS", 0.0)
    monkeypatch.setattr(change_notifier, "POLL_SECONDS", 0.01)

    async with following_all(here) as source, asyncio.timeout(SECONDS):
        assert await source.answer.content.readuntil(b"\n\n") == b":\n\n"


async def test_the_stream_ends_when_its_key_is_disabled(
    here: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_sent_events, "KEY_SECONDS", 0.0)
    key, keys = "a-key-in-the-database", here.stores.keys
    await keys.add(
        StoredKey(digest=digest_of(key), name="cleo", scopes=("read", "submit"), created_at=0)
    )

    async with following_all(here, key=key) as source:
        await here.ask("POST", f"{ROOT}/run", json=TRAIN_ONLY, key=key)
        await source.until("status")
        await keys.disable("cleo", 1.0)

        assert await source.rest() == []


async def test_who_does_not_read_is_cut_off(here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_sent_events, "WRITE_SECONDS", 0.2)
    async with following_all(here) as source:
        job = await here.run()
        await source.until("status")
        await tell_at_length(here, job)
        await eventually(partial(is_closed, here))
        with pytest.raises(aiohttp.ClientError):
            await source.rest()


@pytest.mark.parametrize("path", ["/events", "/events/{job}"])
async def test_who_leaves_while_a_stream_opens_leaves_no_error(
    here: World, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    job = await here.run()
    with capture_logs() as logs:
        await ask_and_leave(here, f"{ROOT}{path.format(job=job)}")
        await eventually(partial(is_over, logs, caplog))

    assert [each.getMessage() for each in caplog.records] == []
    assert [each["log_level"] for each in logs if each["event"] == LEFT] == ["debug"]


async def ask_and_leave(here: World, path: str) -> None:
    """Its connection is reset before the gateway has read what it asks for."""
    _, writer = await asyncio.open_connection("127.0.0.1", here.gateway.port)
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    head = f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {API_KEY}\r\n\r\n"
    writer.write(head.encode())
    writer.close()


async def is_over(logs: list[MutableMapping[str, Any]], caplog: pytest.LogCaptureFixture) -> bool:
    """What came of it is logged: by us, or by aiohttp."""
    return bool(caplog.records) or any(each["event"] == LEFT for each in logs)


async def is_closed(here: World) -> bool | None:
    budgets = (await here.ask("GET", f"{ROOT}/budgets")).body
    return budgets["waiting_requests"]["used"] == 0 or None


async def test_without_the_database_the_stream_ends_and_can_be_taken_up_again(
    here: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object) -> None:
        raise Unavailable("a test made the database unavailable")

    async with following_all(here) as source:
        job = await here.run()
        last = (await source.until_status("IN_QUEUE"))[-1]
        with monkeypatch.context() as patch:
            patch.setattr(SqlEventStore, "count", away)
            assert await source.next() is None
            patch.setattr(SqlEventStore, "places", away)
            assert (await here.ask("GET", f"{ROOT}/events")).status == 503
    await here.ask("POST", f"{ROOT}/cancel/{job}")

    async with following_all(here, after=last.id) as source:
        assert kinds(await source.until_status("CANCELLED")) == ["status"]


# --- Many events


async def test_many_events_come_page_after_page_once_each(
    here: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(all_events, "PLACES", 3)
    monkeypatch.setattr(all_events, "PAGE", 2)
    async with following_all(here) as source:
        job = await eventful(here)
        told = await source.until_status("COMPLETED")

    assert kept(told) == await of_job(here, job)


async def test_an_idle_stream_asks_little_and_reads_no_record(
    here: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    for name in ("count", "places", "read", "progress"):
        original = getattr(SqlEventStore, name)

        async def noted(*of: Any, name: str = name, original: Any = original) -> Any:
            asked.append(name)
            return await original(*of)

        monkeypatch.setattr(SqlEventStore, name, noted)
    await here.run()
    async with following_all(here):
        await asyncio.sleep(1)
        asked.clear()
        await asyncio.sleep(3)

    assert set(asked) == {"count", "progress"}
    assert asked.count("count") <= 4
    assert asked.count("progress") <= 4


def test_an_id_is_read_as_it_was_written() -> None:
    place = EventPlace(1_700_000_000.123456, "a-job", 7, 2)

    assert all_events.place_of(all_events.id_of(place)) == place
