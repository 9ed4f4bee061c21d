"""Faults of what users send, and facts that come too late."""

from __future__ import annotations

import asyncio
import io
import struct
import uuid
import zipfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from shared.adapters.rabbitmq import RabbitMQBus
from shared.messaging.messages import (
    Artifact,
    CheckpointFinal,
    ClaimRefused,
    ResumePointSaved,
    StageFact,
    TrainingProgressed,
)
from shared.ports import Bus, ReplyQueue
from shared.service_process import closing
from tests.faults.cases import Form, Outcome, case
from tests.faults.looks import record_of, resume_point_reaches, trained_from
from tests.faults.script import Mishap, Script, spell
from tests.faults.world import World, dataset, heartbeat
from tests.support.servers.web import Page

BOMB_BYTES = 101 << 20
NOTHING = "0" * 64


@case(
    "+",
    "data sets are bombs, lies, cut off, missing, or no data sets at all",
    shown_by=(
        "tests/security/test_archives.py::test_an_archive_that_lies_is_refused_whole_with_the_reason",
        "tests/end_to_end/test_all_in_one.py::test_what_only_the_data_shows_fails_the_job_with_a_reason_that_names_it",
    ),
)
async def bad_data(world: World, form: Form) -> Outcome:
    kinds = {
        served(world, zipped("bomb.png", bytes(BOMB_BYTES))): "times its size; at most",
        served(world, lying(zipped("lie.png", bytes(5000)))): "no usable image",
        served(world, b"<html>hello</html>"): "not a zip",
        served(world, zipped("readme.txt", b"no pictures")): "no usable image",
        world.web.url(f"/data/{uuid.uuid4()}.zip"): "404",
        moved(world): "nowhere.zip: the server answers 404",
        cut(world): "the connection broke off in the middle of the file",
    }
    expected = {}
    for _ in range(form.of(1, 3)):
        for url, reason in kinds.items():
            expected[await world.submit(data_url=url, wanted="FAILED")] = reason
    seconds = await world.recovered(expected)
    for job, reason in expected.items():
        record = await record_of(world, job)
        assert reason in (record.error or ""), record.error
        assert record.started_at is None, "a GPU was taken for it"
    return Outcome(len(expected), tuple(expected), seconds)


@case(
    "+",
    "a data set's connection is cut in the middle, once",
    shown_by=(
        "tests/integration/fetcher/test_download.py::test_a_file_that_breaks_off_passes_and_is_never_taken_for_whole",
        "tests/unit/gateway/test_transitions.py::test_a_passing_failure_asks_again_after_a_backoff",
    ),
)
async def cut_once(world: World, form: Form) -> Outcome:
    jobs = []
    for _ in range(form.of(1, 5)):
        path, data = f"/data/{uuid.uuid4()}.zip", dataset(spell(Script()))
        url = world.web.serve(path, Page(data, cut_at=len(data) // 2))
        jobs.append(await world.submit(data_url=url))
        await asked_for(world, path)
        world.web.serve(path, data)
    seconds = await world.recovered(jobs)
    return Outcome(len(jobs), tuple(jobs), seconds)


@case(
    "+",
    "facts of an older attempt arrive during a newer one",
    shown_by=(
        "tests/unit/gateway/test_transitions.py::test_facts_that_are_not_from_the_live_claim_change_nothing",
        "tests/integration/gateway/test_cancel_race.py::test_a_retry_ignores_facts_of_the_run_before",
    ),
)
async def late_facts(world: World, form: Form) -> Outcome:
    times = form.of(1, 10)
    mishaps = (Mishap(at=6, how="kill", attempts=1),)
    job = await world.submit(Script(steps=60, step_seconds=0.05, resume_every=5, mishaps=mishaps))
    await resume_point_reaches(world, job, step=10)
    (old,) = (await record_of(world, job)).stages["training"].ended_claims
    async with ghost(world) as (bus, reply_queue):
        for _ in range(times):
            for fact in facts_of(job, old):
                await bus.publish(fact, reply_to=reply_queue.address)
                async with asyncio.timeout(20):
                    refused = await anext(reply_queue.messages())
                assert isinstance(refused, ClaimRefused)
                assert refused.claim == old
    record = await record_of(world, job)
    assert record.stages["training"].open
    assert "ghost" not in str(record.resume_point)
    seconds = await world.recovered([job])
    assert await trained_from(world, job) == 5
    return Outcome(3 * times, (job,), seconds)


def facts_of(job: str, claim: str) -> list[StageFact]:
    """What a worker that was lost may still have to say, all of it wrong by now."""
    file = Artifact(name="x", kind="checkpoint", key="jobs/ghost/x", bytes=1, sha256=NOTHING)
    stamp: dict[str, Any] = {
        "job": job,
        "stage": "training",
        "claim": claim,
        "attempt": 1,
        "worker": "ghost",
    }
    return [
        TrainingProgressed(**stamp, progress={"step": 999_999}),
        ResumePointSaved(**stamp, prefix="jobs/ghost/resume/1", step=1, epoch=0),
        CheckpointFinal(**stamp, model="jobs/ghost/model", checkpoint=file, summary={}),
    ]


@asynccontextmanager
async def ghost(world: World) -> AsyncIterator[tuple[Bus, ReplyQueue]]:
    """Somebody else on the bus, with a control queue to be answered at."""
    url = world.services.environment["EVERYDREAM_AMQP_URL"]
    bus = await RabbitMQBus.open(url, source="trainer/ghost", heartbeat=heartbeat())
    async with closing(bus), bus.reply_queue(()) as reply_queue:
        yield bus, reply_queue


async def asked_for(world: World, path: str) -> None:
    """Wait until somebody has asked for a page."""

    async def seen() -> bool | None:
        return any(each.path == path for each in world.web.seen) or None

    await world.until(seen)


def served(world: World, data: bytes) -> str:
    return world.web.serve(f"/data/{uuid.uuid4()}.zip", data)


def moved(world: World) -> str:
    """A redirect to a page that is not there."""
    return world.web.redirect(f"/data/{uuid.uuid4()}.zip", world.web.url("/nowhere.zip"))


def cut(world: World) -> str:
    """A page that breaks off in the middle, whoever asks and as often as they do."""
    data = dataset(spell(Script()))
    return world.web.serve(f"/data/{uuid.uuid4()}.zip", Page(data, cut_at=len(data) // 2))


def zipped(name: str, data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    return buffer.getvalue()


def lying(archive: bytes) -> bytes:
    """Its only entry says, in both of its headers, that it unpacks to ten bytes."""
    entry, listed = archive.index(b"PK\x03\x04"), archive.index(b"PK\x01\x02")
    ten = struct.pack("<I", 10)
    changed = bytearray(archive)
    changed[entry + 22 : entry + 26] = ten
    changed[listed + 24 : listed + 28] = ten
    return bytes(changed)
