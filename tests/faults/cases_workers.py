"""Faults of workers: killed, stopped, stuck, cut off, out of disk."""

from __future__ import annotations

import asyncio
import contextlib
import resource
from time import monotonic

import psutil

from tests.faults.cases import Form, Outcome, case
from tests.faults.looks import (
    attempts_at,
    lines_of,
    process_says,
    record_of,
    resume_point_reaches,
    stage_of,
    trained_from,
)
from tests.faults.script import How, Mishap, Script
from tests.faults.stand_ins import LEAST_HEARTBEAT, stand_in
from tests.faults.world import World
from tests.support.services import ServiceProcess

FILE_BYTES = 1_000_000
"""The largest file on a disk that is said to be full."""
GRACE = 20.0
"""Seconds in which a trainer must have handed its job over."""


@case(
    "4",
    "the trainer's child is killed, then the trainer too, in the middle of an epoch",
    shown_by=(
        "tests/end_to_end/test_main_job.py::test_a_trainer_killed_in_the_middle_costs_the_steps_since_its_resume_point_only",
        "tests/integration/trainer/test_work.py::test_an_idle_child_that_died_is_replaced_and_a_busy_one_is_a_passing_failure",
    ),
)
async def trainer_killed(world: World, form: Form) -> Outcome:
    times = form.of(1, 5)
    job = await world.submit(Script(steps=40 * times, step_seconds=0.05, resume_every=5))
    kept = 0
    for number in range(times):
        await resume_point_reaches(world, job, step=max(5 + 40 * number, kept + 5))
        for child in world.services.first("trainer").children:
            child.kill()
        await world.says("trainer", f'"attempt": {2 * number + 2}', job, "working")
        kept = await resume_point_reaches(world, job, step=20 + 40 * number)
        await world.services.first("trainer").kill()
        await world.services.start("trainer")
    seconds = await world.recovered([job])
    assert await trained_from(world, job) >= kept, "it did not go on from the last resume point"
    assert await attempts_at(world, job, "training") == 1 + 2 * times
    return Outcome(2 * times, (job,), seconds)


@case(
    "8",
    "a job's child crashes each time",
    shown_by=(
        "tests/integration/trainer/test_work.py::test_an_idle_child_that_died_is_replaced_and_a_busy_one_is_a_passing_failure",
        "tests/unit/gateway/test_transitions.py::test_the_third_failure_in_a_row_ends_the_job",
    ),
)
async def crashes_each_time(world: World, form: Form) -> Outcome:
    ways: tuple[How, ...] = form.of(("exit",), ("exit", "kill", "passing"))
    jobs = [
        await world.submit(Script(mishaps=(Mishap(at=2, how=how, attempts=99),)), wanted="FAILED")
        for how in ways
    ]
    began = monotonic()
    await world.recovered(jobs)
    for job in jobs:
        error = (await record_of(world, job)).error or ""
        assert error.startswith("training failed 3 times in a row: "), error
        assert await attempts_at(world, job, "training") == 3
    return Outcome(3 * len(jobs), tuple(jobs), monotonic() - began)


@case(
    "+",
    "a job's child hangs",
    shown_by=(
        "tests/unit/shared/test_runtime.py::test_silent_work_is_given_up_after_its_patience",
        "tests/unit/gateway/test_transitions.py::test_a_lost_worker_counts_one_failure",
    ),
)
async def child_hangs(world: World, form: Form) -> Outcome:
    times = form.of(1, 2)
    job = await world.submit(Script(steps=6, mishaps=(Mishap(at=3, how="hang", attempts=times),)))
    async with stand_in(world, "trainer", HEARTBEAT=str(LEAST_HEARTBEAT)):
        await world.says("trainer", f'"attempt": {times + 1}', job, "working")
        seconds = await world.recovered([job])
    assert await attempts_at(world, job, "training") == times + 1
    return Outcome(times, (job,), seconds)


