"""Every adapter of a port, one after the other, for the one body of promises."""

from collections.abc import AsyncIterator

import pytest

from tests.contract.bus_worlds import MemoryWorld, RabbitMQWorld, World


@pytest.fixture(params=["memory", "rabbitmq"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """A broker that nobody has used, and the buses on it."""
    world: World
    if request.param == "memory":
        world = MemoryWorld()
    else:
        world = RabbitMQWorld(request.getfixturevalue("amqp_url"))
    yield world
    await world.close()
