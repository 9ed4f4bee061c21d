"""Every fault in its long form, and a table of what came of each: ``make faults``.

Writes each row into the table of docs/reliability.md as soon as it is measured, in the place of the
one that was there, and exits with 1 if a job was lost or an effect doubled.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from time import monotonic
from traceback import print_exception

from tests.faults.cases import Case, Form, Outcome, all_cases
from tests.faults.evidence import Witness, gather, witnessed
from tests.faults.ledger import Wrong, wrongs
from tests.faults.world import World, faulty_world
from tests.support.measured_page import RELIABILITY, read, table, today, write
from tests.support.servers.postgres import PostgreSQL
from tests.support.servers.rabbitmq import RabbitMQ
from tests.support.servers.s3 import S3Server

HEAD = ("no.", "fault", "times injected", "jobs", "lost", "doubled effects", "time to recover",
        "measured on")  # fmt: skip


@dataclass(frozen=True)
class Row:
    """What came of one case."""

    case: Case
    outcome: Outcome | None
    """None: it did not come to its end."""
    wrongs: tuple[Wrong, ...]

    @property
    def failed(self) -> bool:
        return self.outcome is None or bool(self.wrongs)

    @property
    def cells(self) -> tuple[str, ...]:
        name = self.case.name
        if self.outcome is None:
            return (self.case.number, name, "did not come to its end", "", "", "", "", today())
        lost, doubled = (str(self._jobs(kind)) for kind in ("lost", "doubled"))
        jobs, seconds = str(len(self.outcome.jobs)), f"{self.outcome.seconds:.1f} s"
        injected = str(self.outcome.injected)
        return (self.case.number, name, injected, jobs, lost, doubled, seconds, today())

    def _jobs(self, kind: str) -> int:
        return len({wrong.job for wrong in self.wrongs if wrong.kind == kind})


async def carry_out(cases: Iterable[Case], form: Form, tell: Callable[[Row], object]) -> list[Row]:
    """All of them, those that need PostgreSQL in a world of it; each row is told at once."""
    rows: list[Row] = []
    with RabbitMQ() as broker, S3Server() as s3, PostgreSQL() as postgres:
        for over_postgresql, some in groupby(cases, lambda case: case.database == "postgresql"):
            url = postgres.url() if over_postgresql else None
            async with observed_world(broker, s3, url) as (world, witness):
                for case in some:
                    known = {wrong for row in rows for wrong in row.wrongs}
                    rows.append(await carry_out_one(case, form, world, witness, known))
                    tell(rows[-1])
    return rows


@asynccontextmanager
async def observed_world(
    broker: RabbitMQ, s3: S3Server, database_url: str | None
) -> AsyncIterator[tuple[World, Witness]]:
    """A world, and somebody who has listened from the beginning."""
    async with (
        faulty_world(broker, s3, database_url=database_url) as world,
        witnessed(broker, world.vhost) as witness,
    ):
        await world.warm_up()
        yield world, witness


async def carry_out_one(
    case: Case, form: Form, world: World, witness: Witness, known: set[Wrong]
) -> Row:
    """The case, and what the ledger has to say afterwards that it did not say before."""
    began = monotonic()
    try:
        outcome = await case.run(world, form)
    except Exception as error:  # noqa: BLE001 - the other cases are still worth their while
        print_exception(error)
        outcome = None
    await world.whole()
    found = wrongs(await gather(world, witness))
    row = Row(case, outcome, tuple(wrong for wrong in found if wrong not in known))
    print(f"{monotonic() - began:6.1f} s  {' | '.join(row.cells)}", flush=True)  # noqa: T201
    for wrong in row.wrongs:
        print(f"WRONG  {wrong.sentence}", flush=True)  # noqa: T201
    return row


def keep(row: Row, page: Path = RELIABILITY) -> None:
    """Put the row into the page's table; the rows of other cases stay as they are."""
    lines = read("faults", page).splitlines()[2:]
    known = {cells[1]: cells for cells in (tuple(line[2:-2].split(" | ")) for line in lines)}
    known[row.case.name] = row.cells
    ordered = [known[case.name] for case in all_cases() if case.name in known]
    write("faults", table(HEAD, ordered), page)


def is_chosen(case: Case, words: list[str]) -> bool:
    return not words or any(each in case.name for each in words)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--only", nargs="+", default=[], help="cases with any of these words")
    parser.add_argument("--short", action="store_true", help="the short forms, as in the tests")
    chosen = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    logging.getLogger("aiormq").addHandler(logging.NullHandler())  # the witness tries again
    cases = [case for case in all_cases() if is_chosen(case, chosen.only)]
    form, tell = (Form.SHORT, str) if chosen.short else (Form.LONG, keep)
    rows = asyncio.run(carry_out(cases, form, tell))
    print(table(HEAD, (row.cells for row in rows)))  # noqa: T201
    return 1 if any(row.failed for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
