"""Faults of the broker."""

from __future__ import annotations

import asyncio

from tests.faults.cases import Form, Outcome, case
from tests.faults.script import Script
from tests.faults.world import World


@case("2", "all connections are closed in the middle of a job")
async def connections_closed(world: World, form: Form) -> Outcome:
    times = form.of(1, 10)
    job = await world.submit(Script(steps=30 * times, step_seconds=0.05))
    for number in range(times):
        await world.reaches(job, step=1 + 20 * number)
        await asyncio.to_thread(world.broker.close_all_connections)
    seconds = await world.recovered([job])
    assert world.services.first("trainer").text.count(f"training {job} from step") == 1
    return Outcome(times, (job,), seconds)
