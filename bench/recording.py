"""How many facts a second one gateway records: ``python -m bench recording``.

A gateway with RabbitMQ and PostgreSQL, and jobs whose training is claimed. A process of its own
publishes their heartbeats, and resume points as facts that are written, each confirmed by the
broker, at higher and higher rates; a rate is sustained if the recorder's queue is empty within a
second after the last. Meanwhile a worker claims the staging of other jobs. The table is written
into docs/performance.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Callable
from tempfile import TemporaryDirectory
from typing import NamedTuple
from uuid import uuid4

import psutil
import sqlalchemy as sa
import structlog

from bench import rows
from bench.jobs import OWNER, PARSED, claiming, fill, released
from bench.load import milliseconds, percentile, timed
from services.gateway.database.connection import Database
from services.gateway.database.tables import open_stages
from services.gateway.jobs.record import Job
from services.gateway.jobs.transitions import advance
from shared.adapters.rabbitmq import RabbitMQBus
from shared.errors import Unavailable
from shared.messaging.messages import (
    DatasetStaged,
    Message,
    ResumePointSaved,
    StagingStarted,
    TrainingProgressed,
    TrainingStarted,
)
from shared.messaging.topology import GATEWAY_RECORDER
from shared.service_process import closing
from tests.support.measured_page import today
from tests.support.servers.postgres import PostgreSQL
from tests.support.servers.rabbitmq import RabbitMQ
from tests.support.services import services_in_a_folder

WORKERS = 500
"""Jobs in training."""
HEARTBEAT = 10.0
SECONDS = 10.0
"""Of each rate."""
CLAIMS_PER_SECOND = 20
TO_CLAIM = int(SECONDS * CLAIMS_PER_SECOND)
"""Jobs whose staging is claimed, once at each rate."""
DRAIN_SECONDS = 1.0
STEP = 1.3
"""Between two rates."""
IN_TIME = 0.97
"""Of what should have been published, so much was."""
PROGRESS = {"step": 1, "steps": 100, "loss": 0.1, "images_per_second": 2.5, "epoch": 1}
HEAD = (
    *("what", "heartbeats", "deciding facts", "claim p50", "claim p99"),
    *("processor, each", "load", "measured on"),
)


class Rate(NamedTuple):
    """Messages a second."""

    heartbeats: float
    facts: float

    def times(self, factor: float) -> Rate:
        return Rate(self.heartbeats * factor, self.facts * factor)


class Trial(NamedTuple):
    """What came of a rate."""

    rate: Rate
    sustained: bool
    claims: list[float]
    """Seconds from claim to grant."""
    processor: float
    """Seconds of the gateway's for each message, claims and what ends them among them."""


TARGET = "wanted of both"
KINDS = {
    "heartbeats alone": Rate(500, 0),
    "deciding facts alone": Rate(0, 150),
    "both": Rate(600, 120),
}


def main(arguments: list[str] | None = None) -> None:
    """Measure each kind, and write its row; ``--load`` is the process that publishes."""
    parser = argparse.ArgumentParser(prog="python -m bench.recording", description=__doc__)
    parser.add_argument("--load", help="publish by this order, in JSON")
    chosen = parser.parse_args(arguments or [])
    if chosen.load:
        structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
        print(json.dumps(asyncio.run(publish_all(**json.loads(chosen.load)))))
        return
    with RabbitMQ() as broker, PostgreSQL() as server:
        asyncio.run(measure(broker.fresh_url(), server.url()))


async def measure(amqp_url: str, database_url: str) -> None:
    training = [trained() for _ in range(WORKERS)]
    waiting = [released(str(uuid4())) for _ in range(TO_CLAIM)]
    await fill(database_url, [*training, *waiting])
    claimed, to_claim = ([job.id for job in of] for of in (training, waiting))
    with TemporaryDirectory(prefix="bench-recording-") as folder:
        environment = {
            "EVERYDREAM_AMQP_URL": amqp_url,
            "EVERYDREAM_DATABASE_URL": database_url,
            "EVERYDREAM_STORE_URL": f"file://{folder}/store",
            "EVERYDREAM_SECRET_KEY": "a key of thirty-two letters or more",
            "EVERYDREAM_API_KEYS": OWNER,
            "EVERYDREAM_HEARTBEAT": str(HEARTBEAT),
        }
        async with services_in_a_folder(environment) as services:
            gateway = services.begin("gateway")
            await gateway.wait_until_ready()
            bus = await RabbitMQBus.open(amqp_url, source="bench/depth", heartbeat=HEARTBEAT)
            async with closing(bus):
                look = Trials(amqp_url, bus, psutil.Process(gateway.pid), claimed, to_claim)
                await look.at(Rate(100, 0))  # the first heartbeats are not like the later ones
                keep(TARGET, await look.at(Rate(500, 100)))
                for name, first in KINDS.items():
                    keep(name, await look.highest(first))
    live = await still_claimed(database_url)
    print(f"{live} of {WORKERS} claims of trainings are live at the end")


def keep(name: str, trial: Trial) -> None:
    """Write a row, also if it is not what is wanted."""
    sustained = "" if trial.sustained else " (not sustained)"
    rows.put(
        "recording",
        HEAD,
        (
            name,
            f"{trial.rate.heartbeats:.0f}/s{sustained}",
            f"{trial.rate.facts:.0f}/s{sustained}",
            *(milliseconds(trial.claims, of) for of in (50, 99)),
            f"{1000 * trial.processor:.2f} ms",
            f"{os.getloadavg()[0]:.1f}",
            today(),
        ),
        (TARGET, *KINDS),
    )


