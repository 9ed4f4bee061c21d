"""The promises of every job store, checked on SQLite and PostgreSQL."""

import asyncio
import multiprocessing
import sqlite3
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import event
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from services.gateway.database import connection as connections
from services.gateway.database import jobs, tables
from services.gateway.database.connection import Database
from services.gateway.database.jobs import SqlJobStore
from services.gateway.database.shares import OWN
from services.gateway.ports import (
    JobUsage,
    Line,
    OpenStage,
    Outgoing,
    Replacement,
    StoredEvent,
    StoredJob,
    StoredProgress,
)
from shared.errors import Unavailable
from shared.messaging.messages import Stage
from shared.service_process import closing
from tests.support.servers.postgres import PostgreSQL

SECONDS = 60
HELD_UP_SECONDS = 3.0
"""Less than a writer waits for a lock that is never released."""


@pytest.fixture
async def store(url: str) -> AsyncIterator[SqlJobStore]:
    store = SqlJobStore.open(url)
    await store.migrate()
    yield store
    await store.close()


@pytest.fixture
async def neighbour(url: str) -> AsyncIterator[SqlJobStore]:
    """Another gateway on the same jobs."""
    neighbour = SqlJobStore.open(url)
    yield neighbour
    await neighbour.close()


def job(name: str = "one", **changes: object) -> StoredJob:
    plain = StoredJob(
        id=name,
        owner="somebody",
        status="IN_QUEUE",
        version=1,
        created_at=1_700_000_000.123456,
        ended_at=None,
        record=b'{"a": "\xc3\xa9"}\x00\xff',
    )
    return msgspec.structs.replace(plain, **changes)


def message(name: str = "said", **changes: object) -> Outgoing:
    return msgspec.structs.replace(Outgoing(id=name, message=name.encode(), due_at=10.0), **changes)


async def ids_due(store: SqlJobStore, now: float = 1e12) -> list[str]:
    return [outgoing.id for outgoing in await store.take_due(now, 0.0)]


# --- connections


async def test_postgresql_keeps_its_connections_from_one_burst_of_questions_to_the_next(
    postgres_url: str,
) -> None:
    question = sa.text("select pg_backend_pid() from pg_sleep(0.1)")
    async with closing(Database.open(postgres_url)) as database:

        async def burst() -> set[int]:
            return {
                int(rows[0][0])
                for rows in await asyncio.gather(*(database.all(question) for _ in range(12)))
            }

        first = await burst()
        assert len(first) == OWN
        assert await burst() == first


# --- jobs


async def test_a_job_comes_back_as_it_was_put(store: SqlJobStore) -> None:
    ended = job("two", status="FAILED", ended_at=1_700_000_001.654321)
    assert await store.insert(job(), [])
    assert await store.insert(ended, [])

    assert await store.get("one") == job()
    assert await store.get("two") == ended
    assert await store.get("three") is None


async def test_a_job_is_inserted_once_and_so_is_what_it_causes(store: SqlJobStore) -> None:
    assert await store.insert(job(), [message("first")])
    assert not await store.insert(job(owner="somebody else"), [message("second")])

    assert await store.get("one") == job()
    assert await ids_due(store) == ["first"]


async def test_of_two_gateways_that_insert_the_same_job_one_does(
    store: SqlJobStore, neighbour: SqlJobStore
) -> None:
    for number in range(10):
        name = f"job-{number}"
        done = await asyncio.gather(
            store.insert(job(name, owner="a"), [message(f"{name}/a", due_at=0.0)]),
            neighbour.insert(job(name, owner="b"), [message(f"{name}/b", due_at=0.0)]),
        )
        assert sorted(done) == [False, True]
        stored = await store.get(name)
        assert stored
        assert await ids_due(store) == [f"{name}/{stored.owner}"]
        await store.sent(f"{name}/{stored.owner}")


async def test_a_job_is_replaced_only_at_the_version_expected(store: SqlJobStore) -> None:
    await store.insert(job(), [])
    second = job(version=2, status="IN_PROGRESS", record=b"second")

    assert await store.replace(second, [message("now")], expected_version=1)
    assert await store.get("one") == second
    assert not await store.replace(
        job(version=2, record=b"late"), [message("no")], expected_version=1
    )
    assert not await store.replace(job("nobody", version=2), [message("no")], expected_version=1)

    assert await store.get("one") == second
    assert await ids_due(store) == ["now"]


