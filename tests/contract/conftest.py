"""Every adapter of a port, for the contract tests."""

from collections.abc import AsyncIterator

import pytest

from tests.contract.bus_worlds import MemoryWorld, RabbitMQWorld, World


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