class Trials:
    """Tries rates, one after another."""

    def __init__(
        self,
        amqp_url: str,
        bus: RabbitMQBus,
        gateway: psutil.Process,
        claimed: list[str],
        to_claim: list[str],
    ) -> None:
        self._amqp_url = amqp_url
        self._gateway = gateway
        self._bus = bus
        self._claimed = claimed
        self._to_claim = to_claim

    async def highest(self, first: Rate) -> Trial:
        """The last sustained one of rising rates, or the first if not even that is sustained."""
        best = trial = await self.at(first)
        while trial.sustained:
            best, trial = trial, await self.at(trial.rate.times(STEP))
        return best

    async def at(self, rate: Rate) -> Trial:
        order = {
            "amqp_url": self._amqp_url, "claimed": self._claimed,
            "heartbeats": rate.heartbeats, "facts": rate.facts,
        }  # fmt: skip
        before = self._processor()
        load = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "bench.recording", "--load", json.dumps(order)),
            stdout=asyncio.subprocess.PIPE,
        )
        timing = asyncio.create_task(claim_times(self._amqp_url, self._to_claim))
        said, _ = await load.communicate()
        published = json.loads(said)
        drained = await self._drained(DRAIN_SECONDS)
        claims = await timing
        wanted = SECONDS * (rate.heartbeats + rate.facts)
        in_time = published["in_time"] / wanted
        print(
            f"{rate.heartbeats:.0f} heartbeats/s, {rate.facts:.0f} facts/s:"
            f" {in_time:.0%} published in time, {'' if drained else 'not '}drained,"
            f" claim p99 {1000 * percentile(claims, 99):.0f} ms, load {os.getloadavg()[0]:.1f}",
            flush=True,
        )
        await self._drained(600.0)
        each = (self._processor() - before) / (wanted + 2 * len(claims))
        print(f"{1000 * each:.2f} ms of the gateway's processor for each message", flush=True)
        return Trial(rate, drained and in_time >= IN_TIME, claims, each)

    def _processor(self) -> float:
        times = self._gateway.cpu_times()
        return float(times.user + times.system)

    async def _drained(self, seconds: float) -> bool:
        """Whether the recorder's queue is empty within so many seconds."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if not await self._bus.depth(GATEWAY_RECORDER):
                return True
            await asyncio.sleep(0.05)
        return False


async def claim_times(amqp_url: str, ids: list[str]) -> list[float]:
    """Seconds from each claim to its grant; each job is handed over again at once."""
    async with claiming(amqp_url, HEARTBEAT) as claim:
        remaining = iter(ids)
        return await timed(
            lambda: claim(next(remaining)), per_second=CLAIMS_PER_SECOND, seconds=SECONDS
        )


# --- The jobs -------------------------------------------------------------------------------------


def trained() -> Job:
    """A job whose training is claimed, under a claim named like the job."""
    job = released(str(uuid4()))
    assert PARSED.train is not None  # noqa: S101 - the request trains
    for fact in (
        StagingStarted(job=job.id, stage="staging", claim="s"),
        DatasetStaged(
            job=job.id, stage="staging", claim="s", train=PARSED.train, dataset="d", base_model="m",
            report={"images": 100},
        ),
        TrainingStarted(job=job.id, stage="training", claim=job.id, gpu="card", worker="bench"),
    ):  # fmt: skip
        job = advance(job, fact, reply_queue=None, now=time.time(), heartbeat=HEARTBEAT).job
    return job


async def still_claimed(url: str) -> int:
    async with closing(Database.open(url)) as database:
        claims = sa.select(open_stages.c.job).where(open_stages.c.claim == open_stages.c.job)
        return len(await database.all(claims))


# --- The load, in a process of its own ------------------------------------------------------------


async def publish_all(
    amqp_url: str, claimed: list[str], heartbeats: float, facts: float
) -> dict[str, int]:
    """How many were confirmed within the time."""
    bus = await RabbitMQBus.open(amqp_url, source="trainer/bench", heartbeat=HEARTBEAT)
    async with closing(bus):
        times: list[float] = []
        begun = time.perf_counter()

        async def publish(message: Message) -> None:
            try:
                await bus.publish(message)
            except Unavailable:  # not confirmed within its time: it is more than the broker takes
                return
            times.append(time.perf_counter() - begun)

        async def steadily(rate: float, message: Callable[[int], Message]) -> None:
            async with asyncio.TaskGroup() as group:
                for number in range(int(rate * SECONDS)):
                    group.create_task(publish(message(number)))
                    await asyncio.sleep(begun + (number + 1) / rate - time.perf_counter())

        def heartbeat(number: int) -> Message:
            job = claimed[number % len(claimed)]
            progress = {**PROGRESS, "step": number}
            return TrainingProgressed(job=job, stage="training", claim=job, progress=progress)

        def resume_point(number: int) -> Message:
            job = claimed[number % len(claimed)]
            prefix = f"jobs/{job}/training/1/resume-{uuid4()}"
            return ResumePointSaved(
                job=job, stage="training", claim=job, prefix=prefix, step=number, epoch=1
            )

        await asyncio.gather(steadily(heartbeats, heartbeat), steadily(facts, resume_point))
    return {"in_time": sum(each <= SECONDS + DRAIN_SECONDS for each in times)}


if __name__ == "__main__":
    main(sys.argv[1:])
