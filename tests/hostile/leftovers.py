"""What is left when nobody has work any more: files and processes that nothing accounts for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from time import monotonic
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Row

from services.gateway.background.retention import objects_of, working_files
from services.gateway.database import tables
from services.gateway.database.connection import Database
from services.gateway.jobs.rows import read
from services.gateway.ports import StoredJob
from shared.service_process import closing
from shared.storage.uploads import upload_prefix
from tests.support.live_folders import files_below
from tests.support.services import Services

LIVE = ("IN_QUEUE", "IN_PROGRESS")
CACHE = "cache/"
"""Models that any job may use again."""
PAUSE_SECONDS = 2.0


async def settled(database_url: str, seconds: float, tell: Callable[[str], object]) -> str:
    """Wait until no job lives; a sentence if some still do then."""
    deadline = monotonic() + seconds
    while live := await _live(database_url):
        if monotonic() > deadline:
            return f"{live} jobs have not ended {seconds:.0f} s after peace"
        tell(f"peace: {live} jobs still live")
        await asyncio.sleep(PAUSE_SECONDS)
    return ""


async def _live(database_url: str) -> int:
    live = sa.select(sa.func.count()).where(tables.jobs.c.status.in_(LIVE))
    async with closing(Database.open(database_url)) as database:
        return int((await database.all(live))[0][0])


def children_of(services: Services) -> dict[str, int]:
    """How many children each service has."""
    return {each.name: len(each.children) for each in services.all if each.alive}


async def leftovers(
    services: Services, store: Path, database_url: str, children: Mapping[str, int], seconds: float
) -> list[str]:
    """A sentence for each thing that is still left after so many seconds.

    Args:
        services: all that ran.
        store: the folder in which the deployment keeps what is in its store.
        database_url: of the deployment.
        children: how many of them each service had before.
        seconds: in which what is late may still go.
    """
    deadline = monotonic() + seconds
    while True:
        found = [
            *_processes(services, children),
            *_scratch(services),
            *await _objects(store, database_url),
        ]
        if not found or monotonic() > deadline:
            return found
        await asyncio.sleep(PAUSE_SECONDS)


def _processes(services: Services, children: Mapping[str, int]) -> Iterator[str]:
    for name, number in children_of(services).items():
        if number > children.get(name, 0):
            yield f"{name} has {number} children, and had {children.get(name, 0)}"
    for process in services.all:
        if not process.alive and (orphans := len(process.children)):
            yield f"{process.name} is gone, and has left {orphans} children"


def _scratch(services: Services) -> Iterator[str]:
    for process in services.all:
        for path in (process.settings.scratch).glob("*"):
            yield f"scratch of {process.name}: {path.name}"


async def _objects(store: Path, database_url: str) -> list[str]:
    """Objects that belong to no job or upload, or whose job has no use for them any more.

    A deleted job's objects are kept track of for a day, and count as its own.
    """
    async with closing(Database.open(database_url)) as database:
        rows = {row.id: row for row in await database.all(sa.select(tables.jobs))}
        uploads = await database.all(sa.select(tables.uploads.c.id))
        removed = await database.all(sa.select(tables.removed.c.job))
    used = (*(upload_prefix(row.id) for row in uploads), *(objects_of(row.job) for row in removed))
    keys = await asyncio.to_thread(_keys, store)
    return [f"object {key}" for key in keys if not _is_kept(key, rows, used)]


def _keys(store: Path) -> list[str]:
    return [path.relative_to(store).as_posix() for path in files_below(store)]


def _is_kept(key: str, rows: Mapping[str, Row[Any]], used: tuple[str, ...]) -> bool:
    if key.startswith((CACHE, *used)):
        return True
    job = key.split("/")[1] if key.startswith("jobs/") else ""
    if job not in rows:
        return False
    return not key.startswith(tuple(working_files(read(StoredJob(**rows[job]._mapping)))))
