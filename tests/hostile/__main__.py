"""One key does everything rude at once while another runs ten ordinary jobs: ``make hostile``.

Writes what came of it into docs/security.md, and ends with status 1 and a sentence for every bar
that was missed.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec
import sqlalchemy as sa

from everydream.client import Client
from services.gateway.database import tables
from services.gateway.database.connection import Database
from shared.service_process import closing
from tests.end_to_end.story import API_KEY, User, bucket_config, host_of, user_of
from tests.hostile import report
from tests.hostile.bars import Outcome, missed
from tests.hostile.client import Event, Stock, Target
from tests.hostile.direct import job_of, replies
from tests.hostile.leftovers import children_of, leftovers, settled
from tests.hostile.measure import Turns, Watch, percentile, turns_told, watched
from tests.hostile.other import Run, fresh_event, ten_jobs
from tests.hostile.rude import Deeds
from tests.support.broker_logins import make_user
from tests.support.following import followed
from tests.support.measured_page import SECURITY, write
from tests.support.servers.postgres import PostgreSQL
from tests.support.servers.process import HOST, free_port
from tests.support.servers.rabbitmq import RabbitMQ
from tests.support.servers.s3 import S3Server
from tests.support.servers.web import running_web
from tests.support.services import COLD, ROOT, Services, running, shared_environment
from tests.support.warm.server import start_server

SERVICES = ("gateway", "fetcher", "trainer", "inferencer", "notifier")
RUDE_KEY = "a-rude-key"
HEARTBEAT = 2.0
"""Seconds: whoever gets no time for twelve counts as lost."""
HEAD_START = 10.0
"""Seconds of rudeness before the ten jobs come."""
PATIENCE, PEACE = 900.0, 300.0
"""Seconds for the ten jobs, and for the rude key's to end afterwards."""
LATE_SECONDS = 20 * HEARTBEAT
"""In which the last of what ended jobs leave is removed."""
TELL_SECONDS = 5.0
LINE_BYTES = 64 << 20
SIBLING = "somebody else's file"


def tell(words: str) -> None:
    print(words, flush=True)  # noqa: T201


# --- The rude key's process ---------------------------------------------------------------------


@dataclass
class Rude:
    """The process, its servers, and what it has said last."""

    process: asyncio.subprocess.Process
    log: Path
    stock: Stock
    deeds: Deeds

    async def annoy(self, target: Target) -> None:
        """Begin, and listen to what it says of it; ends when it does."""
        await self._write(msgspec.json.encode(target))
        while line := await self._read():
            self.deeds = msgspec.json.decode(line, type=Deeds)
        if await self.process.wait():
            raise RuntimeError(f"the rude key's process ended:\n{last_words(self.log)}")

    async def end(self) -> None:
        """Have it stop, and end its jobs."""
        await self._write(b"")

    async def _write(self, line: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + b"\n")
        await self.process.stdin.drain()

    async def _read(self) -> bytes:
        assert self.process.stdout is not None
        return await self.process.stdout.readline()


def last_words(log: Path) -> str:
    return log.read_text()[-4000:]


@asynccontextmanager
async def rude_process(log: Path) -> AsyncIterator[Rude]:
    with log.open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.hostile.rude", cwd=ROOT, limit=LINE_BYTES,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=errors,
        )  # fmt: skip
    try:
        assert process.stdout is not None
        line = await process.stdout.readline()
        if not line:
            raise RuntimeError(f"the rude key's process did not begin:\n{last_words(log)}")
        yield Rude(process, log, msgspec.json.decode(line, type=Stock), Deeds({}))
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


# --- One deployment, and both keys --------------------------------------------------------------


@dataclass
class Scene:
    """Everything that is there."""

    services: Services
    watch: Watch
    turns: Turns
    user: User
    bucket: dict[str, str]
    producer: str
    """The broker's address with the login of the other's producer."""
    rude: Rude
    rude_login: str
    store: Path
    database_url: str

    async def run_ten(self, event: Event, run: Run) -> None:
        await ten_jobs(self.user, self.bucket, self.producer, event, PATIENCE, run)

    async def links_of_rude(self) -> tuple[str, ...]:
        """To the files of an ordinary job of the rude key; another file lies beside each."""
        client = Client(self.user.session, self.services.first("gateway").url, RUDE_KEY)
        job = await client.run({**self.user.request(), "webhook": self.rude.stock.small})
        *_, end = [status async for status in followed(client, job)]
        links = [str(each["url"]) for each in end["output"]["artifacts"]]
        await asyncio.to_thread(self._plant, links)
        return tuple(links)

    def _plant(self, links: list[str]) -> None:
        for link in links:
            key = unquote(urlsplit(link).path.removeprefix("/files/"))
            file = self.store / f"{key}.gz"
            file.write_text(SIBLING)


@asynccontextmanager
async def scene(folder: Path) -> AsyncIterator[Scene]:
    with RabbitMQ() as broker, S3Server() as s3, PostgreSQL() as postgres:
        vhost, database_url, store = broker.fresh_vhost(), postgres.url(), folder / "store"
        port = free_port()
        async with running_web() as web, rude_process(folder / "rude.log") as rude:
            allowed = f"{host_of(web.url())},{host_of(s3.endpoint_url)},{rude.stock.hosts}"
            environment = shared_environment(
                amqp_url=broker.url(vhost), database_url=database_url, s3=s3, bucket="none",
                STORE_URL=f"file://{store}", API_KEYS=f"{API_KEY},{RUDE_KEY}",
                PORT=str(port), PUBLIC_URL=f"http://{HOST}:{port}", HEARTBEAT=str(HEARTBEAT),
                ALLOWED_PRIVATE_HOSTS=allowed,
            )  # fmt: skip
            async with (
                running(SERVICES, environment, program=COLD) as services,
                watched(services) as watch,
                turns_told(broker.url(vhost)) as turns,
                user_of(services.first("gateway").url, web) as user,
            ):
                yield Scene(
                    services, watch, turns, user, bucket_config(s3, s3.create_bucket()),
                    await asyncio.to_thread(make_user, broker, "producer", "other", vhost),
                    rude,
                    await asyncio.to_thread(make_user, broker, "producer", "rude", vhost),
                    store, database_url,
                )  # fmt: skip