async def test_of_many_jobs_those_are_replaced_that_nobody_else_has_replaced(
    store: SqlJobStore,
) -> None:
    names = ("c", "a", "b")
    for name in names:
        stage = OpenStage(name, "training", "claim", 1.0)
        assert await store.insert(job(name), [], [happened(1, job=name, at=20.0)], [stage])
    assert await store.replace(job("b", version=2, record=b"faster"), [], expected_version=1)

    replaced = await store.replace_many(
        [
            Replacement(
                job=job(name, version=2, record=b"second"),
                outgoing=[message(f"{name}/{number}") for number in (1, 2)],
                happened=[happened(2, job=name, at=10.0)],
                stages=[OpenStage(name, "generation", None, 2.0)] if name == "a" else None,
            )
            for name in (*names, "nobody")
        ]
    )

    assert {*replaced} == {"a", "c"}
    assert await store.versions([*names, "nobody"]) == {"a": 2, "b": 2, "c": 2}
    found = {row.id: row.record for row in await store.get_many([*names, "nobody"])}
    assert found == {"a": b"second", "b": b"faster", "c": b"second"}
    assert sorted(await ids_due(store)) == ["a/1", "a/2", "c/1", "c/2"]
    for name, times in (("a", [20.0, 20.0]), ("b", [20.0]), ("c", [20.0, 20.0])):
        assert [event.at for event in await store.events_after(name, 0, 0)] == times
    assert sorted((each.job, each.stage) for each in await store.claims()) == [
        ("b", "training"),
        ("c", "training"),
    ]


async def test_if_one_of_many_jobs_cannot_be_replaced_none_is(store: SqlJobStore) -> None:
    assert await store.insert(job("a"), [])
    assert await store.insert(job("b"), [])
    wrong = job("b", version=2, owner=None)

    with pytest.raises(IntegrityError):
        await store.replace_many(
            [
                Replacement(job=each, outgoing=[message(each.id)])
                for each in (job("a", version=2), wrong)
            ]
        )

    assert await store.versions(["a", "b"]) == {"a": 1, "b": 1}
    assert await ids_due(store) == []


async def test_two_gateways_that_replace_the_same_jobs_at_once_do_not_wait_for_each_other(
    store: SqlJobStore, neighbour: SqlJobStore
) -> None:
    names = [f"job-{number}" for number in range(10)]
    line: dict[str, Any] = {"line": "train", "released_at": 5.0}
    for name in names:
        assert await store.insert(job(name, **line), [])
    for version in range(2, 6):
        every = [Replacement(job=job(name, version=version, **line)) for name in names]
        ours, theirs, _ = await asyncio.gather(
            store.replace_many(every),
            neighbour.replace_many(every[::-1]),
            neighbour.replace(
                job("job-5", version=version, **line), [], expected_version=version - 1
            ),
        )
        assert not {*ours} & {*theirs}
        assert set((await store.versions(names)).values()) == {version}


async def test_a_version_cannot_be_skipped(store: SqlJobStore) -> None:
    with pytest.raises(ValueError, match="3 cannot follow 1"):
        await store.replace(job(version=3), [], expected_version=1)


async def test_of_two_gateways_that_replace_the_same_version_one_wins(
    store: SqlJobStore, neighbour: SqlJobStore
) -> None:
    await store.insert(job(), [])
    for version in range(1, 21):
        ours, theirs = (job(version=version + 1, record=who) for who in (b"ours", b"theirs"))
        done = await asyncio.gather(
            store.replace(ours, [message("ours")], expected_version=version),
            neighbour.replace(theirs, [message("theirs")], expected_version=version),
        )
        assert sorted(done) == [False, True]
        winner = ours if done[0] else theirs
        assert await store.get("one") == winner
        assert await ids_due(store) == [winner.record.decode()]
        await store.sent(winner.record.decode())


async def test_a_deleted_job_is_gone(store: SqlJobStore) -> None:
    await store.insert(job(), [])
    await store.delete("one")
    await store.delete("one")
    assert await store.get("one") is None


# --- queries over all jobs


async def test_jobs_that_are_overdue_come_longest_first_however_many_pages_they_fill(
    store: SqlJobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "PAGE", 2)
    times = {"e": 5.0, "b": 2.0, "c": 2.0, "a": 3.0, "d": 2.0, "f": 1.0, "later": 9.0}
    for name, overdue_at in times.items():
        await store.insert(job(name, overdue_at=overdue_at), [])
    await store.insert(job("ended", status="COMPLETED", ended_at=9.0), [])

    seen = []
    async for name in store.overdue(9.0):
        seen.append(name)
        ended = job(name, version=2, status="TIMED_OUT", ended_at=9.0)
        assert await store.replace(ended, [], expected_version=1)
    assert seen == ["f", "b", "c", "d", "a", "e"], "also while they end"
    assert [name async for name in store.overdue(9.0)] == []


