"""A thousand workers for five minutes: a part of ``python -m bench scale``.

One gateway with RabbitMQ and PostgreSQL, and workers that claim, send heartbeats and publish as the
real ones do, by the real runtime, whose work is to wait. They are in this process, and many share
a connection. Then it is counted what was lost. The table is written into docs/performance.md.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any, NamedTuple, cast
from uuid import uuid4

import msgspec
import psutil
import sqlalchemy as sa
import structlog

from bench.jobs import admitted, fill
from bench.load import highest_memory, milliseconds
from bench.rows import PAGE
from services.gateway.database.connection import Database
from services.gateway.database.tables import jobs
from services.gateway.jobs.record import Job
from shared.adapters.folder import FolderStore
from shared.adapters.rabbitmq import RabbitMQBus
from shared.messaging import messages as m
from shared.messaging.topology import FETCHER, GATEWAY_RECORDER, INFERENCER_RESULTS, TRAINER, Queue
from shared.ports import ObjectStore
from shared.service_process import closing
from shared.worker.order import Order
from shared.worker.runtime import Worker
from tests.support.measured_page import table, today, write
from tests.support.scraping import Port, Samples, port_of
from tests.support.servers.postgres import PostgreSQL
from tests.support.servers.rabbitmq import RabbitMQ
from tests.support.services import ServiceProcess, services_in_a_folder

HEARTBEAT = 10.0
SECONDS = 300.0
JOBS = 3_000
KEYS = tuple(f"key-{number}" for number in range(8))
"""One key has half of the places at most."""
WORKERS_PER_BUS = 125
"""A bus has two connections, and two channels for each worker."""
DRAIN_SECONDS = 600.0
FILE = m.Artifact(name="last.safetensors", kind="checkpoint", key="k", bytes=1, sha256="0" * 64)
IMAGE = m.DrawnImage(
    artifact=m.Artifact(name="image.png", kind="image", key="k", bytes=1, sha256="0" * 64),
    prompt="a unique 123xyz concept name as a superhero", width=512, height=512,
    num_inference_steps=50, guidance_scale=7.5, scheduler="DDIM", seed=1,
)  # fmt: skip


class Kind(NamedTuple):
    """Workers of one service."""

    number: int
    service: str
    queue: Queue
    stage: m.Stage
    started: type[m.Started]
    progressed: type[m.Progressed]
    interrupted: type[m.Interruption]
    seconds: float
    """Of work, give or take a half."""
    result: Callable[[Order], m.Result]


def staged(order: Order) -> m.DatasetStaged:
    assert isinstance(order.message, m.StagingDue)  # noqa: S101 - what its queue has
    assert order.message.train is not None  # noqa: S101 - all jobs train
    return m.DatasetStaged(
        **order.stamp(), train=order.message.train, inference=order.message.inference,
        dataset="d", base_model="m", report={"images": 100},
    )  # fmt: skip


def trained(order: Order) -> m.CheckpointFinal:
    assert isinstance(order.message, m.DatasetStaged)  # noqa: S101 - what its queue has
    return m.CheckpointFinal(
        **order.stamp(), inference=order.message.inference, model="m", checkpoint=FILE,
        summary={"steps": 100, "images": 100},
    )  # fmt: skip


def drawn(order: Order) -> m.ImagesGenerated:
    return m.ImagesGenerated(**order.stamp(), images=(IMAGE,))


KINDS = (
    Kind(
        50, "fetcher", FETCHER, "staging", m.StagingStarted, m.StagingProgressed,
        m.StagingInterrupted, 4.0, staged,
    ),
    Kind(
        900, "trainer", TRAINER, "training", m.TrainingStarted, m.TrainingProgressed,
        m.TrainingInterrupted, 120.0, trained,
    ),
    Kind(
        50, "inferencer", INFERENCER_RESULTS, "generation", m.GenerationStarted,
        m.GenerationProgressed, m.GenerationInterrupted, 4.0, drawn,
    ),
)  # fmt: skip


class Tally:
    """What all workers have seen."""

    def __init__(self) -> None:
        self.asked: dict[str, float] = {}
        """By claim that has no answer: when it was first asked for."""
        self.claims: list[float] = []
        """Seconds from a claim's message to the beginning of its work."""
        self.done: Counter[tuple[str, m.Stage]] = Counter()
        self.cut_off = 0
        """Works that the gateway ended."""
        self.is_over = False


