"""Ten jobs while all processes of a deployment are replaced: ``python -m tests.faults.rolling``.

Two of every service, RabbitMQ, PostgreSQL and S3, the real workers with the tiny model. What the
gateways' metrics say before, during and after goes into docs/operations.md; it ends with status 1
and a sentence for everything that the ledger finds wrong.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from time import monotonic
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from everydream import drawings
from tests.end_to_end.story import dataset
from tests.faults.evidence import gather, witnessed
from tests.faults.facts import Evidence
from tests.faults.ledger import check
from tests.faults.world import SERVICES, World, faulty_world, heartbeat
from tests.support.measured_page import DOCS, today, write
from tests.support.pace import slowness
from tests.support.servers.postgres import PostgreSQL
from tests.support.servers.process import HOST, free_port
from tests.support.servers.rabbitmq import RabbitMQ
from tests.support.servers.s3 import S3Server
from tests.support.services import COMMAND, ServiceProcess

JOBS, EACH = 10, 2
OPERATIONS = DOCS / "operations.md"
SHOWN = re.compile(
    r"everydream_(ready|recorder_active|database_up|broker_up|outbox_messages|dead_letters_kept"
    r"|stage_open_jobs|line_jobs|stage_attempts_total|stage_failures_total|job_seconds_count)$"
)
"""Of the metrics, what an operator looks at in a restart."""


class Restart:
    """One rolling restart, and what was seen of it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.shown: list[str] = []

    async def run(self) -> None:
        """Begin the jobs, replace all processes one after another, and see the jobs end."""
        jobs = [await self._submit() for _ in range(JOBS)]
        began = monotonic()
        await self._show("before: ten jobs have come")
        await self.world.reaches(jobs[0], step=1)
        old = [process for process in self.world.services.all if process.alive]
        for number, process in enumerate(old, start=1):
            await self._replace(process)
            if number == len(old) // 2:
                await self._show(f"during: {number} of {len(old)} processes are replaced")
        replaced = monotonic() - began
        await self.world.recovered(jobs, seconds=1200.0)
        seconds = monotonic() - began
        await self._show(
            f"after: all replaced in {replaced:.0f} s, ten jobs done in {seconds:.0f} s"
        )

    async def _replace(self, old: ServiceProcess) -> None:
        """Start the new one, wait until it is ready, and only then end the old one."""
        new = begin(self.world, old.name)
        await new.wait_until_ready()
        await self.world.until(lambda: self._is_ready(new))
        await old.stop()

    async def _is_ready(self, process: ServiceProcess) -> bool | None:
        async with self.world.session.get(f"{page_of(process)}/readyz") as answer:
            return answer.status == HTTPStatus.OK or None

    async def _submit(self) -> str:
        url = self.world.web.serve("/tiny.zip", dataset())
        train = {"data_url": url, "resolution": 256, "batch_size": 4, "max_epochs": 6}
        drawn = {"width": 128, "height": 128, "num_inference_steps": 2, "seed": 7}
        asked: dict[str, Any] = {
            "train": {**train, "lr": 1e-4, "useadam8bit": False},
            "inference": {"prompt": drawings.CONCEPTS[0].captions[0], **drawn},
        }
        return await self.world.submit(request={"input": asked})

    async def _show(self, title: str) -> None:
        lines = [f"# {title}"]
        for number, gateway in enumerate(self.world.services.named("gateway"), start=1):
            lines += [f"gateway {number}", *await self._metrics(gateway)]
        self.shown += [*lines, ""]
        say("\n".join(lines))

    async def _metrics(self, process: ServiceProcess) -> list[str]:
        async with self.world.session.get(f"{page_of(process)}/metrics") as answer:
            text = await answer.text()
        samples = [
            each for family in text_string_to_metric_families(text) for each in family.samples
        ]
        return [
            f"  {each.name}{labels_of(each.labels)} {each.value:g}"
            for each in samples
            if SHOWN.match(each.name) and (each.value or not each.labels)
        ]


def labels_of(labels: dict[str, str]) -> str:
    inside = ", ".join(f'{name}="{value}"' for name, value in sorted(labels.items()))
    return f"{{{inside}}}" if inside else ""


def page_of(process: ServiceProcess) -> str:
    return f"http://{HOST}:{process.settings.metrics_port}"


def begin(world: World, name: str) -> ServiceProcess:
    """Start a service with a port of its own for its metrics."""
    port = {"EVERYDREAM_METRICS_PORT": str(free_port())}
    return world.services.begin(name, {**world.services.environment, **port})


@asynccontextmanager
async def restarted(
    broker: RabbitMQ, s3: S3Server, database_url: str
) -> AsyncIterator[tuple[Restart, Evidence]]:
    vhost = broker.fresh_vhost()
    async with (
        witnessed(broker, vhost) as witness,
        faulty_world(
            broker, s3, services=(), database_url=database_url, vhost=vhost,
            HEARTBEAT=str(heartbeat()),
        ) as world,
    ):  # fmt: skip
        world.services.program = COMMAND
        first = [begin(world, name) for name in SERVICES for _ in range(EACH)]
        await asyncio.gather(*(process.wait_until_ready() for process in first))
        restart = Restart(world)
        await restart.run()
        yield restart, await gather(world, witness)


def page(shown: Sequence[str]) -> str:
    """The part of docs/operations.md."""
    told = (
        f"`python -m tests.faults.rolling`, {today()}: two of every service, {JOBS} jobs of the"
        f" tiny model, a machine that is {slowness():.1f} times as slow as one that is quiet."
    )
    return "\n".join((told, "", "```", *shown[:-1], "```"))


async def carry_out() -> tuple[list[str], list[str]]:
    with RabbitMQ() as broker, S3Server() as s3, PostgreSQL() as postgres:
        async with restarted(broker, s3, postgres.url()) as (restart, evidence):
            return restart.shown, check(evidence)


def say(words: str) -> None:
    print(words, flush=True)  # noqa: T201 - a command


def main() -> int:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    logging.getLogger("aiormq").addHandler(logging.NullHandler())
    shown, wrong = asyncio.run(carry_out())
    write("rolling restart", page(shown), OPERATIONS)
    for sentence in wrong:
        say(f"WRONG  {sentence}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