def waiting(name: str, due_at: float, stage: Stage = "staging") -> OpenStage:
    return OpenStage(name, stage, None, due_at)


async def test_open_stages_are_found_by_what_they_wait_for(store: SqlJobStore) -> None:
    claimed = OpenStage("one", "training", "claim", 1.0)
    published = waiting("one", 2.0, "model_publication")
    await store.insert(job(), [], [], [claimed, published])
    for name, due_at in (("b", 3.0), ("a", 4.0), ("c", 2.0), ("later", 9.5)):
        await store.insert(job(name), [], [], [waiting(name, due_at)])

    assert await store.claims() == [claimed]
    assert set(await store.waiting(9.0)) == {
        *(waiting("b", 3.0), waiting("a", 4.0), waiting("c", 2.0)),
        published,
    }
    assert set(await store.waiting(9.0, limit=1)) == {waiting("c", 2.0), published}


async def test_open_stages_change_with_their_job_and_only_then(store: SqlJobStore) -> None:
    first, second = waiting("one", 1.0), OpenStage("one", "staging", "claim", 1.0)
    await store.insert(job(), [], [], [first])

    assert await store.replace(job(version=2), [], [], expected_version=1)
    assert await store.waiting(9.0) == [first]
    assert not await store.replace(job(version=2), [], [], [second], expected_version=1)
    assert await store.waiting(9.0) == [first]
    assert await store.replace(job(version=3), [], [], [second], expected_version=2)
    assert (await store.waiting(9.0), await store.claims()) == ([], [second])
    assert await store.replace(job(version=4), [], [], [], expected_version=3)
    assert await store.claims() == []


@pytest.mark.parametrize("gone", ["delete", "remove"])
async def test_open_stages_go_with_their_job(store: SqlJobStore, gone: str) -> None:
    await store.insert(job(), [], [], [waiting("one", 1.0)])

    await (store.delete("one") if gone == "delete" else store.remove("one", 5.0))

    assert await store.waiting(9.0) == []


async def progress_of(store: SqlJobStore, name: str) -> list[StoredProgress]:
    row, progress = await store.get_live(name) or (None, [])
    assert row == await store.get(name)
    return [*progress]


def numbers(name: str, text: bytes, run: int = 1, sequence: int = 0) -> StoredProgress:
    return StoredProgress(name, "training", run, text, sequence)


async def test_progress_is_written_for_many_jobs_at_once_and_each_change_counts(
    store: SqlJobStore, neighbour: SqlJobStore
) -> None:
    for name in ("one", "two"):
        await store.insert(job(name), [])

    await store.write_progress([])
    await store.write_progress([numbers("one", b"1"), numbers("two", b"1")])
    await neighbour.write_progress([numbers("one", b"2"), numbers("two", b"1")])
    await store.write_progress([numbers("one", b"2", run=2)])
    assert await progress_of(store, "one") == [numbers("one", b"2", run=2, sequence=3)]
    assert await progress_of(store, "two") == [numbers("two", b"1", sequence=1)], (
        "it had not changed"
    )
    assert (await store.get("one")) == job(), "the job is as it was"
    await store.replace(job("two", version=2, ended_at=5.0), [], expected_version=1)
    assert await progress_of(store, "two") == [], "it has ended"


@pytest.mark.parametrize("gone", ["delete", "remove"])
async def test_a_job_that_is_gone_keeps_no_progress_and_gets_none(
    store: SqlJobStore, gone: str
) -> None:
    for name in ("one", "two"):
        await store.insert(job(name), [])
    await store.write_progress([numbers("one", b"1")])

    await (store.delete("one") if gone == "delete" else store.remove("one", 5.0))
    assert await progress_of(store, "one") == []
    await store.write_progress([numbers("one", b"2"), numbers("two", b"2")])

    assert await progress_of(store, "one") == []
    assert await progress_of(store, "two") == [numbers("two", b"2", sequence=1)]