class Waiting:
    """Work that waits; see :class:`shared.worker.work.Work`."""

    concurrency = 1
    graceful = False

    def __init__(self, kind: Kind, tally: Tally) -> None:
        self._kind = kind
        self._tally = tally
        self.queue = kind.queue
        self.progressed = kind.progressed
        self.interrupted = kind.interrupted

    @property
    def started(self) -> type[m.Started]:
        return cast("type[m.Started]", self._claim)

    def _claim(self, **fields: Any) -> m.Started:
        self._tally.asked.setdefault(fields["claim"], monotonic())
        return self._kind.started(**fields)

    def stage_of(self, _message: m.AnyMessage) -> m.Stage:
        return self._kind.stage

    async def prepare(self) -> str:
        return "a card"

    async def perform(self, order: Order) -> m.Result:
        self._tally.claims.append(monotonic() - self._tally.asked.pop(order.claim))
        try:
            await self._wait(order)
        except asyncio.CancelledError:
            self._tally.cut_off += not self._tally.is_over
            raise
        self._tally.done[order.job, order.stage] += 1
        return self._kind.result(order)

    async def _wait(self, order: Order) -> None:
        """With the facts and the progress of a training: a resume point in the middle."""
        seconds = self._kind.seconds * random.uniform(0.5, 1.5)
        for step in range(100):
            order.progress(phase="training", step=step, steps=100, loss=0.1, images_per_second=2.5)
            await asyncio.sleep(seconds / 100)
            if step == 50 and order.stage == "training":  # noqa: PLR2004 - the middle
                prefix = f"jobs/{order.job}/training/1/resume-{uuid4()}"
                await order.publish(
                    m.ResumePointSaved(**order.stamp(), prefix=prefix, step=step, epoch=0)
                )

    async def close(self) -> None:
        pass


@asynccontextmanager
async def working(amqp_url: str, store: ObjectStore, tally: Tally) -> AsyncIterator[None]:
    """All workers work within the block, and hand over what they have at its end."""
    stop = asyncio.Event()
    async with AsyncExitStack() as buses:
        running: list[asyncio.Task[None]] = []
        for kind in KINDS:
            for first in range(0, kind.number, WORKERS_PER_BUS):
                source = f"{kind.service}/bench-{first}"
                opening = RabbitMQBus.open(amqp_url, source=source, heartbeat=HEARTBEAT)
                bus = await buses.enter_async_context(closing(await opening))
                for _ in range(first, min(first + WORKERS_PER_BUS, kind.number)):
                    worker = Worker(bus, store, Waiting(kind, tally), heartbeat=HEARTBEAT)
                    running.append(asyncio.create_task(worker.run(stop)))
        try:
            yield
        finally:
            tally.is_over = True
            stop.set()
            await asyncio.gather(*running)


Figures = Sequence[tuple[str, str]]
"""What, and how much, for people."""


# --- What came of it ------------------------------------------------------------------------------


class Seen:
    """How broker, database and gateway stood meanwhile."""

    def __init__(self, broker: RabbitMQ, server: PostgreSQL, gateway: ServiceProcess) -> None:
        self._broker = broker
        self._server = server
        self._gateway = gateway
        self._before = self._processors()
        self.lag = 0.0
        """The longest that a fact waited to be recorded; seconds."""
        self.at_work = 0.0
        """The most claims at a time."""

    async def look(self, port: Port, seconds: float) -> None:
        """Look again and again for a time."""
        end = monotonic() + seconds
        while monotonic() < end:
            samples = await port.scrape()
            self.lag = max(self.lag, total(samples, "everydream_recorder_lag_seconds"))
            claimed = total(samples, "everydream_stage_jobs", state="claimed")
            self.at_work = max(self.at_work, claimed)
            await asyncio.sleep(min(2.0, max(end - monotonic(), 0.0)))

    async def figures(self, port: Port, seconds: float) -> Figures:
        """Of the time so far."""
        samples, now = await port.scrape(), self._processors()
        shares = {name: (now[name] - before) / seconds for name, before in self._before.items()}
        heartbeats = sum(total(samples, FACTS, type=m.type_of(kind.progressed)) for kind in KINDS)
        own = total(samples, FACTS, type=m.type_of(m.GatewayHeartbeat))
        facts = total(samples, FACTS) - heartbeats - own
        programs = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
        *counted, memory = [int(self._broker.evaluate(each)) for each in OF_BROKER]
        return (
            ("heartbeats, other facts", f"{heartbeats / seconds:.0f}/s, {facts / seconds:.0f}/s"),
            ("of one processor", programs),
            ("broker: connections, channels, queues", ", ".join(f"{each:,}" for each in counted)),
            ("broker: memory", f"{memory / 2**20:.0f} MiB"),
        )

    def _processors(self) -> dict[str, float]:
        """Seconds, by program."""
        broker = int(self._broker.evaluate("os:getpid()").strip('"'))
        of = {
            "gateway": [psutil.Process(self._gateway.pid)],
            "broker": [psutil.Process(broker)],
            "PostgreSQL": self._server._processes(),  # noqa: SLF001 - it has no other name
            "all workers": [psutil.Process()],
        }
        return {name: sum(map(_processor, processes)) for name, processes in of.items()}


FACTS = "everydream_fact_record_seconds_count"
OF_BROKER = (
    "length(rabbit_networking:connections())",
    "length(rabbit_channel:list())",
    "length(rabbit_amqqueue:list())",
    "erlang:memory(total)",
)