@case("+", "a trainer is cut off past its lease, and comes back")
async def cut_off_and_back(world: World, form: Form) -> Outcome:
    times, seconds = form.of(1, 4), 0.0
    jobs = []
    for _ in range(times):
        job = await world.submit(Script(steps=80, step_seconds=0.05, resume_every=10))
        jobs.append(job)
        lost = await working_on(world, job)
        await resume_point_reaches(world, job, step=10)
        still = [psutil.Process(lost.pid), *lost.children]  # as if the machine stood still
        for process in still:
            process.suspend()
        other = await world.services.start("trainer")
        await world.says("gateway", "claim_lost", job)
        await process_says(world, other, "training", job, "from step")
        for process in still:
            process.resume()
        await process_says(world, lost, "claim_lost_to_gateway", job)
        assert not lines_of(lost, "claim_ended", job, "CheckpointFinal")
        seconds = await world.recovered([job])
        assert await attempts_at(world, job, "training") == 2
        assert await trained_from(world, job) >= 10
        await lost.stop()
    return Outcome(times, tuple(jobs), seconds)


@case(
    "20",
    "trainers are restarted one after another while they train",
    shown_by=(
        "tests/end_to_end/test_main_job.py::test_a_trainer_hands_its_work_over_and_what_is_wanted_meanwhile_is_done_by_the_next",
    ),
)
async def rolling_restart(world: World, form: Form) -> Outcome:
    times = form.of(2, 6)
    await asyncio.gather(*(world.services.start("trainer") for _ in range(times)))
    job = await world.submit(Script(steps=50 * times, step_seconds=0.05))
    for number in range(times):
        await world.reaches(job, step=10 + 20 * number)
        leaving = await working_on(world, job)
        began = monotonic()
        await leaving.stop()
        assert monotonic() - began < GRACE
        assert lines_of(leaving, "claim_ended", job, "TrainingInterrupted")
    seconds = await world.recovered([job])
    training = await stage_of(world, job, "training")
    assert (training.attempts, training.failures) == (times + 1, 0)
    assert await trained_from(world, job) >= 10 + 20 * (times - 1)
    return Outcome(times, (job,), seconds)


@case(
    "10",
    "a trainer's disk is full for a while",
    shown_by=(
        "tests/integration/shared/test_full_disks.py::test_a_store_whose_disk_fills_up_in_the_middle_keeps_no_half_file",
        "tests/integration/trainer/test_train.py::test_a_full_disk_ends_the_run_before_anything_is_saved",
        "tests/unit/gateway/test_transitions.py::test_a_passing_failure_asks_again_after_a_backoff",
    ),
)
async def disk_full(world: World, form: Form) -> Outcome:
    jobs, seconds = [], 0.0
    for _ in range(form.of(1, 4)):
        job = await world.submit(Script(steps=10, step_seconds=0.1, bytes=3 * FILE_BYTES))
        jobs.append(job)
        trainer = await working_on(world, job)
        limit_files(trainer, FILE_BYTES)
        await world.says("trainer", "work_failed", job)
        limit_files(trainer, resource.RLIM_INFINITY)
        seconds = await world.recovered([job])
        checkpoint = (await record_of(world, job)).checkpoint
        assert checkpoint is not None
        assert checkpoint.bytes == 3 * FILE_BYTES
    return Outcome(len(jobs), tuple(jobs), seconds)


@case(
    "10",
    "a trainer's disk stays full",
    shown_by=(
        "tests/integration/trainer/test_train.py::test_a_full_disk_ends_the_run_before_anything_is_saved",
        "tests/unit/gateway/test_transitions.py::test_the_third_failure_in_a_row_ends_the_job",
    ),
)
async def disk_stays_full(world: World, form: Form) -> Outcome:
    script = Script(steps=2, bytes=3 * FILE_BYTES)
    jobs = [await world.submit(script, wanted="FAILED") for _ in range(form.of(1, 4))]
    trainer = world.services.first("trainer")
    limit_files(trainer, FILE_BYTES)
    seconds = await world.recovered(jobs)
    for job in jobs:
        record = await record_of(world, job)
        assert "training failed 3 times in a row" in (record.error or "")
        assert record.checkpoint is None
    await trainer.kill()
    return Outcome(len(jobs), tuple(jobs), seconds)


def limit_files(process: ServiceProcess, size: int) -> None:
    """No file of this service and its children may grow above so many bytes."""
    for each in (psutil.Process(process.pid), *process.children):
        with contextlib.suppress(psutil.NoSuchProcess):
            each.rlimit(psutil.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


async def working_on(world: World, job: str) -> ServiceProcess:
    """The trainer that trains this job, once it does."""

    async def found() -> ServiceProcess | None:
        for trainer in world.services.named("trainer"):
            began = len(lines_of(trainer, '"working"', job))
            if began > len(lines_of(trainer, '"claim_ended"', job)):
                return trainer
        return None

    return await world.until(found)