@pytest.mark.parametrize("rows", [3000])
async def test_what_is_asked_again_and_again_is_found_by_an_index(
    store: SqlJobStore, url: str, rows: int
) -> None:
    """Among many jobs: with few, a database rightly reads a table from end to end."""
    engine = create_async_engine(connections.normalise(url))
    async with engine.begin() as connection:
        await connection.execute(
            sa.insert(tables.jobs),
            [
                msgspec.structs.asdict(job(str(number), overdue_at=1e9 + number))
                for number in range(rows)
            ],
        )
        await connection.execute(
            sa.insert(tables.open_stages), [waiting(str(n), 1.0)._asdict() for n in range(rows)]
        )
        await connection.execute(sa.text("ANALYZE"))

    plans = {
        question: await plans_of(engine, store, question)
        for question in ("claims", "waiting", "overdue", "count_retried", "counts")
    }
    await engine.dispose()

    for question, index in (
        ("claims", "open_stages_claimed"),
        ("waiting", "open_stages_waiting"),
        ("overdue", "jobs_overdue"),
        ("count_retried", "jobs_retried"),
        ("counts", "jobs_by_owner"),
    ):
        assert index in plans[question], plans[question]
        assert "Seq Scan on" not in plans[question]


async def plans_of(engine: AsyncEngine, store: SqlJobStore, question: str) -> str:
    """How the database answers a question of the store."""
    asked: list[sa.Executable] = []

    async def note(statement: sa.Executable) -> list[Any]:
        asked.append(statement)
        return [SimpleNamespace(number=0)] if question.startswith("count_") else []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store._database, "all", note)
        match question:
            case "overdue":
                assert [each async for each in store.overdue(1.0)] == []
            case "waiting":
                await store.waiting(2.0)
            case "claims":
                await store.claims()
            case "count_retried":
                await store.count_retried("somebody")
            case "counts":
                await store.counts("somebody", 1000)
    explain = "EXPLAIN QUERY PLAN" if engine.dialect.name == "sqlite" else "EXPLAIN"
    statement = cast("sa.Select[Any]", asked[0])
    text = statement.compile(engine.sync_engine, compile_kwargs={"literal_binds": True})
    async with engine.connect() as connection:
        rows = (await connection.exec_driver_sql(f"{explain} {text}")).all()
    return "\n".join(str(row[-1]) for row in rows)


async def test_jobs_that_ended_before_a_moment_are_named_oldest_end_first(
    store: SqlJobStore,
) -> None:
    await store.insert(job("live"), [])
    for name, ended_at in (("c", 30.0), ("a", 10.0), ("d", 40.0), ("b", 20.0)):
        await store.insert(job(name, status="COMPLETED", ended_at=ended_at), [])

    assert await store.ended_before(40.0) == ["a", "b", "c"]
    assert await store.ended_before(40.0, limit=2) == ["a", "b"]
    assert await store.ended_before(10.0) == []
    assert await store.ended_before(40.0, after=10.0) == ["b", "c"]


# --- the outbox


async def test_what_must_leave_comes_back_as_it_was_put(store: SqlJobStore) -> None:
    plain = message("plain", message=b"\x00\xff body")
    direct = message("direct", queue="trainer", mandatory=False, due_at=10.25)
    await store.insert(job(), [plain, direct])
    assert await store.take_due(1e12, 0.0) == [plain, direct]


async def test_messages_are_due_when_their_time_has_come_in_the_order_of_writing(
    store: SqlJobStore,
) -> None:
    early, late = message("early", due_at=5.0), message("late", due_at=20.0)
    await store.insert(job("a"), [late, message("x"), message("w")])
    await store.insert(job("b"), [message("v"), early])

    assert await ids_due(store, now=4.9) == []
    assert await ids_due(store, now=10.0) == ["early", "x", "w", "v"]
    assert await ids_due(store, now=20.0) == ["early", "x", "w", "v", "late"]
    assert [each.id for each in await store.take_due(20.0, 0.0, limit=2)] == ["early", "x"]


async def test_what_one_gateway_has_taken_no_other_gets_nor_more_of_the_same_job(
    store: SqlJobStore, neighbour: SqlJobStore
) -> None:
    await store.insert(job("a"), [message("a/1/0"), message("a/1/1")])
    assert await taken(store, until=20.0) == ["a/1/0", "a/1/1"]

    await store.sent("a/1/0")
    await store.insert(job("b"), [message("b/1/0"), message("a/2/0")])
    assert await taken(neighbour, until=20.0) == ["b/1/0"]
    await store.sent("a/1/1")
    assert await taken(neighbour, until=20.0) == ["a/2/0"]


async def test_who_is_gone_leaves_what_was_taken_to_the_others(
    store: SqlJobStore, neighbour: SqlJobStore
) -> None:
    await store.insert(job("a"), [message("a/1/0"), message("a/1/1")])
    await taken(store, until=20.0)

    assert await taken(neighbour, now=19.9, until=30.0) == []
    assert await taken(neighbour, now=20.0, until=30.0) == ["a/1/0", "a/1/1"]


