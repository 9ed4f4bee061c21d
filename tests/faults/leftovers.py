"""What jobs have left behind: in the workers' folders, among their children, in the store.

A worker's folder is empty while it has no work, at most one child waits for the next, and the store
keeps no working file of a job that has completed or was cancelled.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from time import monotonic
from urllib.parse import urlsplit

import psutil

from tests.faults.facts import Left
from tests.faults.looks import record_of
from tests.faults.world import World
from tests.support.servers.s3 import S3Server
from tests.support.services import ServiceProcess

TO_GO_HEARTBEATS = 12
"""From a job's end to the second time that its working files are deleted."""
SPARE_SECONDS = 30.0
PAUSE_SECONDS = 0.2
WORKING_FILE = re.compile(
    r"jobs/(?P<job>[^/]+)/(?:staging|snapshots|training/\d+/resume[^/]*|training/\d+/model)/.+"
)
FINAL = ("COMPLETED", "CANCELLED")
"""Ends after which no retry needs anything."""


async def left_over(world: World) -> tuple[Left, ...]:
    """What there is still of jobs when all of it had time to go; for a world without live jobs."""
    heartbeat = float(world.services.environment["EVERYDREAM_HEARTBEAT"])
    deadline = monotonic() + TO_GO_HEARTBEATS * heartbeat + SPARE_SECONDS
    while (found := await _found(world)) and monotonic() < deadline:
        await asyncio.sleep(PAUSE_SECONDS)
    return found


async def keys_in(s3: S3Server, bucket: str) -> list[str]:
    """The key of every object."""
    async with s3.client() as client:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        return [each["Key"] async for page in pages for each in page.get("Contents", ())]


async def _found(world: World) -> tuple[Left, ...]:
    workers = [each for each in world.services.all if each.alive and each.name != "gateway"]
    at_workers = [left for worker in workers for left in _at(worker)]
    return (*at_workers, *[left async for left in _in_the_store(world)])


def _at(worker: ServiceProcess) -> Iterator[Left]:
    for path in worker.settings.scratch.glob("*"):
        yield Left(what=path.name, where=f"the scratch of {worker.folder.name}")
    children = psutil.Process(worker.pid).children(recursive=True)
    if len(children) > 1:
        yield Left(what=f"more than a child that waits ({children})", where=worker.folder.name)


async def _in_the_store(world: World) -> AsyncIterator[Left]:
    bucket = urlsplit(world.services.environment["EVERYDREAM_STORE_URL"]).netloc
    for key in await keys_in(world.s3, bucket):
        if found := WORKING_FILE.search(key):
            job = await record_of(world, found["job"])
            if job.status in FINAL and not (job.model and f"{job.model}/" in key):
                yield Left(what=key, where="the store")
