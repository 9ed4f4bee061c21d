"""A storm of cancellations: several clients cancel the same jobs, each of them again and again."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from random import Random

import aiohttp

from everydream.client import Client, with_retries
from tests.end_to_end.story import API_KEY
from tests.faults.world import World

CLIENTS = 3
TIMES = 2
"""How often each of them cancels each job."""
ANSWER_SECONDS = 60.0
"""In which a client that tries again, as ours does, must have been answered."""


async def storm(world: World, jobs: Sequence[str], seconds: float, dice: Random) -> int:
    """Cancel the jobs at random moments within these seconds; how many requests went wrong.

    Each job's begin at a moment of its own, so that a worker that is killed in the first half has
    jobs that were cancelled before, and jobs that will be.
    """
    moments = [
        (job, dice.uniform(begin, seconds))
        for job in jobs
        for begin in [dice.uniform(0, seconds / 2)]
        for _ in range(CLIENTS * TIMES)
    ]
    return sum(await asyncio.gather(*(_cancel(world, *moment, dice) for moment in moments)))


async def _cancel(world: World, job: str, after: float, dice: Random) -> bool:
    """Ask any gateway that runs, after a while; whether it did not do it."""
    await asyncio.sleep(after)
    if not (gateways := world.services.named("gateway")):
        return True
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            client = Client(world.session, dice.choice(gateways).url, API_KEY)
            await with_retries(lambda: client.cancel(job))
    except (aiohttp.ClientError, TimeoutError):
        return True
    return False
