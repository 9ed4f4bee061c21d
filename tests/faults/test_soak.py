"""The soak in its short form comes out clean, and a loss that is planted in it is told."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest
import pytest_asyncio

from tests.faults.evidence import gather
from tests.faults.facts import Evidence
from tests.faults.ledger import check, totals
from tests.faults.soak import Plan, Soak, page, soaked
from tests.faults.world import heartbeat
from tests.support.servers.rabbitmq import RabbitMQ
from tests.support.servers.s3 import S3Server

pytestmark = [
    pytest.mark.long,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(900),
]
SEED, JOBS = 7, 8


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def soak(rabbitmq: RabbitMQ, s3_server: S3Server) -> AsyncIterator[Soak]:
    plan = Plan(seed=SEED, minutes=heartbeat(), scripted=JOBS)  # twelve seconds on a quiet machine
    async with soaked(plan, rabbitmq, s3_server, None, print) as soak:
        yield soak


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def evidence(soak: Soak) -> Evidence:
    return await gather(soak.world, soak.witness)


async def test_after_random_faults_every_job_has_ended_once_with_one_set_of_effects(
    soak: Soak, evidence: Evidence
) -> None:
    sums = totals(evidence)
    assert check(evidence) == []
    assert sums.accepted == JOBS
    assert sums.completed > 0
    assert sums.files > 0
    assert sums.posts > 0
    assert soak.chaos.injected.total() > 3
    assert f"| accepted | {JOBS} |" in page(soak.plan, "command", sums, soak.chaos.injected, 60)


async def test_an_object_that_is_taken_away_is_told(soak: Soak, evidence: Evidence) -> None:
    gone = published(evidence)
    async with soak.world.s3.client() as client:
        await client.delete_object(Bucket=soak.world.bucket, Key=gone)
    (wrong,) = check(await gather(soak.world, soak.witness))
    async with soak.world.s3.client() as client:
        await client.put_object(Bucket=soak.world.bucket, Key=gone, Body=body_of(evidence, gone))
    assert "is not in the bucket" in wrong
    assert gone in wrong


async def test_a_webhook_under_another_id_is_told(soak: Soak, evidence: Evidence) -> None:
    post = next(post for post in evidence.posts if post.status == "COMPLETED")
    async with aiohttp.ClientSession() as session:
        url = soak.world.web.url("/webhook")
        headers = {"webhook-id": "another"}
        async with session.post(url, data=post.body, headers=headers):
            pass
    (wrong,) = check(await gather(soak.world, soak.witness))
    assert wrong == f"{post.job}: webhooks of an end came under 2 ids, and 1 were owed"


def published(evidence: Evidence) -> str:
    """The key of some artifact of a completed job."""
    done = {record.id for record in evidence.records if record.status == "COMPLETED"}
    return next(each.key for each in evidence.bucket if each.key.split("/")[0] in done)


def body_of(evidence: Evidence, key: str) -> bytes:
    return next(text.content for text in evidence.texts if text.place == f"artifact {key}")
