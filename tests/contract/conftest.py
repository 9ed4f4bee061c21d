"""Every adapter of a port, for the contract tests."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.gateway.database.connection import Database
from shared.service_process import closing
from tests.contract.bus_worlds import MemoryWorld, RabbitMQWorld, World
from tests.support.migrated import new_sqlite


@pytest.fixture(params=["memory", "rabbitmq"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """An unused broker and the buses on it."""
    world: World
    if request.param == "memory":
        world = MemoryWorld()
    else:
        world = RabbitMQWorld(request.getfixturevalue("amqp_url"))
    yield world
    await world.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a database of the newest schema, as a user would write it."""
    if request.param == "sqlite":
        return new_sqlite(tmp_path / "jobs.db")
    address: str = request.getfixturevalue("postgres_url")
    return address.replace("+asyncpg", "")


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a database that has no schema yet."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'made on demand' / 'jobs.db'}"
    address: str = request.getfixturevalue("empty_postgres_url")
    return address.replace("+asyncpg", "")


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    """Either database, open, with the newest schema."""
    async with closing(Database.open(url)) as database:
        await database.migrate()
        yield database
