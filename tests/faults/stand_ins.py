"""Services that are not as they should be, in place of those that are."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from tests.faults.world import World
from tests.support.services import ServiceProcess

LEAST_HEARTBEAT = 0.05
"""Seconds; for a worker whose patience (60 beats) a case waits out."""


@asynccontextmanager
async def stand_in(
    world: World, name: str, command: Sequence[str] | None = None, **settings: str
) -> AsyncIterator[ServiceProcess]:
    """One process, with a command or settings of its own, instead of all of this name.

    They are killed at once, and so is it at the end; settings come without their prefix.
    """
    for process in world.services.named(name):
        await process.kill()
    own = {f"EVERYDREAM_{setting}": value for setting, value in settings.items()}
    process = await world.services.start(name, {**world.services.environment, **own}, command)
    try:
        yield process
    finally:
        if process.alive:
            await process.kill()


def skewed(name: str, seconds: int) -> Sequence[str]:
    """The command of a service whose clock is ahead by so much, or behind."""
    return ("tests.faults.skewed", str(seconds), "service", name)
