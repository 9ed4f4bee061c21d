"""Every fault in its short form: the jobs end as they should, once, with one set of effects."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.faults.__main__ import observed_world
from tests.faults.cases import Case, DatabaseKind, Form, all_cases
from tests.faults.evidence import gather
from tests.faults.ledger import check
from tests.faults.world import World
from tests.support.servers.postgres import PostgreSQL
from tests.support.servers.rabbitmq import RabbitMQ
from tests.support.servers.s3 import S3Server

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sqlite_world(rabbitmq: RabbitMQ, s3_server: S3Server) -> AsyncIterator[World]:
    async with observed_world(rabbitmq, s3_server, None) as (world, witness):
        yield world
        assert check(await gather(world, witness)) == []


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def postgresql_world(
    rabbitmq: RabbitMQ, s3_server: S3Server, postgres: PostgreSQL
) -> AsyncIterator[World]:
    async with observed_world(rabbitmq, s3_server, postgres.url()) as (world, witness):
        yield world
        assert check(await gather(world, witness)) == []


def cases(database: DatabaseKind) -> pytest.MarkDecorator:
    chosen = [case for case in all_cases() if case.database == database]
    return pytest.mark.parametrize("case", chosen, ids=lambda case: case.name)


@cases("sqlite")
async def test_a_job_survives_when(case: Case, sqlite_world: World) -> None:
    await carry_out(case, sqlite_world)


@cases("postgresql")
async def test_a_job_over_postgresql_survives_when(case: Case, postgresql_world: World) -> None:
    await carry_out(case, postgresql_world)


async def carry_out(case: Case, world: World) -> None:
    try:
        outcome = await case.run(world, Form.SHORT)
    except BaseException as error:
        error.add_note(world.services.last_words())
        raise
    finally:
        await world.whole()

    assert outcome.injected
