"""Faults in their short form: the jobs end as they should, once, with one set of effects.

Over PostgreSQL: faults of SQLite alone are shown by quicker tests, and in the long form.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.faults.__main__ import observed_world
from tests.faults.cases import Case, Form, all_cases
from tests.faults.evidence import gather
from tests.faults.ledger import check
from tests.faults.world import World
from tests.support.servers.postgres import PostgreSQL
from tests.support.servers.rabbitmq import RabbitMQ
from tests.support.servers.s3 import S3Server

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_world(
    rabbitmq: RabbitMQ, s3_server: S3Server, postgres: PostgreSQL
) -> AsyncIterator[World]:
    async with observed_world(rabbitmq, s3_server, postgres.url()) as (world, witness):
        yield world
        assert check(await gather(world, witness)) == []


@pytest.mark.parametrize(
    "case", [case for case in all_cases() if not case.shown_by], ids=lambda case: case.name
)
async def test_a_job_survives_when(case: Case, shared_world: World) -> None:
    try:
        outcome = await case.run(shared_world, Form.SHORT)
    except BaseException as error:
        error.add_note(shared_world.services.last_words())
        raise
    finally:
        await shared_world.whole()

    assert outcome.injected
