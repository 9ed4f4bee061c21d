"""What the cage costs a job's staging: ``python -m bench staging``.

Stages the demo's data set with the tiny model, from its address until all is in the store: in turns
by the child that ships, with its limits, and by a thread of the same process without any. A child
is ready before each run, as it is for a job that comes alone. The row is written into
docs/performance.md.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

import msgspec

from bench import rows
from everydream.demo import RECIPE, zipped_dataset
from services.fetcher.models.stage import ModelStager
from services.fetcher.parser import Parser
from services.fetcher.work import FetcherWork
from shared.messaging.messages import StagingDue
from shared.request import Train
from shared.telemetry import logs
from shared.worker.order import Order
from tests.support.in_process_parser import InProcessParser
from tests.support.measured_page import today
from tests.support.servers.process import HOST
from tests.support.servers.web import running_web
from tests.support.workers import Facts, folder_store, granted_order

ALLOWED = frozenset({HOST})
WARM_UP, PAIRS = 3, 40
"""Runs of each; the first ones store the model, and fill caches."""
HEAD = ("data set", "without the cage", "in the cage", "times as long", "measured on")
NAME = "the demo's"


def main() -> None:
    """Measure, and write the row."""
    logs.configure("bench", logging.WARNING)
    with TemporaryDirectory(prefix="bench-staging-") as folder:
        free, caged = asyncio.run(measure(Path(folder)))
    ratio = median(one / other for one, other in zip(caged, free, strict=True))
    took = (f"{1000 * median(each):.0f} ms" for each in (free, caged))
    rows.put("staging", HEAD, (NAME, *took, f"**{ratio:.2f}**", today()), [NAME])


async def measure(folder: Path) -> tuple[list[float], list[float]]:
    """Seconds of each run without the cage and in it, pair by pair."""
    archive = await asyncio.to_thread(zipped_dataset, folder / "pictures")
    free, caged = InProcessParser(), Parser(folder / "parsing")
    seconds: tuple[list[float], list[float]] = ([], [])
    async with running_web() as web:
        url = web.serve("/dataset.zip", archive)
        staging = Staging(folder, url)
        try:
            for number in range(WARM_UP + PAIRS):
                pair = [await staging.seconds(each) for each in (free, caged)]
                if number >= WARM_UP:
                    for kept, took in zip(seconds, pair, strict=True):
                        kept.append(took)
        finally:
            await caged.close()
    return seconds


class Staging:
    """Jobs that train on the same data set, one after another."""

    def __init__(self, folder: Path, url: str) -> None:
        """The store and what is worked on are in the folder; ``url`` is the data set's."""
        self._folder = folder
        self._store = folder_store(folder / "store")
        self._models = ModelStager(
            self._store, configured="tiny", home=folder / "home", allowed=ALLOWED
        )
        self._train = msgspec.convert({"data_url": url, **RECIPE}, Train)
        self._jobs = 0

    async def seconds(self, parser: Parser) -> float:
        """Stage the next job; how long that took."""
        work = FetcherWork(
            self._store, self._models, parser, scratch=self._folder / "scratch", allowed=ALLOWED
        )
        await work.prepare()
        order = self._next_order()
        began = perf_counter()
        await work.perform(order)
        return perf_counter() - began

    def _next_order(self) -> Order:
        self._jobs += 1
        due = StagingDue(job=f"job-{self._jobs}", run=1, train=self._train)
        return granted_order(due, "staging", Facts())


if __name__ == "__main__":
    main()