async def test_what_is_postponed_holds_nothing_up(
    store: SqlJobStore, neighbour: SqlJobStore
) -> None:
    await store.insert(job("a"), [message("a/1/0"), message("a/1/1")])
    await taken(store, until=20.0)
    await store.postpone("a/1/0", 15.0)
    await store.sent("a/1/1")

    assert await taken(neighbour, now=15.0, until=30.0) == ["a/1/0"]


async def test_of_many_that_take_at_once_each_message_goes_to_one(
    store: SqlJobStore, neighbour: SqlJobStore
) -> None:
    names = [f"{number}/1/0" for number in range(30)]
    await store.insert(job("a"), [message(name) for name in names])

    takers = [store, neighbour] * 10
    handed_out = await asyncio.gather(*(taken(each, until=20.0, limit=7) for each in takers))

    assert sorted(name for some in handed_out for name in some) == sorted(names)


async def test_webhooks_leave_in_turns_of_their_owners(store: SqlJobStore) -> None:
    many = [message(f"a/{number}/0", owner="anna", due_at=1.0 + number) for number in range(5)]
    few = [message(f"b/{number}/0", owner="ben", due_at=9.0) for number in range(2)]
    assert not (await store.due(10.0)).webhooks
    for each in (*many, *few, message("plain")):
        name = f"{each.owner}-{each.id[2]}"
        owned = msgspec.structs.replace(each, id=f"{name}/1/0")
        await store.insert(job(name), [owned])

    async def next_webhooks(now: float, limit: int) -> set[str]:
        taken = await store.take_webhooks(now, now + 1.0, limit)
        return {each.id.partition("/")[0] for each in taken}

    assert await store.due(0.5) == (False, False)
    assert (await store.due(1.0)).webhooks
    assert await next_webhooks(10.0, 3) == {"anna-0", "ben-0", "anna-1"}
    assert await next_webhooks(10.0, 3) == {"anna-2", "ben-1", "anna-3"}
    assert await ids_due(store) == ["None-a/1/0"]


@pytest.mark.parametrize("statement", ["SELECT removed", "INSERT INTO jobs", "UPDATE outbox"])
async def test_who_is_cut_off_in_the_middle_of_writing_holds_up_nobody(
    store: SqlJobStore, neighbour: SqlJobStore, statement: str
) -> None:
    async def write() -> None:
        await store.insert(job("a"), [message("a/1/0"), message("a/1/1")])
        await taken(store, until=0.0)

    def cut_off(_connection: object, _cursor: object, text: str, *_: object) -> None:
        if text.startswith(statement):
            asyncio.get_running_loop().call_soon(writing.cancel)

    event.listen(store._database._engine.sync_engine, "before_cursor_execute", cut_off)
    writing = asyncio.create_task(write())
    await asyncio.wait((writing,))

    assert writing.cancelled()
    async with asyncio.timeout(HELD_UP_SECONDS):
        assert await neighbour.insert(job("b"), [])


async def taken(
    store: SqlJobStore, *, now: float = 10.0, until: float, limit: int = 100
) -> list[str]:
    return [each.id for each in await store.take_due(now, until, limit)]


async def test_a_message_written_twice_is_kept_once(store: SqlJobStore) -> None:
    await store.insert(job("a"), [message(message=b"first"), message(message=b"again")])
    await store.insert(job("b"), [message(message=b"once more"), message("other")])
    assert [each.message for each in await store.take_due(1e12, 0.0)] == [b"first", b"other"]


async def test_a_message_that_was_sent_is_forgotten_and_one_postponed_waits(
    store: SqlJobStore, neighbour: SqlJobStore
) -> None:
    await store.insert(job(), [message("a"), message("b"), message("c")])
    await neighbour.sent("a")
    await store.sent("a")
    await neighbour.postpone("b", 50.0)

    assert await ids_due(store, now=49.0) == ["c"]
    assert await ids_due(store, now=50.0) == ["c", "b"]


async def test_a_commit_that_fails_leaves_neither_job_nor_message(store: SqlJobStore) -> None:
    with pytest.raises(IntegrityError, match="due_at"):
        await store.insert(job(), [message("good"), message("bad", due_at=None)])
    assert await store.get("one") is None
    assert await ids_due(store) == []


# --- events


def happened(version: int, number: int = 0, **changes: object) -> StoredEvent:
    plain = StoredEvent(
        job="one", version=version, number=number, at=5.0, type="stage", data=b'{"a": 1}'
    )
    return msgspec.structs.replace(plain, **changes)


