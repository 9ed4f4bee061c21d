"""A gateway of the version before works beside this one's tables while jobs run.

"Before" is the newest release that is tagged, or the first commit that keeps this promise. Its
wheel is built from git's history, so a checkout without it fails here, and says what is missing.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from services.gateway.database.connection import Database
from shared.service_process import closing
from tests.contract.test_schema import upgrade_to
from tests.faults.evidence import gather, witnessed
from tests.faults.ledger import check, totals
from tests.faults.looks import resume_point_reaches
from tests.faults.script import Script
from tests.faults.world import SERVICES, faulty_world
from tests.support.servers.postgres import PostgreSQL
from tests.support.servers.rabbitmq import RabbitMQ
from tests.support.servers.s3 import S3Server
from tests.support.services import COMMAND, ROOT

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
GATEWAY = (*COMMAND, "service", "gateway")
PROMISE = "services/gateway/database/schema.py"
"""Came with the promise."""
NO_HISTORY = (
    "this test builds an earlier version from the project's history, which is not all here:"
    " clone it whole, or git fetch --unshallow --tags"
)
SLOW = Script(steps=120, step_seconds=0.1, resume_every=10)


def git(*words: str) -> str:
    done = subprocess.run(
        ["git", *words],  # noqa: S607 - whichever the machine has
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{NO_HISTORY} (git {words[0]}: {done.stderr})"
    return done.stdout.strip()


def version_before() -> str:
    """The commit of the newest release that is tagged before this one, or the promise's first."""
    assert git("rev-parse", "--is-shallow-repository") == "false", NO_HISTORY
    tagged = git("tag", "--list", "v*", "--merged", "HEAD", "--no-contains", "HEAD",
                 "--sort=-version:refname")  # fmt: skip
    if tagged:
        return tagged.splitlines()[0]
    return git("log", "--diff-filter=A", "--format=%H", "--", PROMISE).splitlines()[-1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel of the version before."""
    folder = tmp_path_factory.mktemp("before")
    git("archive", "--format=zip", f"--output={folder / 'source.zip'}", version_before())
    with zipfile.ZipFile(folder / "source.zip") as source:
        source.extractall(folder / "source")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory"]
    subprocess.run([*build, str(folder)], cwd=folder / "source", check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(folder / "installed")
    where = [sys.executable, "-c", "import services.gateway as it; print(it.__path__[0])"]
    found = subprocess.run(
        where, env=environment_of(folder), cwd=folder, capture_output=True, text=True, check=True
    )
    assert found.stdout.startswith(str(folder / "installed"))
    return folder / "installed"


def environment_of(folder: Path) -> dict[str, str]:
    """In which Python finds the version before."""
    return {"PYTHONPATH": str(folder / "installed")}


def newest_in(installed: Path) -> str:
    """The number of the newest revision that it knows."""
    versions = installed / "services" / "gateway" / "database" / "migrations" / "versions"
    return max(path.name[:4] for path in versions.glob("*.py"))


async def test_gateways_of_two_versions_work_on_the_same_jobs(
    rabbitmq: RabbitMQ, s3_server: S3Server, postgres: PostgreSQL, installed: Path, tmp_path: Path
) -> None:
    url = postgres.url()
    async with (
        faulty_world(rabbitmq, s3_server, services=SERVICES[1:], database_url=url) as world,
        witnessed(rabbitmq, world.vhost) as witness,
    ):
        before = dict(world.services.environment) | environment_of(installed.parent)
        old = await world.services.start("gateway", before, GATEWAY)
        running = await world.submit(SLOW)
        await resume_point_reaches(world, running, step=10)

        new = await world.services.start("gateway", command=GATEWAY)
        async with closing(Database.open(url)) as database:
            await upgrade_to(database, f"9001_beside_{newest_in(installed)}", tmp_path)
        beside = await world.submit(Script())
        await world.end_of(beside)

        await old.stop()
        alone = await world.submit(Script())
        await world.end_of(alone)

        again = await world.services.start("gateway", before, GATEWAY)
        await again.wait_for_log("database_is_newer")
        await new.kill()
        last = await world.submit(Script())
        await world.recovered([running, beside, alone, last])

        evidence = await gather(world, witness)
        assert check(evidence) == []
        assert totals(evidence).completed == 4
