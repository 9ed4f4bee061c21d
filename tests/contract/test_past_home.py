"""A deployment of an earlier version goes on under this one.

Its home folder is as that version has left it, but for the database, which is a dump. It is the
moment at which it was left; workers are played, and what clients were given they still have.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from everydream.access import access
from everydream.outcome import PENDING
from services.fetcher.models.configured_model import (
    TINY_FOLDER,
    ConfiguredModel,
    ModelFolders,
    read_pins,
)
from services.fetcher.progress_meter import ProgressMeter
from services.gateway.endpoints.uploads import CHUNK
from services.gateway.jobs.record import Job, StageRecord, open_stages, overdue_at
from services.gateway.jobs.rows import read, row_of
from services.gateway.jobs.transitions import RETRYABLE
from services.gateway.ports import END_STATUSES, StoredJob
from services.gateway.turns.places import BUCKET_STAGES
from services.gateway.web.authentication import CLIENT_FILE
from shared.keys import secret_key, unseal, webhook_secret
from shared.messaging.messages import (
    STAGES,
    AnyMessage,
    ArtifactsPublished,
    BucketChecked,
    ClaimGranted,
    CommandIssued,
    DatasetStaged,
    GenerationInterrupted,
    Interruption,
    PublicationInterrupted,
    Stage,
    StagingInterrupted,
    Submission,
    TrainingInterrupted,
    TrainingProgressed,
    WebhookDelivered,
    WebhookDue,
    decode,
)
from shared.messaging.topology import GATEWAY_RECORDER, NOTIFIER_WEBHOOKS, QUEUES
from shared.request import STORED, Command, ModelSource, S3Config
from shared.storage.folders import download_folder
from shared.storage.manifest import MANIFEST
from shared.storage.snapshots import drawn_steps, snapshots_of, waiting_snapshots
from shared.storage.uploads import download_upload
from tests.contract.past import each, forgotten, json_in
from tests.integration.everydream.test_cli import typed
from tests.support.gateway_world import Answer, Claimed, Clock, World, eventually, world
from tests.support.in_process_parser import InProcessReader

ROOT = "/v1/everydream-v1"
HEARTBEAT = 10.0
"""So long that no worker of the past is missed while a test goes on."""
WEEK = 7 * 24 * 3600.0
INTERRUPTED: dict[Stage, type[Interruption]] = {
    "staging": StagingInterrupted,
    "bucket_check": PublicationInterrupted,
    "training": TrainingInterrupted,
    "generation": GenerationInterrupted,
    "model_publication": PublicationInterrupted,
    "image_publication": PublicationInterrupted,
}


@dataclass
class Past:
    """The deployment at work, and what its clients were given."""

    here: World
    home: Path
    key: str
    told: dict[str, Any]

    async def ask(self, method: str, path: str, *, key: str = "first", **more: Any) -> Answer:
        keys: dict[str, str] = self.told["keys"]
        return await self.here.ask(method, f"{ROOT}{path}", key=keys[key], **more)

    async def rows(self) -> list[StoredJob]:
        return [*await self.here.stores.jobs.newest(limit=1000)]

    async def jobs(self, *statuses: str) -> list[Job]:
        """Those with one of the statuses, or all, oldest first."""
        jobs = [read(row) for row in reversed(await self.rows())]
        return [job for job in jobs if not statuses or job.status in statuses]

    async def job(self, job_id: str) -> Job:
        row = await self.here.stores.jobs.get(job_id)
        assert row
        return read(row)

    def outbox(self) -> list[tuple[AnyMessage, float]]:
        """What waits to leave, and when."""
        with closing(sqlite3.connect(self.home / "everydream.db")) as database:
            rows = database.execute("SELECT message, due_at FROM outbox").fetchall()
        return [(decode(message), due_at) for message, due_at in rows]


@pytest.fixture(params=each("home"))
async def past(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Past]:
    left: Path = request.param
    home = laid_out(left, tmp_path)
    async with going_on(left, home) as past:
        yield past


def laid_out(left: Path, folder: Path) -> Path:
    """The home folder, as that version has left it."""
    home = folder / "home"
    shutil.copytree(left, home)
    with closing(sqlite3.connect(home / "everydream.db")) as database:
        database.executescript((home / "database.sql").read_text(encoding="utf-8"))
    return home


@asynccontextmanager
async def going_on(left: Path, home: Path) -> AsyncIterator[Past]:
    told = json_in(left.with_name("handed_out.json"))
    key, clock = secret_key(None, home), Clock(ahead=told["at"] - time.time())
    async with world(home, key=key, clock=clock, api_keys=(), heartbeat=HEARTBEAT) as here:
        yield Past(here, home, key, told)


# --- Jobs go on -------------------------------------------------------------------------------


@pytest.mark.parametrize("handed_over", [False, True], ids=["by its workers", "by others"])
async def test_every_job_of_the_past_goes_on_to_its_end(past: Past, *, handed_over: bool) -> None:
    live = await past.jobs("IN_QUEUE", "IN_PROGRESS")

    for job in live:
        await complete(past, job, handed_over=handed_over)

    ends = {job.id: (await past.job(job.id)).status for job in live}
    assert ends == {job.id: "COMPLETED" for job in live}
    assert live
    assert not past.here.broker.dead_letters


@pytest.mark.parametrize("left", each("home"))
async def test_after_stop_migrate_and_start_every_job_of_the_past_goes_on(
    left: Path, tmp_path: Path
) -> None:
    home = laid_out(left, tmp_path)

    announced = typed(home, "migrate", "--check", HOME=str(home))
    assert (announced.returncode, "0016" in announced.stdout) == (PENDING, True), announced
    done = typed(home, "migrate", HOME=str(home))
    assert done.returncode == 0, done
    assert done.stdout.splitlines()[1:] == announced.stdout.splitlines()[1:]
    assert typed(home, "migrate", "--check", HOME=str(home)).returncode == 0

    async with going_on(left, home) as past:
        live = await past.jobs("IN_QUEUE", "IN_PROGRESS")
        for job in live:
            await complete(past, job)
        assert {(await past.job(job.id)).status for job in live} == {"COMPLETED"}


async def test_what_supervision_reads_is_what_the_records_say(past: Past) -> None:
    store, jobs = past.here.stores.jobs, await past.jobs()

    read_of_them = {*await store.claims(), *await store.waiting(past.here.clock() + WEEK)}

    assert read_of_them == {stage for job in jobs for stage in open_stages(job)} != set()
    limits = {row.id: row.overdue_at for row in await past.rows()}
    assert limits == {job.id: overdue_at(job) for job in jobs}
    ran = [job for job in jobs if job.status == "COMPLETED" and job.started_at is not None]
    seconds = [(job.ended_at or 0.0) - (job.started_at or 0.0) for job in reversed(ran)]
    assert await store.execution_seconds("train", 20) == pytest.approx(seconds)


async def test_models_that_jobs_of_the_past_need_are_known(past: Past) -> None:
    for job in await past.jobs("IN_QUEUE", "IN_PROGRESS", *RETRYABLE):
        for stage in job.stages.values():
            if isinstance(trigger := decode(stage.trigger), DatasetStaged):
                assert await past.here.stores.jobs.needs_model(trigger.base_model)
                changed = row_of(job, version=7)
                assert changed.model == trigger.base_model, "also when the row is written anew"


async def test_the_progress_of_the_past_is_shown(past: Past) -> None:
    told = {job.id: job.progress for job in await past.jobs("IN_QUEUE", "IN_PROGRESS")}

    shown = {job_id: (await past.ask("GET", f"/status/{job_id}")).body["output"] for job_id in told}

    assert any(told.values())
    for job_id, output in shown.items():
        numbers = told[job_id].get(output["stage"], {})
        assert output.items() >= numbers.items()


async def test_a_job_of_the_past_that_failed_goes_on_when_it_is_run_again(past: Past) -> None:
    failed = await past.jobs(*RETRYABLE)

    for job in failed:
        assert (await past.ask("POST", f"/retry/{job.id}")).status == 200
        await complete(past, await past.job(job.id))

    assert {(await past.job(job.id)).status for job in failed} == {"COMPLETED"}


async def complete(past: Past, job: Job, *, handed_over: bool = False) -> None:
    """Play everybody who has, or gets, work of a job."""
    while job.status not in END_STATUSES:
        stage = next(stage for stage in STAGES if stage in job.stages and job.stages[stage].open)
        worker = await worker_of(past, job, stage, handed_over=handed_over)
        await finish(worker, job.stages[stage])
        job = await eventually(partial(done, past, job.id, stage))


async def done(past: Past, job_id: str, stage: Stage) -> Job | None:
    job = await past.job(job_id)
    return None if job.stages[stage].open else job


async def worker_of(past: Past, job: Job, stage: Stage, *, handed_over: bool) -> Claimed:
    """Who has the claim already; who gets it, where nobody has or it is handed over."""
    held = job.stages[stage].claim
    if held is not None:
        grant = ClaimGranted(job=job.id, stage=stage, claim=held.id, attempt=held.attempt)
        worker = Claimed(past.here, job.id, stage, held.id, grant)
        if not handed_over:
            return worker
        await worker.publish(INTERRUPTED[stage])
    worker = await past.here.claim(job.id, stage, gpu="card")
    check_grant(past, job, worker.grant)
    return worker


def check_grant(past: Past, job: Job, grant: ClaimGranted) -> None:
    """What was kept for the next worker reaches it."""
    assert grant.attempt == job.stages[grant.stage].attempts + 1
    if grant.stage == "training":
        assert (grant.resume_point, grant.commands) == (job.resume_point, open_commands(job))
    if grant.stage in BUCKET_STAGES:
        assert grant.s3
        assert unseal(past.key, grant.s3, job.id) == bucket_of(past)


def open_commands(job: Job) -> dict[Command, int]:
    return {
        kind: number
        for kind, number in job.commands.items()
        if number > job.commands_done.get(kind, 0)
        for kind, number in job.commands.items()
        if number > job.commands_done.get(kind, 0)
    }


def bucket_of(past: Past) -> S3Config:
    return S3Config(**past.told["submission"]["request"]["s3Config"])


async def finish(worker: Claimed, record: StageRecord) -> None:
    asking = decode(record.trigger)
    match worker.stage:
        case "staging" if isinstance(asking, Submission) and asking.train is None:
            await worker.stage_model(asking)
        case "staging":
            await worker.stage_dataset(asking)
        case "bucket_check":
            await worker.publish(BucketChecked)
        case "training":
            await worker.finish_training()
        case "generation":
            await worker.finish_generation()
        case "model_publication" | "image_publication":
            await worker.publish(
                ArtifactsPublished, urls={"key": "https://s3.example.com/bucket/key"}
            )


async def test_a_worker_of_the_past_gets_the_open_commands(past: Past) -> None:
    commanded = [job for job in await past.jobs("IN_PROGRESS") if open_commands(job)]

    assert commanded
    for job in commanded:
        held = job.stages["training"].claim
        assert held
        progressed = TrainingProgressed(job=job.id, stage="training", claim=held.id)
        await past.here.publish(progressed)
        asked = await past.here.receive(CommandIssued)
        assert (asked.job, asked.claim, asked.commands) == (job.id, held.id, open_commands(job))


async def test_what_was_about_to_leave_leaves_when_its_time_comes(past: Past) -> None:
    waiting = past.outbox()
    left: list[AnyMessage] = []

    past.here.clock.ahead += max(due_at for _, due_at in waiting) - past.told["at"] + 1
    await eventually(partial(emptied, past))

    for queue in QUEUES:
        while queue != GATEWAY_RECORDER and len(past.here.broker.queue(queue.name)):
            left.append(await past.here.get(queue))
    assert [message for message, _ in waiting if message not in left] == []


async def emptied(past: Past) -> bool | None:
    return None if past.outbox() else True


async def test_a_webhook_under_way_is_tried_again_and_settled(past: Past) -> None:
    under_way = {job.id for job in await past.jobs(*END_STATUSES) if not job.webhook_settled}
    assert under_way
    past.here.clock.ahead += 60

    for _ in under_way:
        due = await past.here.get(NOTIFIER_WEBHOOKS)
        assert isinstance(due, WebhookDue)
        await past.here.publish(
            WebhookDelivered(
                job=due.job, run=due.run, attempt=due.attempt, webhook_id=due.webhook_id, status=204
            )
        )
    for job_id in under_way:
        await eventually(partial(settled, past, job_id))


async def settled(past: Past, job_id: str) -> bool | None:
    return (await past.job(job_id)).webhook_settled or None


# --- What clients see -------------------------------------------------------------------------


async def test_every_job_of_the_past_is_shown(past: Past) -> None:
    for row in await past.rows():
        shown = await past.ask("GET", f"/status/{row.id}")
        assert (shown.status, shown.body["status"]) == (200, row.status), shown
        assert forgotten(row.record, Job) == []


async def test_a_list_goes_on_where_its_page_has_ended(past: Past) -> None:
    page, ids = past.told["page"], [row.id for row in await past.rows()]

    rest = await past.ask("GET", "/jobs", params={"cursor": page["next"], "limit": "100"})

    assert [*page["shown"], *(job["id"] for job in rest.body["jobs"])] == ids


async def test_events_go_on_after_the_last_that_was_read(past: Past) -> None:
    job, last = past.told["event"]["job"], past.told["event"]["id"]
    version, number = map(int, last.split("."))
    later = await past.here.stores.jobs.events_after(job, version, number)
    key = past.told["keys"]["first"]
    headers = {"Authorization": f"Bearer {key}", "Last-Event-ID": last}

    async with past.here.session.get(
        past.here.url(f"{ROOT}/events/{job}"), headers=headers
    ) as answer:
        lines = (await answer.text()).splitlines()

    told = [line.removeprefix("id: ") for line in lines if line.startswith("id: ")]
    assert told == [f"{each.version}.{each.number}" for each in later] != []


async def test_the_events_of_the_past_link_to_their_files(past: Past) -> None:
    for job in await past.jobs(*END_STATUSES):
        events = await past.here.stores.jobs.events_after(job.id, 0, 0, limit=1000)
        assert events
        stored = [event for event in events if b'"key"' in event.data]
        key = past.told["keys"]["first"]
        async with past.here.session.get(
            past.here.url(f"{ROOT}/events/{job.id}"), headers={"Authorization": f"Bearer {key}"}
        ) as answer:
            text = await answer.text()
        assert text.count('"url":') == len(stored)


async def test_a_link_leads_to_its_file_until_it_ends(past: Past) -> None:
    link = past.told["link"]
    path = link["url"].removeprefix(past.here.settings.public_url)

    async with past.here.session.get(past.here.url(path)) as answer:
        assert answer.status == 200
        assert hashlib.sha256(await answer.read()).hexdigest() == link["sha256"]

    past.here.clock.ahead += WEEK
    async with past.here.session.get(past.here.url(path)) as answer:
        assert answer.status == 403


async def test_a_job_may_name_a_model_of_the_past_by_its_link(past: Past) -> None:
    entry = {"prompt": "a red wall", "seed": 1}
    link = past.told["link"]["url"]

    answer = await past.ask("POST", "/run", json={"input": {"model": link, "inference": entry}})

    assert answer.status == 200, answer
    asking = decode((await past.job(answer.body["id"])).stages["staging"].trigger)
    assert isinstance(asking, Submission)
    assert isinstance(asking.model, ModelSource)
    assert asking.model.source.startswith(STORED)
    assert asking.model.sha256 == past.told["link"]["sha256"]


async def test_every_key_is_good_for_what_it_was_good_for(past: Past) -> None:
    reach = access(None, None, past.here.settings)

    assert (reach.url, reach.key) == (past.here.settings.public_url, past.told["keys"]["first"])
    assert f'key = "{reach.key}"' in (past.home / CLIENT_FILE).read_text()
    assert (await past.ask("GET", "/jobs")).body["jobs"]
    assert (await past.ask("GET", "/jobs", key="no admin")).status == 200
    assert (await past.ask("POST", "/run", key="no admin", json={})).status == 400
    assert (await past.ask("DELETE", "/jobs/none", key="no admin")).status == 403
    assert (await past.ask("GET", "/jobs", key="disabled")).status == 401


async def test_a_submission_that_is_repeated_is_the_same_job(past: Past) -> None:
    known, submission, removed = await past.rows(), past.told["submission"], past.told["removed"]

    again = await submitted(past, submission)
    other = await submitted(past, {**submission, "request": removed["request"]})
    gone = await submitted(past, removed)

    assert (again.status, again.body.get("id")) == (200, submission["job"])
    assert (other.status, gone.status) == (422, 422), "of another request, and of a removed job"
    assert len(await past.rows()) == len(known)


async def submitted(past: Past, submission: dict[str, Any]) -> Answer:
    headers = {"Idempotency-Key": submission["idempotency_key"]}
    return await past.ask("POST", "/run", json=submission["request"], headers=headers)


async def test_an_upload_is_used_and_another_is_gone_on_with(past: Past, tmp_path: Path) -> None:
    for address in past.told["uploads"].values():
        path = address.removeprefix(past.here.settings.public_url + ROOT)
        stands = (await past.ask("GET", path)).body
        if stands["received"] < stands["bytes"]:
            await send_rest(past, path, stands)
        job = await past.ask("POST", "/run", json={"input": {"train": {"data_url": address}}})
        assert job.status == 200, job

        asking = decode((await past.job(job.body["id"])).stages["staging"].trigger)
        assert isinstance(asking, Submission)
        assert asking.train
        key = asking.train.data_url.removeprefix(STORED)
        await download_upload(past.here.store, key, tmp_path / "upload")
        assert (tmp_path / "upload").stat().st_size == stands["bytes"]


async def send_rest(past: Past, path: str, stands: dict[str, Any]) -> None:
    key, offset = past.told["keys"]["first"], stands["received"]
    headers = {
        "Authorization": f"Bearer {key}", "Content-Type": CHUNK, "Upload-Offset": str(offset)
    }  # fmt: skip
    async with past.here.session.patch(
        past.here.url(ROOT + path), headers=headers, data=bytes(stands["bytes"] - offset)
    ) as answer:
        assert answer.status == 204, await answer.text()


# --- What is kept beside the database ---------------------------------------------------------


async def test_what_was_sealed_and_signed_under_a_key_is_opened_by_it(past: Past) -> None:
    sealed = {job.id: job.s3 for job in await past.jobs() if job.s3}

    assert sealed
    assert {unseal(past.key, text, job) for job, text in sealed.items()} == {bucket_of(past)}
    assert webhook_secret(None, past.key) == past.told["webhook_secret"]


async def test_every_folder_of_the_past_is_whole(past: Past, tmp_path: Path) -> None:
    store = past.here.store
    manifests = [entry.key async for entry in store.list("") if entry.key.endswith(MANIFEST)]

    assert manifests
    for number, key in enumerate(manifests):
        prefix = key.removesuffix(f"/{MANIFEST}")
        manifest = await download_folder(store, prefix, tmp_path / str(number))
        assert manifest.files


async def test_snapshots_and_samples_of_the_past_are_found(past: Past) -> None:
    store, found = past.here.store, 0
    for job in await past.jobs():
        left = [entry.key async for entry in store.list(snapshots_of(job.id))]
        kept = {entry.key async for entry in store.list(f"jobs/{job.id}/samples/")}
        steps = {each.step for each in job.samples if each.artifact.key in kept}
        snapshots = await waiting_snapshots(store, job.id)

        folders = [key.removesuffix(f"/{MANIFEST}") for key in left if key.endswith(MANIFEST)]
        assert [snapshot.prefix for snapshot in snapshots] == folders
        assert await drawn_steps(store, job.id) == sorted(steps)
        found += bool(snapshots and steps)
    assert found


async def test_a_model_that_was_pulled_is_used_as_it_was(past: Past) -> None:
    for name, pin in read_pins(past.home).items():
        (past.home / pin.folder).parent.mkdir(parents=True)
        await asyncio.to_thread((past.home / pin.folder).symlink_to, TINY_FOLDER)

        model = await ConfiguredModel(name, past.home, ModelFolders()).find(
            ProgressMeter("", lambda **_: None, lambda: None), InProcessReader()
        )

        assert model.folder == past.home / pin.folder
        assert pin.commit in pin.folder
    assert read_pins(past.home)