async def test_events_come_back_in_order_after_the_one_that_was_seen(store: SqlJobStore) -> None:
    await store.insert(job(), [], [happened(1)])
    await store.replace(job(version=2), [], [happened(2), happened(2, 1)], expected_version=1)
    await store.insert(job("two"), [], [happened(1, job="two")])

    assert await store.events_after("one", 0, 0) == [happened(1), happened(2), happened(2, 1)]
    assert await store.events_after("one", 2, 0) == [happened(2, 1)]
    assert await store.events_after("one", 0, 0, limit=1) == [happened(1)]
    assert await store.events_after("nobody", 0, 0) == []


async def test_a_write_that_comes_too_late_leaves_no_event(store: SqlJobStore) -> None:
    await store.insert(job(), [])

    assert not await store.replace(job(version=5), [], [happened(5)], expected_version=4)

    assert await store.events_after("one", 0, 0) == []


async def test_of_two_gateways_that_stream_the_same_change_one_does(
    store: SqlJobStore, neighbour: SqlJobStore
) -> None:
    await store.insert(job(), [])
    assert await store.streamed("one") == ("", 0.0)

    for before, after in (("", "a"), ("a", "b")):
        moved = await asyncio.gather(
            store.stream("one", after, 7.5, expected=before),
            neighbour.stream("one", after, 7.5, expected=before),
        )
        assert sorted(moved) == [False, True]
        assert await store.streamed("one") == (after, 7.5)


async def test_a_job_that_is_deleted_takes_its_events_and_its_mark_along(
    store: SqlJobStore,
) -> None:
    await store.insert(job(), [], [happened(1)])
    await store.stream("one", "a", 7.5, expected="")

    await store.delete("one")

    assert await store.events_after("one", 0, 0) == []
    assert await store.streamed("one") == ("", 0.0)


# --- removed jobs


async def test_a_removed_job_is_gone_with_all_that_it_would_say_later(store: SqlJobStore) -> None:
    said = [message("one/1/0", due_at=7.0), message("one/1/1", due_at=7.1)]
    others = [message("one-more/1/0", due_at=8.0)]
    await store.insert(job(), said, [happened(1)])
    await store.insert(job("one-more"), others)
    await store.stream("one", "a", 7.5, expected="")

    assert await store.remove("one", 7.0)

    assert await store.get("one") is None
    gone = happened(2, at=7.0, type="deleted", data=b"{}")
    assert await store.events_after("one", 0, 0) == [gone]
    assert await store.streamed("one") == ("", 0.0)
    assert await ids_due(store) == ["one/1/0", "one-more/1/0"]
    assert await store.get("one-more")


async def test_a_job_is_removed_once_and_only_if_it_was_there(
    store: SqlJobStore, neighbour: SqlJobStore
) -> None:
    await store.insert(job(), [])

    assert sorted(await asyncio.gather(store.remove("one", 7.0), neighbour.remove("one", 7.0))) == [
        False,
        True,
    ]
    assert not await store.remove("nobody", 7.0)
    assert await store.removed() == [("one", 7.0)]


async def test_the_id_of_a_removed_job_is_free_again_only_when_it_is_deleted(
    store: SqlJobStore,
) -> None:
    for name, at in (("one", 8.0), ("two", 7.0)):
        await store.insert(job(name), [])
        await store.remove(name, at)
    assert not await store.insert(job(), [message()], [happened(1)])
    assert await store.get("one") is None
    assert await ids_due(store) == []
    assert [each.id for each in await store.removed()] == ["two", "one"]

    await store.delete("one")

    assert [each.id for each in await store.removed()] == ["two"]
    assert await store.insert(job(), [])


# --- counting and listing


async def test_an_owners_jobs_are_counted_by_status(store: SqlJobStore) -> None:
    await store.insert(job("a"), [])
    await store.insert(job("b", run=3), [])
    await store.insert(job("c", status="FAILED", run=2), [])
    await store.insert(job("d", owner="somebody else", run=9), [])

    assert await store.counts("somebody") == {"IN_QUEUE": 2, "FAILED": 1}
    assert await store.count_retried("somebody") == 3
    assert await store.counts("somebody", 1) == {"IN_QUEUE": 1, "FAILED": 1}
    assert await store.counts("nobody") == await store.counts("nobody", 1) == {}
    assert await store.count_retried("nobody") == 0


