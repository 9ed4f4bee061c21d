"""The faults in their short form: the jobs end as they should, once, with one set of effects."""

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
SHARES = {
    "cases_broker": "broker",
    "cases_storms": "broker",
    "cases_gateway": "gateway",
    "cases_data": "gateway",
    "cases_workers": "postgresql",
    "cases_stores": "postgresql",
}
"""By the module of a case that does not mind which database it has."""


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


def cases(share: str) -> pytest.MarkDecorator:
    chosen = [case for case in all_cases() if share_of(case) == share and not case.shown_by]
    return pytest.mark.parametrize("case", chosen, ids=lambda case: case.name)


def share_of(case: Case) -> str:
    """Which of the three worlds has this case: each has its own worker and about the same time."""
    if case.database:
        return "postgresql" if case.database == "postgresql" else "gateway"
    return SHARES[case.run.__module__.rpartition(".")[2]]


@cases("broker")
async def test_a_job_survives_the_broker_and_storms_when(case: Case, sqlite_world: World) -> None:
    await carry_out(case, sqlite_world)


@cases("gateway")
async def test_a_job_survives_the_gateway_and_bad_data_when(
    case: Case, sqlite_world: World
) -> None:
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
