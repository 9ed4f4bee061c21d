"""A user's bucket secrets: sealed while they are needed, gone from the record afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from services.gateway.database.connection import Database
from services.gateway.database.jobs import SqlJobStore
from services.gateway.jobs.request_parser import parse_request
from services.gateway.ports import StoredJob
from shared.errors import Unavailable
from shared.messaging.messages import ArtifactsPublished, BucketChecked, JobRequested, StageFailed
from shared.messaging.topology import FETCHER
from shared.service_process import closing
from shared.settings import from_environment
from tests.support.gateway_world import S3_CONFIG, TRAIN_ONLY, World, eventually, world
from tests.support.secrets_search import answer, files_in, leaks, rows_of

SECRETS = {name: S3_CONFIG[name] for name in ("accessId", "accessSecret")}
ROOT = "/v1/everydream-v1"
DAY = 24 * 3600.0


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as one:
        yield one


async def with_a_bucket(here: World) -> tuple[str, str]:
    """A job whose bucket has been tried, and its secrets as they are sealed."""
    job = await here.run({**TRAIN_ONLY, "s3Config": S3_CONFIG})
    checking = await here.claim(job, "bucket_check")
    assert checking.grant.s3
    await checking.publish(BucketChecked)
    assert await kept(here, checking.grant.s3), "else this search finds nothing"
    return job, checking.grant.s3


async def kept(here: World, sealed: str) -> bool:
    """Whether any row of any table holds the sealed secrets."""
    rows = await rows_of(here.settings.database_url.replace("sqlite:", "sqlite+aiosqlite:"))
    return bool(leaks(rows, {"sealed": sealed}))


async def test_a_completed_job_keeps_no_secrets(here: World) -> None:
    job, sealed = await with_a_bucket(here)
    await (await here.claim(job, "staging")).stage_dataset(await here.get(FETCHER))
    await (await here.claim(job, "training")).finish_training()
    await (await here.claim(job, "model_publication")).publish(ArtifactsPublished, urls={})
    await here.status_becomes(job, "COMPLETED")
    assert not await kept(here, sealed)


async def test_a_cancelled_job_keeps_no_secrets(here: World) -> None:
    job, sealed = await with_a_bucket(here)
    await here.ask("POST", f"{ROOT}/cancel/{job}")
    assert not await kept(here, sealed)


async def failed(here: World) -> tuple[str, str]:
    job, sealed = await with_a_bucket(here)
    await here.get(FETCHER)
    staging = await here.claim(job, "staging")
    await staging.publish(StageFailed, kind="refused", reason="no images")
    await here.status_becomes(job, "FAILED")
    return job, sealed


async def test_a_failed_job_keeps_them_for_a_retry_until_retention_ends(here: World) -> None:
    _, sealed = await failed(here)
    assert await kept(here, sealed)
    here.clock.ahead = (from_environment({}).keep_days + 1) * DAY

    async def forgotten() -> bool | None:
        return None if await kept(here, sealed) else True

    await here.gateway._retention.delete_expired()
    await eventually(forgotten)


async def test_a_failed_job_that_is_removed_keeps_none(here: World) -> None:
    job, sealed = await failed(here)
    assert (await here.ask("DELETE", f"{ROOT}/jobs/{job}")).status == 200
    assert not await kept(here, sealed)


async def test_no_file_of_a_gateway_with_sqlite_ever_holds_them_in_clear(here: World) -> None:
    """The write-ahead log and the pages that were freed among them."""
    await failed(here)
    await with_a_bucket(here)
    files = await asyncio.to_thread(files_in, here.settings.home)
    assert any(place.name.endswith(".db-wal") for place in files)
    assert leaks(files, SECRETS) == []


# --- What is shown of what holds them ---------------------------------------------------------

ENVIRONMENT = {
    "EVERYDREAM_API_KEYS": "an-api-key-of-anna",
    "EVERYDREAM_AMQP_URL": "amqp://u:the-amqp-password@h/",
    "EVERYDREAM_DATABASE_URL": "postgresql://u:the-database-password@h/d",
    "EVERYDREAM_SECRET_KEY": "the-secret-key-of-this-deployment",
    "EVERYDREAM_WEBHOOK_SECRET": "whsec_dGhlIHdlYmhvb2sgc2VjcmV0IG9mIHVz",
}


def test_settings_requests_and_messages_hide_their_secrets() -> None:
    body: dict[str, Any] = {**TRAIN_ONLY, "s3Config": S3_CONFIG}
    holders = (from_environment(ENVIRONMENT), parse_request(body), JobRequested(request=body))
    secrets = {
        **SECRETS,
        **{name: text.rpartition("u:")[2].partition("@")[0] for name, text in ENVIRONMENT.items()},
    }
    for holder in holders:
        for shown in (repr(holder), str(holder), f"{holder}", repr([holder])):
            assert leaks([answer(type(holder).__name__, shown)], secrets) == []


async def test_an_error_of_the_database_shows_no_row(tmp_path: Path) -> None:
    """It goes into a log line."""
    url = f"sqlite:///{tmp_path}/jobs.db"
    async with closing(Database.open(url)) as database:
        await database.migrate()
        engine = create_async_engine(url.replace("sqlite:", "sqlite+aiosqlite:"))
        async with engine.begin() as connection:
            await connection.execute(sa.text("DROP TABLE jobs"))
        await engine.dispose()
        row = StoredJob(
            id="1", owner=S3_CONFIG["accessSecret"], status="IN_QUEUE", version=1,
            created_at=0.0, ended_at=None, record=b"",
        )  # fmt: skip
        with pytest.raises(Unavailable) as caught:
            await SqlJobStore(database).insert(row, [])
    assert "jobs" in str(caught.value)
    assert leaks([answer("the error", str(caught.value))], SECRETS) == []