async def carry_out(minutes: float, only: tuple[str, ...]) -> Outcome:
    with TemporaryDirectory(prefix="hostile-") as folder:
        tell("starting servers and services")
        await asyncio.to_thread(start_server)
        async with scene(Path(folder)) as here:
            return await _carry_out(here, minutes, only)


async def _carry_out(here: Scene, minutes: float, only: tuple[str, ...]) -> Outcome:
    tell("one job, so that everything is loaded")
    links = await here.links_of_rude()
    tell("ten jobs of the other key, alone")
    here.watch.begin_anew()
    alone, beside = Run(), Run()
    await telling(here, alone, here.run_ten(fresh_event("other", "other.alone"), alone))
    quiet_peaks, children = here.watch.begin_anew(), children_of(here.services)
    before, event = here.watch.pids(), fresh_event("other", "other.replies")
    target = Target(
        url=here.services.first("gateway").url, key=RUDE_KEY, amqp_url=here.rude_login,
        other=event, links=links, sibling=SIBLING, seconds=60 * minutes, only=only,
    )  # fmt: skip
    tell(f"{minutes:g} minutes of rudeness, and the ten jobs again")
    began, annoying = monotonic(), asyncio.create_task(here.rude.annoy(target))
    await telling(here, beside, asyncio.sleep(HEAD_START))
    beside.began = monotonic()
    await telling(here, beside, here.run_ten(event, beside))
    await telling(here, beside, asyncio.sleep(max(began + 60 * minutes - monotonic(), 0)))
    turns = here.turns.of_others(
        {*beside.submitted, job_of(event)}, max(beside.ended.values(), default=monotonic())
    )
    peaks = here.watch.begin_anew()
    for job, ended in beside.ended.items():
        since = beside.submitted[job]
        tell(f"job {job}: {here.turns.way(job, since)}, ended {ended - since:.1f} s")
    tell("peace: the rude key's jobs are cancelled")
    await here.rude.end()
    await telling(here, beside, asyncio.wait_for(annoying, PEACE))
    unsettled = await settled(here.database_url, PEACE, tell)
    after = here.watch.pids()
    tell("what is left")
    left = await leftovers(here.services, here.store, here.database_url, children, LATE_SECONDS)
    deeds = here.rude.deeds
    return Outcome(
        alone=alone,
        beside=beside,
        turns=tuple(turns),
        quiet_peaks=quiet_peaks,
        peaks=peaks,
        pids={name: (pid, after.get(name)) for name, pid in before.items()},
        restarts=dict(here.watch.restarts),
        answers=deeds.answers,
        jobs={
            act: (len(jobs), len(here.turns.begun & {*jobs})) for act, jobs in deeds.jobs.items()
        },
        producer_end=await status_of(here.database_url, job_of(event)),
        stray_replies=len(await replies(here.producer, event)),
        left=(*left, *([unsettled] if unsettled else [])),
        last_words=tuple(here.watch.last_words),
    )


async def status_of(database_url: str, job: str) -> str | None:
    wanted = sa.select(tables.jobs.c.status).where(tables.jobs.c.id == job)
    async with closing(Database.open(database_url)) as database:
        rows = await database.all(wanted)
    return str(rows[0][0]) if rows else None


async def telling(here: Scene, run: Run, work: Awaitable[Any]) -> None:
    """Say how far it is while the work is done."""
    doing, began = asyncio.ensure_future(work), monotonic()
    while not (await asyncio.wait((doing,), timeout=TELL_SECONDS))[0]:
        tell(f"{monotonic() - began:5.0f} s  {progress(here, run)}")
    doing.result()


def progress(here: Scene, run: Run) -> str:
    asked = sum(sum(answers.values()) for answers in here.rude.deeds.answers.values())
    p99 = percentile(run.looks, 99)
    memory = ", ".join(f"{name} {peak.bytes >> 20} MiB" for name, peak in here.watch.peaks.items())
    died = f", died: {dict(here.watch.restarts)}" if here.watch.restarts else ""
    return (
        f"{len(run.ended)} of {len(run.submitted)} jobs ended, /status p99 {1000 * p99:.0f} ms;"
        f" {asked:,} rude requests; {memory}{died}"
    )


# --- The command --------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.hostile", description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0, help="of rudeness, at least")
    parser.add_argument(
        "--only", nargs="+", default=[], help="acts with any of these words; writes no table"
    )
    chosen = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    logging.getLogger("aiormq").addHandler(logging.NullHandler())
    outcome = asyncio.run(carry_out(chosen.minutes, tuple(chosen.only)))
    wrong = missed(outcome)
    text = report.page(outcome, chosen.minutes, wrong)
    tell(text)
    for words in outcome.last_words:
        tell(words)
    if not chosen.only:
        write("hostile", text, SECURITY)
    for sentence in wrong:
        tell(f"MISSED  {sentence}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