async def test_what_an_owner_s_jobs_use_is_counted_as_long_as_they_are_kept(
    store: SqlJobStore,
) -> None:
    await store.insert(job("one", request_bytes=3), [])
    await store.insert(job("two", request_bytes=2**31 - 1), [])
    await store.insert(job("three", owner="else", request_bytes=5), [])
    assert await store.usage("somebody") == JobUsage(live=2, kept=2, request_bytes=2**31 + 2)

    ended = job("one", version=2, status="FAILED", ended_at=2.0)
    await store.replace(ended, [], expected_version=1)
    assert await store.usage("somebody") == JobUsage(live=1, kept=2, request_bytes=2**31 + 2)
    more = msgspec.structs.replace(ended, version=3, request_bytes=4)
    await store.replace(more, [], expected_version=2)
    assert await store.usage("somebody") == JobUsage(live=1, kept=2, request_bytes=2**31 + 6)

    await store.remove("two", 3.0)
    assert await store.usage("somebody") == JobUsage(live=0, kept=1, request_bytes=7)
    assert await store.usage("nobody") == JobUsage(0, 0, 0)


async def test_what_an_owner_s_checks_keep_is_counted_also_when_the_datasets_are_gone(
    store: SqlJobStore,
) -> None:
    assert await store.kept_bytes("somebody") == 0
    await store.insert(job("one", kept_until=9.0, kept_bytes=2**40 + 7), [])
    await store.insert(job("two", kept_bytes=5), [])
    await store.insert(job("three"), [])
    await store.insert(job("four", owner="else", kept_bytes=3), [])
    assert await store.kept_bytes("somebody") == 2**40 + 12
    assert await store.kept_before(10.0) == ["one"]

    await store.replace(job("one", version=2, kept_bytes=7), [], expected_version=1)
    assert await store.kept_bytes("somebody") == 12
    assert await store.kept_before(10.0) == []
    await store.remove("two", 3.0)
    assert await store.kept_bytes("somebody") == 7


async def test_a_model_counts_once_for_its_owner_as_long_as_a_job_needs_it(
    store: SqlJobStore,
) -> None:
    large = {"model": "cache/large", "model_bytes": 2**40}
    assert await store.model_bytes("somebody") == 0
    await store.insert(job("one", **large), [])
    await store.insert(job("two", **large), [])
    await store.insert(job("three", model="cache/small", model_bytes=7), [])
    await store.insert(job("four", model="cache/base"), [])
    await store.insert(job("five", owner="else", model="cache/theirs", model_bytes=3), [])
    await store.insert(job("six"), [])

    assert await store.model_bytes("somebody") == 2**40 + 7
    assert await store.model_bytes("somebody", without="cache/large") == 7
    needed = [await store.needs_model(f"cache/{name}") for name in ("base", "theirs", "unknown")]
    assert needed == [True, True, False]

    await store.remove("one", 3.0)
    assert await store.model_bytes("somebody") == 2**40 + 7
    await store.replace(job("two", version=2), [], expected_version=1)
    assert await store.model_bytes("somebody") == 7
    assert not await store.needs_model("cache/large")


