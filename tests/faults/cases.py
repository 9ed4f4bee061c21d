"""The registry of faults: each an async function of a world, with a number and a sentence.

@case("2", "all connections are closed in the middle of a job")
async def connections_closed(world: World, form: Form) -> Outcome:
    ...
"""

from __future__ import annotations

import importlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from typing import Literal, TypeVar

from tests.faults.world import World

T = TypeVar("T")
MODULES = (
    "cases_broker",
    "cases_workers",
    "cases_stores",
    "cases_gateway",
    "cases_storms",
    "cases_data",
    "cases_keda",
)
DatabaseKind = Literal["sqlite", "postgresql"]


class Form(Enum):
    """Short: once, for every run of the tests. Long: again and again, for the table."""

    SHORT = "short"
    LONG = "long"

    def of(self, short: T, long: T) -> T:
        return short if self is Form.SHORT else long


@dataclass(frozen=True)
class Outcome:
    """What a case did, once all its jobs have ended as they should."""

    injected: int
    """How many times the fault was there."""
    jobs: tuple[str, ...]
    seconds: float
    """From the end of a fault to the end of the jobs that it met; of several faults the slowest."""


@dataclass(frozen=True)
class Case:
    number: str
    """Of the list of faults that docs/reliability.md explains; ``+`` for one of our own."""
    name: str
    database: DatabaseKind | None
    """What its world must record in; None: either, in the long form SQLite."""
    run: Callable[[World, Form], Awaitable[Outcome]]
    shown_by: tuple[str, ...]
    """Quicker tests that say in every run what its short form would; none: only it says so."""


CASES: dict[str, Case] = {}
"""By name."""


def case(
    number: str,
    name: str,
    *,
    database: DatabaseKind | None = None,
    shown_by: tuple[str, ...] = (),
) -> Callable[[Callable[[World, Form], Awaitable[Outcome]]], Callable[..., Awaitable[Outcome]]]:
    """Register a case under its sentence."""

    def register(
        run: Callable[[World, Form], Awaitable[Outcome]],
    ) -> Callable[..., Awaitable[Outcome]]:
        if name in CASES:
            raise ValueError(f"two cases are called {name!r}")
        CASES[name] = Case(number, name, database, run, shown_by)
        return run

    return register


def all_cases() -> tuple[Case, ...]:
    """Every case of every module, those that need PostgreSQL at the end."""
    for module in MODULES:
        if importlib.util.find_spec(f"tests.faults.{module}"):
            importlib.import_module(f"tests.faults.{module}")
    return tuple(sorted(CASES.values(), key=lambda each: each.database == "postgresql"))


async def again_and_again(
    world: World, times: int, once: Callable[[], Awaitable[list[str]]]
) -> Outcome:
    """A fault so many times, each time with jobs of its own, whose ids ``once`` returns."""
    jobs, slowest = list[str](), 0.0
    for _ in range(times):
        met = await once()
        slowest = max(slowest, await world.recovered(met))
        jobs += met
    return Outcome(times, tuple(jobs), slowest)
