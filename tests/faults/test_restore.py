"""The drill: a deployment is backed up while jobs run, is lost, and goes on in another place."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.story import host_of
from tests.faults.evidence import gather, witnessed
from tests.faults.ledger import check, totals
from tests.faults.looks import resume_point_reaches, trained_from
from tests.faults.script import Script
from tests.faults.world import SERVICES, World, faulty_world, through
from tests.support.servers.postgres import PostgreSQL
from tests.support.servers.rabbitmq import RabbitMQ
from tests.support.servers.s3 import S3Server
from tests.support.services import environment_at, resolved

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
SLOW = Script(steps=240, step_seconds=0.1, resume_every=80)
"""It is under way for long after its backup, and its next resume point is then still to come."""
SECONDS = 120


async def test_jobs_that_were_backed_up_while_they_ran_end_once_in_another_place(
    rabbitmq: RabbitMQ, s3_server: S3Server, postgres: PostgreSQL, tmp_path: Path
) -> None:
    async with (
        faulty_world(rabbitmq, s3_server, database_url=postgres.url()) as here,
        witnessed(rabbitmq, here.vhost) as heard_here,
    ):
        ended = await here.submit()
        await here.end_of(ended)
        running = await here.submit(SLOW)
        await resume_point_reaches(here, running, step=80)
        waiting = await here.submit()

        backed_up = await typed(here, "backup", tmp_path)
        await here.services.kill()

        async with (
            another_place(here, rabbitmq, s3_server, postgres.url()) as there,
            witnessed(rabbitmq, there.vhost) as witness,
        ):
            assert await typed(there, "restore", tmp_path) == backed_up
            await there.whole()

            await there.recovered([ended, running, waiting])
            assert await trained_from(there, running) >= 80, "from its last resume point"

            witness.heard = heard_here.heard | witness.heard
            evidence = await gather(there, witness)
            assert check(evidence) == []
            assert totals(evidence).completed == 3


@asynccontextmanager
async def another_place(
    here: World, broker: RabbitMQ, s3: S3Server, database_url: str
) -> AsyncIterator[World]:
    """Another database, store and broker; the users' bucket and web server are the same ones."""
    allowed = f"{host_of(here.web.url())},{host_of(through(here.proxies.bucket))}"
    async with faulty_world(
        broker, s3, services=(), database_url=database_url, ALLOWED_PRIVATE_HOSTS=allowed
    ) as world:
        yield replace(
            world, bucket=here.bucket, web=here.web, jobs=here.jobs, wanted=Counter(SERVICES)
        )


async def typed(world: World, verb: str, folder: Path) -> dict[str, Any]:
    """What `everydream backup` or `restore` prints, with the settings of the services there."""
    environment = environment_at(folder) | dict(world.services.environment)
    done = await asyncio.to_thread(
        subprocess.run,
        resolved(("everydream", verb, str(folder / "backup"), "--json")),
        env=environment | {"PATH": os.environ["PATH"]},
        capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told