async def test_jobs_are_listed_from_the_newest_page_by_page(store: SqlJobStore) -> None:
    for number, status in enumerate(("COMPLETED", "FAILED", "COMPLETED", "IN_QUEUE")):
        await store.insert(job(f"job-{number}", created_at=float(number // 2), status=status), [])
    await store.insert(job("theirs", owner="somebody else", created_at=9.0), [])

    def names(page: Sequence[StoredJob]) -> list[str]:
        return [each.id for each in page]

    first = await store.newest(owner="somebody", limit=3)
    assert names(first) == ["job-3", "job-2", "job-1"]
    place = (first[-1].created_at, first[-1].id)
    assert names(await store.newest(owner="somebody", before=place)) == ["job-0"]
    ended = await store.newest(owner="somebody", statuses=("COMPLETED", "FAILED"))
    assert names(ended) == ["job-2", "job-1", "job-0"]
    assert names(await store.newest(limit=1)) == ["theirs"]
    assert names(await store.newest(owner="somebody", id_begins="job-3")) == ["job-3"]
    assert names(await store.newest(id_begins="job_")) == []


async def test_jobs_of_a_line_are_listed_with_those_that_do_not_tell_theirs(
    store: SqlJobStore,
) -> None:
    lines: tuple[Line | None, ...] = ("train", "draw", None, "check")
    for number, line in enumerate(lines):
        await store.insert(job(f"job-{number}", created_at=float(number), line=line), [])

    drawn = await store.newest(owner="somebody", lines=("draw",))
    others = await store.newest(owner="somebody", lines=("train", "check"), limit=2)

    assert [each.id for each in drawn] == ["job-2", "job-1"]
    assert [each.id for each in others] == ["job-3", "job-2"]


# --- the database itself


async def test_many_writers_at_once_all_get_their_turn(
    store: SqlJobStore, neighbour: SqlJobStore
) -> None:
    async with asyncio.timeout(SECONDS):
        await asyncio.gather(
            *(
                each.insert(job(f"{number}-{who}"), [message(f"{number}-{who}")])
                for number in range(40)
                for who, each in (("ours", store), ("theirs", neighbour))
            )
        )
    assert await store.counts("somebody") == {"IN_QUEUE": 80}
    assert len(await store.take_due(1e12, 0.0, limit=1000)) == 80


async def test_a_cancelled_call_leaves_the_store_in_order(store: SqlJobStore) -> None:
    for number in range(20):
        task = asyncio.create_task(store.insert(job(f"job-{number}"), [message(f"m-{number}")]))
        for _ in range(number):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait((task,))

    jobs = {one.id.removeprefix("job-") for one in await store.newest()}
    assert jobs == {each.removeprefix("m-") for each in await ids_due(store)}
    assert await store.insert(job("after"), [])


async def test_engines_that_migrate_at_once_all_succeed_and_agree(empty_url: str) -> None:
    stores = [SqlJobStore.open(empty_url) for _ in range(4)]
    async with asyncio.timeout(SECONDS):
        await asyncio.gather(*(store.migrate() for store in stores))
        await stores[0].insert(job(), [])
        await asyncio.gather(*(store.migrate() for store in stores))
    assert [await store.get("one") for store in stores] == [job()] * 4
    for store in stores:
        await store.close()


def migrate_in_a_process(url: str) -> None:
    async def migrate() -> None:
        store = SqlJobStore.open(url)
        await store.migrate()
        await store.close()

    asyncio.run(migrate())


def test_processes_that_migrate_at_once_all_succeed(empty_url: str) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.map(migrate_in_a_process, [empty_url] * 2, chunksize=1)


@pytest.mark.parametrize("lock", ["IMMEDIATE", "EXCLUSIVE"])
async def test_a_new_sqlite_file_that_another_process_holds_is_waited_for(
    tmp_path: Path, lock: str
) -> None:
    holder = sqlite3.connect(tmp_path / "jobs.db", isolation_level=None)
    holder.execute(f"BEGIN {lock}")  # SQLite itself does not wait for the first, and briefly else
    store = SqlJobStore.open(f"sqlite:///{tmp_path}/jobs.db")
    migrating = asyncio.create_task(store.migrate())
    await asyncio.wait((migrating,), timeout=0.3)
    assert not migrating.done()

    holder.execute("COMMIT")
    async with asyncio.timeout(SECONDS):
        await migrating
    assert holder.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    holder.close()
    await store.close()


async def test_the_migrated_schema_is_the_one_in_the_code(empty_url: str) -> None:
    def differences(connection: sa.Connection) -> list[object]:
        options = {"compare_type": True, "compare_server_default": True}
        context = MigrationContext.configure(connection, opts=options)
        return list(compare_metadata(context, tables.metadata))

    async with closing(SqlJobStore.open(empty_url)) as store:
        await store.migrate()
    engine = create_async_engine(connections.normalise(empty_url))
    async with engine.connect() as connection:
        assert await connection.run_sync(differences) == []
    await engine.dispose()


async def test_a_database_without_a_server_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for url in (f"sqlite:///{tmp_path}/folder", "postgresql://nobody@127.0.0.1:9/none"):
        store = SqlJobStore.open(url)
        with pytest.raises(Unavailable, match="does not answer"):
            await store.get("one")
        with pytest.raises(Unavailable, match="does not answer"):
            await store.insert(job(), [])
        await store.close()


async def test_a_server_that_comes_back_is_used_again() -> None:
    with PostgreSQL() as server:
        store = SqlJobStore.open(server.url())
        await store.migrate()
        await store.insert(job(), [])

        server.end_processes()
        with pytest.raises(Unavailable):
            await store.get("one")

        await asyncio.to_thread(server.start)
        assert await store.get("one") == job()

        server.end_processes()
        await asyncio.to_thread(server.start)
        assert await store.get("one") == job(), "a connection that died unseen is not used"
        await store.close()


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "mysql://x/y"])
def test_a_database_that_cannot_serve_is_named_at_once(url: str) -> None:
    with pytest.raises(ValueError, match="sqlite:///"):
        SqlJobStore.open(url)
