"""What a case looks at besides the endpoint: a job's record, and its own lines in the logs."""

from __future__ import annotations

import sqlalchemy as sa

from services.gateway.database.connection import Database
from services.gateway.database.jobs import SqlJobStore
from services.gateway.database.tables import outbox
from services.gateway.jobs.record import Job, StageRecord
from services.gateway.jobs.rows import read
from shared.messaging.messages import Stage
from shared.service_process import closing
from tests.faults.world import World
from tests.support.services import ServiceProcess


async def record_of(world: World, job: str) -> Job:
    """The job's row as the gateway has written it."""
    url = world.services.environment["EVERYDREAM_DATABASE_URL"]
    async with closing(SqlJobStore.open(url)) as database:
        row = await database.get(job)
    assert row is not None, f"no row of {job}"
    return read(row)


async def unsent(world: World, job: str) -> int:
    """How many of a job's messages have not left the outbox."""
    async with closing(
        Database.open(world.services.environment["EVERYDREAM_DATABASE_URL"])
    ) as database:
        return len(await database.all(sa.select(outbox).where(outbox.c.job == job)))


async def stage_of(world: World, job: str, stage: Stage) -> StageRecord:
    return (await record_of(world, job)).stages[stage]


async def stage_asked_for(world: World, job: str, stage: Stage) -> None:
    """Wait until the record knows that the stage is wanted."""

    async def asked() -> bool | None:
        return stage in (await record_of(world, job)).stages or None

    await world.until(asked)


async def attempts_at(world: World, job: str, stage: Stage) -> int:
    return (await stage_of(world, job, stage)).attempts


async def resume_step(world: World, job: str) -> int:
    """Of the newest resume point on record; 0: there is none."""
    point = (await record_of(world, job)).resume_point
    return int(point.rpartition("/")[2]) if point else 0


async def resume_point_reaches(world: World, job: str, *, step: int) -> int:
    """Wait until one of this step or a later one is on record; its step."""

    async def there() -> int | None:
        found = await resume_step(world, job)
        return found if found >= step else None

    return await world.until(there)


async def trained_from(world: World, job: str) -> int:
    """The step at which the attempt began that finished the training."""
    (warning,) = [
        each
        for each in (await record_of(world, job)).summary["warnings"]
        if each.startswith("trained from step ")
    ]
    return int(warning.rpartition(" ")[2])


def lines_of(process: ServiceProcess, *words: str) -> list[str]:
    """What a service has logged with all these words in one line."""
    return [line for line in process.text.splitlines() if all(word in line for word in words)]


async def process_says(world: World, process: ServiceProcess, *words: str) -> None:
    """Wait until this very process has logged such a line; ``world.says`` asks all of a name."""

    async def said() -> bool | None:
        return bool(lines_of(process, *words)) or None

    await world.until(said)
