"""Hundreds of jobs under random faults from a seed, and the ledger afterwards.

``python -m tests.faults.soak --seed 7 --minutes 4``: two of every service, first with scripted
children, then with the real ones and the tiny model. Writes its totals into docs/reliability.md,
and ends with status 1 and a sentence for everything that is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from random import Random, SystemRandom
from time import monotonic
from typing import Any

from everydream import drawings
from tests.end_to_end.story import dataset
from tests.faults.chaos import Chaos
from tests.faults.evidence import Witness, gather, witnessed
from tests.faults.facts import Evidence
from tests.faults.ledger import Totals, check, totals
from tests.faults.script import How, Mishap, Script
from tests.faults.world import SERVICES, USUAL_HEARTBEAT, World, faulty_world, heartbeat
from tests.support.measured_page import RELIABILITY, table, write
from tests.support.servers.postgres import PostgreSQL
from tests.support.servers.rabbitmq import RabbitMQ
from tests.support.servers.s3 import S3Server

ENDS_SECONDS = 600.0
"""In which every job must have ended once there is peace."""
LOOK_SECONDS = 1.0
TELL_SECONDS = 10.0
REAL = ("everydream",)
HOW: dict[How, int] = {"exit": 4, "kill": 4, "passing": 4, "refused": 2, "hang": 1}
"""What befalls a child, and how often beside the others."""
GPU = ("trainer", "inferencer")

Tell = Callable[[str], object]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is done; everything random in it comes from the seed."""

    seed: int
    minutes: float
    """Of faults while the scripted jobs run, and of half as many while the tiny ones do."""
    scripted: int
    tiny: int = 0
    each: int = 1
    """How many of every service run."""
    heartbeat: float = field(default_factory=heartbeat)


@dataclass
class Soak:
    """One plan, carried out on one world."""

    plan: Plan
    world: World
    witness: Witness
    chaos: Chaos
    random: Random
    tell: Tell

    async def run(self) -> None:
        """All jobs submitted and ended; every fault undone."""
        plan = self.plan
        await self._phase("scripted", plan.scripted, self._scripted, plan.minutes * 60, (0.2, 1.5))
        if plan.tiny:
            await self._with_real_children()
            await self._phase("tiny", plan.tiny, self._tiny, plan.minutes * 30, (1.0, 5.0))

    async def _phase(
        self, name: str, number: int, submit: Callable[[], Awaitable[str]], seconds: float,
        pauses: tuple[float, float],
    ) -> None:  # fmt: skip
        """Jobs come in the first two thirds of the time, faults all the time, and then peace."""
        self.tell(f"{name}: {number} jobs under {seconds:g} s of faults")
        jobs: set[str] = set()
        peace = asyncio.Event()
        raging = asyncio.create_task(self.chaos.rage(pauses, peace))
        submitting = asyncio.create_task(
            self._submit(jobs, number, submit, seconds * 2 / 3 / number)
        )
        watching = asyncio.create_task(self._watch(jobs, number))
        try:
            await _first_to_fail(seconds, raging, submitting, watching)
        finally:
            peace.set()
            await raging
        self.tell("peace")
        self.world.web.forget_answers()
        await self.world.whole()
        with suppress(TimeoutError):  # then the ledger says which have not ended
            async with asyncio.timeout(ENDS_SECONDS):
                await asyncio.gather(submitting, watching)
                await self.world.recovered(self.world.jobs, ENDS_SECONDS)  # also what was retried

    async def _submit(
        self, jobs: set[str], number: int, submit: Callable[[], Awaitable[str]], pause: float
    ) -> None:
        for _ in range(number):
            jobs.add(await submit())
            await asyncio.sleep(self.random.uniform(0, 2 * pause))

    async def _watch(self, jobs: set[str], number: int) -> None:
        """Until all have ended, telling how far it is."""
        began, told = monotonic(), 0.0
        while len(ended := self._ended_of(jobs)) < number:
            if monotonic() - told > TELL_SECONDS:
                told = monotonic()
                self.tell(progress(len(ended), number, self.chaos.injected, told - began))
            await asyncio.sleep(LOOK_SECONDS)

    def _ended_of(self, jobs: set[str]) -> set[str]:
        return {end.job for end in self.witness.ends} & jobs

    # -- jobs

    async def _scripted(self) -> str:
        return await self.world.submit(
            self._script(), webhook=self._mostly(), s3=self._mostly(), wanted=None
        )

    def _script(self) -> Script:
        return Script(
            steps=self.random.randint(2, 20),
            step_seconds=self.random.choice([0.01, 0.05]),
            resume_every=self.random.choice([0, 3]),
            checkpoint_every=self.random.choice([0, 0, 5]),
            mishaps=tuple(self._mishap() for _ in range(self.random.choice([0, 0, 0, 1]))),
        )

    def _mishap(self) -> Mishap:
        how = self.random.choices([*HOW], [*HOW.values()])[0]
        return Mishap(
            at=1,
            how=how,
            child=self.random.choice(["trainer", "inferencer"]),
            # A child that hangs holds its place for sixty beats.
            attempts=1 if how == "hang" else self.random.choice([1, 1, 2, 9]),
        )

    async def _tiny(self) -> str:
        url = self.world.web.serve("/tiny.zip", dataset())
        train = {"data_url": url, "resolution": 256, "batch_size": 4, "max_epochs": 2}
        drawn = {"width": 128, "height": 128, "num_inference_steps": 2, "seed": 7}
        prompt = drawings.CONCEPTS[0].captions[0]
        asked: dict[str, Any] = {
            "train": {**train, "lr": 1e-4, "useadam8bit": False},
            "inference": {"prompt": prompt, **drawn},
        }
        return await self.world.submit(request={"input": asked}, wanted=None)

    def _mostly(self) -> bool:
        return self.random.random() < 0.9

    async def _with_real_children(self) -> None:
        """The real workers in the place of the scripted ones."""
        self.tell("the real trainers and inferencers take over")
        self.world.services.program = REAL
        for name in GPU:
            await asyncio.gather(*(each.stop() for each in self.world.services.named(name)))
        await self.world.whole()