def _processor(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def total(samples: Samples, name: str, **labels: str) -> float:
    """Of all series of this name with these labels, perhaps among others."""
    wanted = labels.items()
    return sum(each for (of, has), each in samples.items() if of == name and wanted <= set(has))


async def measure(broker: RabbitMQ, server: PostgreSQL) -> None:
    """Let them work for five minutes, and write down what came of it."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    url = await asyncio.to_thread(server.url)
    vhost = await asyncio.to_thread(broker.fresh_vhost)
    amqp_url = broker.url(vhost)
    await fill(url, (admitted(str(uuid4()), KEYS[number % len(KEYS)]) for number in range(JOBS)))
    with TemporaryDirectory(prefix="bench-workers-") as folder:
        environment = {
            "EVERYDREAM_AMQP_URL": amqp_url,
            "EVERYDREAM_DATABASE_URL": url,
            "EVERYDREAM_STORE_URL": f"file://{folder}/store",
            "EVERYDREAM_SECRET_KEY": "a key of thirty-two letters or more",
            "EVERYDREAM_API_KEYS": ",".join(KEYS),
            "EVERYDREAM_HEARTBEAT": str(HEARTBEAT),
            "EVERYDREAM_METRICS_PORT": "0",
        }
        store, tally = FolderStore(Path(folder) / "store", public_url="", key=""), Tally()
        async with services_in_a_folder(environment) as services:
            gateway = services.begin("gateway")
            await gateway.wait_until_ready()
            port = await port_of(gateway)
            with highest_memory(gateway) as memory:
                async with working(amqp_url, store, tally):
                    seen = Seen(broker, server, gateway)
                    await seen.look(port, SECONDS)
                    figures = await seen.figures(port, SECONDS)
                await _recorded(broker, vhost)
            leases_lost = gateway.text.count('"claim_lost"')
    number = sum(kind.number for kind in KINDS)
    p50, p99 = (milliseconds(tally.claims, of) for of in (50, 99))
    rows = (
        ("workers, and the most claims at a time", f"{number:,}, {seen.at_work:,.0f}"),
        *(await _lost(url, tally)),
        ("leases lost", str(leases_lost)),
        ("claims", f"{len(tally.claims):,}"),
        ("from a claim to its work, p50 and p99", f"{p50}, {p99}"),
        ("the longest that a fact waited to be recorded", f"{1000 * seen.lag:.0f} ms"),
        *figures,
        ("gateway: memory", f"{memory[0] / 2**20:.0f} MiB"),
        *(await _sizes(url)),
        ("load, measured on", f"{os.getloadavg()[0]:.1f}, {today()}"),
    )
    text = table(("what", "measured"), rows)
    print(text, flush=True)
    write("many workers", text, PAGE)


async def _recorded(broker: RabbitMQ, vhost: str) -> None:
    """Wait until the gateway has recorded all that was published."""
    async with asyncio.timeout(DRAIN_SECONDS):
        while True:
            depths = await asyncio.to_thread(broker.depths, vhost)
            if depths[GATEWAY_RECORDER.name] == (0, 0):
                return
            await asyncio.sleep(0.2)


async def _lost(url: str, tally: Tally) -> Figures:
    """What the jobs' records say, beside what the workers have done."""
    async with closing(Database.open(url)) as database:
        rows = await database.all(sa.select(jobs.c.record))
    found = [msgspec.json.decode(row.record, type=Job) for row in rows]
    statuses = Counter(job.status for job in found)
    stages = [record for job in found for record in job.stages.values()]
    completed = {job.id for job in found if job.status == "COMPLETED"}
    drawn_jobs = {job for job, stage in tally.done if stage == "generation"}
    recorded = {
        (job.id, name) for job in found for name, record in job.stages.items() if record.done
    }
    failed = sum(statuses[each] for each in ("FAILED", "TIMED_OUT", "CANCELLED"))
    twice = sum(number > 1 for number in tally.done.values())
    differing = len(recorded ^ tally.done.keys())
    return (
        ("jobs: all, completed, failed", f"{len(found):,}, {len(completed):,}, {failed}"),
        ("stages done by the workers, and recorded", f"{len(tally.done):,}, {len(recorded):,}"),
        ("stages done and not recorded, or the reverse; done twice", f"{differing}; {twice}"),
        ("completed and not drawn, or the reverse", str(len(completed ^ drawn_jobs))),
        ("failed attempts", str(sum(each.failures for each in stages))),
        ("works ended by the gateway", str(tally.cut_off)),
    )


async def _sizes(url: str) -> Figures:
    async with closing(Database.open(url)) as database:
        (row,) = await database.all(sa.text(SIZES))
    return (
        ("database: a job's row with its indexes", f"{row.jobs:,} bytes"),
        ("database: an event's row with its indexes", f"{row.event:,} bytes"),
        ("events of a completed job", f"{row.told:.1f}"),
    )


SIZES = """
SELECT pg_total_relation_size('jobs') / (SELECT count(*) FROM jobs) AS jobs,
       pg_total_relation_size('events') / (SELECT count(*) FROM events) AS event,
       (SELECT avg(number) FROM (
           SELECT count(*) AS number FROM events JOIN jobs ON jobs.id = events.job
           WHERE jobs.status = 'COMPLETED' GROUP BY jobs.id) AS of_each) AS told
"""
