"""Whatever comes, begins and ends: turns are taken in the fair order, at any gateway."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine
from itertools import count
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from services.gateway.database import tables
from services.gateway.database.connection import Database
from services.gateway.database.stores import stores_in
from services.gateway.ports import Line, StoredJob
from services.gateway.stores import Stores
from services.gateway.turns.places import MIN_PLACES, MIN_SLOTS, Places
from services.gateway.turns.workers import Workers
from shared.messaging.messages import Stage
from tests.support.forms import few

OWNERS = st.sampled_from(["anna", "ben", "carl", "dora"])
SOME_LINES: tuple[Line, ...] = ("train", "train", "train", "check")
ANY_LINE = st.sampled_from(SOME_LINES)
STEPS = 80
T = TypeVar("T")


class SeenWorkers:
    """As many workers as a test says."""

    def __init__(self) -> None:
        self.number = 0

    def last_seen(self, _stage: Stage) -> int:
        return self.number


class Jobs:
    """The rows of one database, which is emptied for each example, as two gateways see them."""

    def __init__(self, folder: Path) -> None:
        self.loop = asyncio.new_event_loop()
        self.database = Database.open(f"sqlite:///{folder / 'jobs.db'}")
        self.do(self.database.migrate())
        self.seen = SeenWorkers()
        self.start()

    def start(self) -> None:
        """Two gateways, which know nothing but the rows."""
        stores = self.stores = stores_in(self.database)
        workers = cast("Workers", self.seen)
        self.gateways = [Places(stores.turns, workers), Places(stores.turns, workers)]

    def empty(self) -> None:
        for table in (tables.jobs, tables.turns):
            self.do(self.database.do(sa.delete(table)))

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def close(self) -> None:
        self.do(self.database.close())
        self.loop.close()


class Turns(RuleBasedStateMachine):
    """Compares each turn with a plain model: lists of jobs, and when each owner had a turn."""

    jobs: Jobs
    """Shared by all examples."""

    @initialize()
    def begin(self) -> None:
        self.jobs.empty()
        self.jobs.seen.number = 0
        self.number, self.clock = count(), 0.0
        self.known: dict[str, StoredJob] = {}
        self.last: dict[tuple[str, Line], float] = {}
        self.passed_over: Counter[tuple[str, Line, str]] = Counter()
        """By who waits, line and who had a turn meanwhile: how often."""

    @property
    def stores(self) -> Stores:
        return self.jobs.stores

    def now(self) -> float:
        self.clock += 1.0
        return self.clock

    def held(self, line: Line, owner: str | None = None) -> int:
        return sum(
            job.released_at is not None and job.line == line and owner in (None, job.owner)
            for job in self.known.values()
        )

    def waiting(self, line: Line) -> list[StoredJob]:
        return [job for job in self.known.values() if job.released_at is None and job.line == line]

    def barred(self, line: Line) -> set[str]:
        share = max(MIN_PLACES, 2 * self.jobs.seen.number) // 2
        downloads = max(MIN_SLOTS, self.jobs.seen.number)
        staging = Counter(
            job.owner for job in self.known.values() if job.released_at is not None and job.staging
        )
        owners = {job.owner for job in self.known.values()}
        return {
            owner
            for owner in owners
            if self.held(line, owner) >= share or 4 * staging[owner] >= 3 * downloads
        }

    def is_full(self, line: Line) -> bool:
        return self.held(line) >= max(MIN_PLACES, 2 * self.jobs.seen.number)

    def expected(self, line: Line) -> str | None:
        """Normal before low; then the owner whose turn is longest ago; then the oldest job."""
        waiting = self.waiting(line)
        some = [job for job in waiting if not job.low] or waiting
        barred = self.barred(line)
        first: dict[str, StoredJob] = {}
        for job in some:
            first.setdefault(job.owner, job)
        free = [job for job in first.values() if job.owner not in barred]
        if self.is_full(line) or not free:
            return None
        order = {job.id: (self.last.get((job.owner, line), 0.0), job.created_at) for job in free}
        return min(order, key=lambda name: order[name])

    def write(self, job: StoredJob, **changes: Any) -> None:
        later = msgspec.structs.replace(job, version=job.version + 1, **changes)
        assert self.jobs.do(self.stores.jobs.replace(later, [], expected_version=job.version))
        self.known[job.id] = later
        if later.status != "IN_QUEUE":
            del self.known[job.id]

    @rule(
        owner=OWNERS, line=ANY_LINE, low=st.booleans(), number=st.integers(1, 6),
        gateway=st.integers(0, 1),
    )  # fmt: skip
    def submit(self, owner: str, line: Line, low: bool, number: int, gateway: int) -> None:  # noqa: FBT001
        for _ in range(number):
            self.jobs.do(self._submit(owner, line, low=low, gateway=gateway))

    async def _submit(self, owner: str, line: Line, *, low: bool, gateway: int) -> None:
        now, name = self.now(), f"job-{next(self.number)}"
        at_once = not self.waiting(line) and not self.is_full(line)
        at_once = at_once and owner not in self.barred(line)
        async with self.jobs.gateways[gateway].entering(line, owner) as its_turn:
            assert its_turn == at_once
            job = StoredJob(
                id=name, owner=owner, status="IN_QUEUE", version=1, created_at=now, ended_at=None,
                line=line, low=low, released_at=now if its_turn else None, staging=True,
                record=b"{}",
            )  # fmt: skip
            assert await self.stores.jobs.insert(job, [])
        self.known[name] = job
        if its_turn:
            self._had_turn(owner, line, now)

    @rule(line=ANY_LINE, gateway=st.integers(0, 1))
    def release(self, line: Line, gateway: int) -> None:
        turn = self.jobs.do(self.jobs.gateways[gateway].next(line))
        assert (turn[0] if turn else None) == self.expected(line)
        if turn is None:
            return
        job, now = self.known[turn[0]], self.now()
        assert not job.low or all(other.low for other in self.waiting(line))
        waits = {other.owner for other in self.waiting(line) if not other.low}
        for owner in waits - self.barred(line) - {job.owner}:
            self.passed_over[owner, line, job.owner] += 1
            assert self.passed_over[owner, line, job.owner] == 1, "nobody goes twice meanwhile"
        self.write(job, released_at=now)
        self._had_turn(job.owner, line, now)

    def _had_turn(self, owner: str, line: Line, now: float) -> None:
        self.last[owner, line] = now
        for who in [key for key in self.passed_over if key[:2] == (owner, line)]:
            del self.passed_over[who]

    @precondition(lambda self: any(job.released_at for job in self.known.values()))
    @rule(data=st.data(), what=st.sampled_from(["staged", "begins", "ends"]))
    def go_on(self, data: st.DataObject, what: str) -> None:
        released = [job for job in self.known.values() if job.released_at is not None]
        job = data.draw(st.sampled_from(released))
        changes: dict[str, dict[str, Any]] = {
            "staged": {"staging": False},
            "begins": {"status": "IN_PROGRESS", "staging": False},
            "ends": {"status": "COMPLETED", "ended_at": self.now(), "staging": False},
        }
        self.write(job, **changes[what])

    @precondition(lambda self: bool(self.known))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from([*self.known.values()]))
        self.write(job, status="CANCELLED", ended_at=self.now())

    @rule(number=st.integers(0, 9))
    def see_workers(self, number: int) -> None:
        self.jobs.seen.number = number

    @rule()
    def restart(self) -> None:
        self.jobs.start()


@pytest.mark.parametrize("examples", few(10, of=[10, 40]))
def test_turns_are_fair_whatever_comes(tmp_path: Path, examples: int) -> None:
    jobs = Jobs(tmp_path)

    class OnTheseJobs(Turns):
        pass

    OnTheseJobs.jobs = jobs
    try:
        run_state_machine_as_test(
            OnTheseJobs,
            settings=settings(
                max_examples=examples,
                stateful_step_count=STEPS,
                deadline=None,
                database=None,
                suppress_health_check=[*HealthCheck],
                phases=[Phase.generate],
            ),
        )
    finally:
        jobs.close()
