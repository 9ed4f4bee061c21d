"""Workers that come and go by design: started by KEDA for one job each, or drained."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from http import HTTPStatus
from time import monotonic

import msgspec
import yaml

from shared.service_process import STOP_SECONDS
from tests.faults.cases import Form, Outcome, case
from tests.faults.looks import attempts_at, lines_of
from tests.faults.script import Mishap, Script
from tests.faults.stand_ins import stand_in
from tests.faults.world import PROGRAM, World
from tests.support.compose import DEPLOY
from tests.support.keda import ScaledJob, value_at
from tests.support.servers.process import HOST, free_port
from tests.support.services import ServiceProcess

MANIFEST = DEPLOY / "kubernetes" / "overlays" / "keda" / "trainer.yaml"
LOOK_SECONDS = 0.5
"""Between two looks at the metric; the manifest's are longer, and so are its jobs."""

ALL_SECONDS = 900.0
"""For all jobs together."""
DRAIN_SECONDS = 900.0
"""Far more than the job takes, also on a machine that makes it longer."""


@dataclass
class Keda:
    """Looks at the metric and starts workers; like KEDA it stops none."""

    world: World
    scaled: ScaledJob
    started: list[ServiceProcess] = field(default_factory=list)

    @property
    def running(self) -> list[ServiceProcess]:
        return [worker for worker in self.started if worker.alive]

    async def look(self) -> float:
        """Start what is missing; returns the metric's value."""
        running = len(self.running)  # first: one that ends meanwhile is started again too late
        value = value_at(self.scaled.value_location, await metrics_of(self.world))
        for _ in range(self.scaled.starts(value, running=running)):
            command = (*PROGRAM, "service", "trainer", "--jobs", "1")
            worker = self.world.services.begin("trainer", command=command)
            worker.ended = True  # it will, by itself
            self.started.append(worker)
        assert len(self.running) <= self.scaled.most
        return value

    async def until_scaled_to_zero(self) -> None:
        """Look again and again until no job is open and no worker runs."""

        async def at_zero() -> bool | None:
            await asyncio.sleep(LOOK_SECONDS)
            return (await self.look() == 0 and not self.running) or None

        await self.world.until(at_zero, ALL_SECONDS)


async def metrics_of(world: World) -> str:
    """What the gateway shows on its metrics port."""
    settings = world.services.first("gateway").settings
    async with world.session.get(f"http://{HOST}:{settings.metrics_port}/metrics") as answer:
        assert answer.status == HTTPStatus.OK
        return await answer.text()


@case("+", "KEDA starts a trainer of one job for each open job, and ends none")
async def started_by_keda(world: World, form: Form) -> Outcome:
    async with stand_in(world, "gateway", METRICS_PORT=str(free_port())):
        return await _started_by_keda(world, form)


async def _started_by_keda(world: World, form: Form) -> Outcome:
    keda = Keda(world, ScaledJob.of(yaml.safe_load(MANIFEST.read_text())))
    await world.services.first("trainer").stop()
    script = Script(steps=10, step_seconds=0.05)
    fails_once = msgspec.structs.replace(script, mishaps=(Mishap(at=5, how="passing"),))
    jobs = [await world.submit(fails_once)]
    jobs += [await world.submit(script) for _ in range(form.of(3, 29))]
    began = monotonic()

    async def begun() -> bool | None:
        return await keda.look() > 0 or None

    try:
        await world.until(begun)
        await keda.until_scaled_to_zero()
    finally:
        for worker in keda.started:
            await worker.kill()  # if it has not ended by itself, as is asked for below
    seconds = monotonic() - began
    await world.recovered(jobs)

    assert [worker.status for worker in keda.started] == [0] * len(keda.started)
    assert sum(len(lines_of(worker, '"working"')) for worker in keda.started) == len(jobs) + 1
    assert all(len(lines_of(worker, '"working"')) <= 1 for worker in keda.started)
    attempts = [await attempts_at(world, job, "training") for job in jobs]
    assert attempts == [2] + [1] * (len(jobs) - 1), "nobody was ended in the middle of a job"
    return Outcome(len(keda.started), tuple(jobs), seconds)


@case(
    "+",
    "a trainer is stopped with time to drain, and its job takes longer than a stop may",
    shown_by=(
        "tests/unit/shared/test_ending_worker.py::test_a_worker_that_drains_finishes_its_job_and_takes_no_other",
    ),
)
async def drained(world: World, form: Form) -> Outcome:
    seconds = form.of(2.0, STOP_SECONDS + 6.0)
    async with stand_in(world, "trainer", DRAIN_SECONDS=str(DRAIN_SECONDS)) as trainer:
        job = await world.submit(Script(steps=100, step_seconds=seconds / 100))
        await world.reaches(job, step=1)
        later = await world.submit()
        began = monotonic()
        await trainer.stop(seconds=DRAIN_SECONDS)
        took = monotonic() - began
        assert lines_of(trainer, "claim_ended", job, "CheckpointFinal")
        assert len(lines_of(trainer, '"working"')) == 1
    await world.services.start("trainer")
    await world.recovered([job, later])
    assert await attempts_at(world, job, "training") == 1
    assert took > seconds / 2
    return Outcome(1, (job, later), took)
