"""A list of thousands of jobs and a grid of hundreds of samples, kept as the product keeps them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from hashlib import sha256
from itertools import cycle
from pathlib import Path, PurePosixPath
from random import Random
from tempfile import TemporaryDirectory
from typing import cast
from uuid import uuid4

import msgspec
import sqlalchemy as sa

from everydream import drawings
from services.gateway.database.connection import Database
from services.gateway.database.job_rows import columns_of
from services.gateway.database.jobs import SqlJobStore
from services.gateway.database.tables import jobs as table
from services.gateway.jobs.outputs import with_samples
from services.gateway.jobs.presenter import Presenter
from services.gateway.jobs.record import Job, Step
from services.gateway.jobs.repository import JobRepository
from services.gateway.jobs.rows import row_of
from services.gateway.ports import Status
from shared.adapters.memory import MemoryBroker
from shared.messaging.messages import Artifact, DrawnSample
from shared.ports import ObjectStore
from shared.service_process import closing
from shared.storage.snapshots import sample_key
from shared.thumbnail import SIDE, SUFFIX, write_thumbnail

STATUSES: tuple[Status, ...] = ("COMPLETED", "COMPLETED", "FAILED", "CANCELLED")
REASON = "The trainer was lost three times in a row; the last time its card had no memory left."
APART, LONG = 60.0, 45.0
"""Seconds between two jobs, and from a job's beginning to its end."""
AT_ONCE = 500
STEPS = 250
"""Between two rows of samples."""
PICTURES = 8
"""Different ones, which take turns."""


async def add_jobs(database_url: str, owner: str, count: int) -> None:
    """Let a gateway's database have jobs of an owner that have ended, the newest a minute ago.

    Args:
        database_url: as the gateway has it.
        owner: the SHA-256 of a key.
        count: how many.
    """
    rows = [columns_of(row_of(job, 1)) for job in _ended(owner, count)]
    async with closing(Database.open(database_url)) as database, database.writing() as connection:
        for start in range(0, count, AT_ONCE):
            await connection.execute(sa.insert(table), rows[start : start + AT_ONCE])


def _ended(owner: str, count: int) -> Iterator[Job]:
    now = time.time()
    for number in range(count):
        at = now - (number + 1) * APART
        status = STATUSES[number % len(STATUSES)]
        yield Job(
            id=str(uuid4()),
            owner=owner,
            status=status,
            input={"train": {"data_url": f"https://example.com/{number}.zip"}},
            created_at=at,
            started_at=at,
            ended_at=at + LONG,
            error=REASON if status == "FAILED" else None,
        )


async def add_grid(
    database_url: str, store: ObjectStore, owner: str, *, rows: int, columns: int
) -> str:
    """Let a gateway have a training that has ended, with its samples; returns its id."""
    [job] = _ended(owner, 1)
    job = with_samples(job, await _samples(store, job.id, rows, columns))
    async with closing(Database.open(database_url)) as database:
        bus, presenter = MemoryBroker().bus("many_jobs"), Presenter(store, time.time)
        repository = JobRepository(
            bus, store, SqlJobStore(database), presenter, clock=time.time, on_due=_nothing,
            on_turn=_nothing, on_end=_nothing, on_replaced=_nothing, on_uncertain=_nothing,
        )  # fmt: skip
        await repository.create(Step(job), len(msgspec.json.encode(job.input)))
    return job.id


async def _samples(
    store: ObjectStore, job: str, rows: int, columns: int
) -> tuple[DrawnSample, ...]:
    """Each with a thumbnail of its own; the large ones are few, which take turns."""
    with TemporaryDirectory(prefix="pictures-") as folder:
        drawn = [_drawn(Path(folder), number) for number in range(PICTURES)]
        for number, (image, _) in enumerate(drawn):
            await store.upload(image, sample_key(job, step=0, index=number))
        samples = [
            _sample(job, row * STEPS, index, drawn[(row + index) % PICTURES][0])
            for row in range(rows)
            for index in range(columns)
        ]
        small = cycle(thumbnail for _, thumbnail in drawn)
        await asyncio.gather(
            *(store.upload(next(small), cast("str", each.thumbnail)) for each in samples)
        )
    return tuple(samples)


def _sample(job: str, step: int, index: int, image: Path) -> DrawnSample:
    number = int(image.stem)
    artifact = Artifact(
        name=f"{step}-{index}.png", kind="sample", key=sample_key(job, step=0, index=number),
        bytes=image.stat().st_size, sha256=sha256(image.read_bytes()).hexdigest(),
    )  # fmt: skip
    prompts = [concept.captions[0] for concept in drawings.CONCEPTS]
    return DrawnSample(
        artifact=artifact,
        thumbnail=str(PurePosixPath(sample_key(job, step=step, index=index)).with_suffix(SUFFIX)),
        step=step,
        epoch=step // STEPS,
        index=index,
        prompt=f"{prompts[index % len(prompts)]}, number {index}",
        seed=index,
    )


def _drawn(folder: Path, number: int) -> tuple[Path, Path]:
    """A picture and its thumbnail."""
    concept = drawings.CONCEPTS[number % len(drawings.CONCEPTS)]
    image = drawings.draw_concept(concept, Random(number), 2 * SIDE)
    file = folder / f"{number}.png"
    image.save(file)
    write_thumbnail(image, file.with_suffix(SUFFIX))
    return file, file.with_suffix(SUFFIX)


def _nothing(*_: object) -> None:
    """There are no services to be told."""