@asynccontextmanager
async def soaked(
    plan: Plan, broker: RabbitMQ, s3: S3Server, database_url: str | None, tell: Tell
) -> AsyncIterator[Soak]:
    """A world after all that was planned for it."""
    names = [name for name in SERVICES for _ in range(plan.each)]
    vhost = broker.fresh_vhost()
    async with (
        witnessed(broker, vhost) as witness,
        faulty_world(
            broker,
            s3,
            services=names,
            database_url=database_url,
            vhost=vhost,
            HEARTBEAT=str(plan.heartbeat),
        ) as world,
    ):
        chaos = Chaos(world, witness, Random(plan.seed), plan.heartbeat)
        soak = Soak(plan, world, witness, chaos, Random(plan.seed + 1), tell)
        await soak.run()
        yield soak


async def _first_to_fail(seconds: float, *tasks: asyncio.Task[None]) -> None:
    """Wait for so long; raises at once what goes wrong in one of them."""
    done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
    for task in done:
        task.result()


# --- What is told -----------------------------------------------------------------------------


def progress(ended: int, number: int, injected: Counter[str], seconds: float) -> str:
    left = f"about {seconds / ended * (number - ended):.0f} s to go" if ended else "none ended yet"
    return f"{seconds:5.0f} s  {ended} of {number} jobs ended, {injected.total()} faults, {left}"


def page(plan: Plan, command: str, sums: Totals, injected: Counter[str], seconds: float) -> str:
    """The soak's part of docs/reliability.md."""
    rows = [(name.replace("_", " "), f"{value:,}") for name, value in asdict(sums).items()]
    faults = [(name, str(times)) for name, times in sorted(injected.items())]
    begun = (
        f"`{command}` (seed {plan.seed}), {seconds / 60:.1f} minutes, two of every service,"
        f" a heartbeat of {plan.heartbeat:g} s."
    )
    return "\n\n".join((begun, table(("what", "number"), rows), table(("fault", "times"), faults)))


# --- The command ------------------------------------------------------------------------------


def plan_of(arguments: list[str] | None = None) -> Plan:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument("--seed", type=int, default=None, help="of all that is random")
    parser.add_argument("--minutes", type=float, default=4.0, help="of faults, scripted")
    chosen = parser.parse_args(arguments)
    seed = SystemRandom().randrange(1_000_000) if chosen.seed is None else chosen.seed
    return Plan(seed=seed, minutes=chosen.minutes, scripted=200, tiny=20, each=2)


async def carry_out(plan: Plan, tell: Tell) -> tuple[Evidence, Counter[str]]:
    """Servers of its own, the soak, and what is found afterwards."""
    with RabbitMQ() as broker, S3Server() as s3, PostgreSQL() as postgres:
        async with soaked(plan, broker, s3, postgres.url(), tell) as soak:
            tell("gathering the evidence")
            return await gather(soak.world, soak.witness), soak.chaos.injected


def main() -> int:
    plan = plan_of()
    command = f"python -m tests.faults.soak --seed {plan.seed} --minutes {plan.minutes:g}"
    if plan.heartbeat != USUAL_HEARTBEAT:
        command = f"EVERYDREAM_HEARTBEAT={plan.heartbeat:g} {command}"
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    logging.getLogger("aiormq").addHandler(logging.NullHandler())  # the witness tries again
    tell: Tell = lambda words: print(words, flush=True)  # noqa: E731, T201
    tell(command)
    began = monotonic()
    evidence, injected = asyncio.run(carry_out(plan, tell))
    sums, wrong = totals(evidence), check(evidence)
    text = page(plan, command, sums, injected, monotonic() - began)
    tell(text)
    write("soak", text, RELIABILITY)
    for sentence in wrong:
        tell(f"WRONG  {sentence}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
