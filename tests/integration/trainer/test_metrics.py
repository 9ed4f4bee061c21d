"""The curves of a real training, as a client sees them while it runs, is lost and goes on."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from services.trainer import metrics_uploads
from services.trainer import work as trainer_work
from services.trainer.work import TrainerWork
from shared.errors import Passing
from shared.messaging.messages import Artifact, DatasetStaged, ResumePointSaved
from shared.request import Validation
from shared.storage.folders import upload_folder
from shared.worker.order import Order
from tests.support.gateway_world import World, training, world
from tests.support.models import make_random_model
from tests.support.training import make_dataset, train_request
from tests.support.workers import Facts, granted_order

ROOT = "/v2/everydream-v1"
DEADLINE = 120.0


@pytest.fixture
async def here(
    tmp_path: Path, warm_children: None, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[World]:
    """A gateway, and in its store what a training needs."""
    del warm_children
    monkeypatch.setattr(trainer_work, "CHILD", "tests.support.warm.trainer")
    monkeypatch.setattr(metrics_uploads, "FIRST_SECONDS", 0.05)
    monkeypatch.setattr(metrics_uploads, "PIECE_BYTES", 500)
    async with world(tmp_path) as one:
        await upload_folder(one.store, make_dataset(tmp_path / "data"), "dataset")
        await upload_folder(one.store, make_random_model(tmp_path / "model"), "cache/base")
        yield one


@pytest.fixture
async def work(here: World, tmp_path: Path) -> AsyncIterator[TrainerWork]:
    work = TrainerWork(
        here.store, scratch=tmp_path / "scratch", cache=tmp_path / "cache", resume_every=2.0
    )
    yield work
    await work.close()


def ordered(job: str, facts: Facts, epochs: int, attempt: int, point: str | None = None) -> Order:
    validation = Validation(val_split_proportion=0.25)
    staged = DatasetStaged(
        job=job, stage="staging", claim="c", attempt=1, dataset="dataset", base_model="cache/base",
        report={}, train=train_request(max_epochs=epochs, validation=validation),
    )  # fmt: skip
    return granted_order(staged, "training", facts, attempt=attempt, resume_point=point)


class Client:
    """Follows a job's curves, asking for what is new only."""

    def __init__(self, here: World, job: str) -> None:
        self._here = here
        self._path = f"{ROOT}/jobs/{job}/metrics"
        self.points: list[dict[str, Any]] = []

    @property
    def steps(self) -> list[int]:
        return [point["step"] for point in self.points]

    async def whole(self) -> list[dict[str, Any]]:
        answer = await self._here.ask("GET", f"{self._path}?points=5000")
        found: list[dict[str, Any]] = answer.body["points"]
        return found

    async def follow(self, until: int, work: asyncio.Task[Any]) -> None:
        """Until so many points are known, or the work has ended."""
        async with asyncio.timeout(DEADLINE):
            while len(self.points) < until and not work.done():
                await self._ask()
                await asyncio.sleep(0.02)

    async def _ask(self) -> None:
        after = f"?after={self.points[-1]['step']}" if self.points else ""
        answer = (await self._here.ask("GET", f"{self._path}{after}")).body
        last = answer["last_step"] or 0
        self.points = [each for each in self.points if each["step"] <= last] + answer["points"]


def of_metrics(text: bytes) -> list[dict[str, Any]]:
    """The lines of a metrics file, those of one step together, without what is not known."""
    points: dict[int, dict[str, Any]] = {}
    for line in msgspec.json.Decoder(dict[str, Any]).decode_lines(text):
        numbers = {name: number for name, number in line.items() if number is not None}
        points.setdefault(line["step"], {}).update(numbers)
    return [*points.values()]


async def test_curves_grow_without_gaps_and_after_a_loss_they_are_those_of_the_finished_training(
    here: World, work: TrainerWork
) -> None:
    job, _ = await training(here)
    client, facts = Client(here, job), Facts()
    performing = asyncio.create_task(work.perform(ordered(job, facts, 100_000, 1)))
    await client.follow(5, performing)
    grown = await client.whole()
    assert client.points == grown[: len(client.points)]
    assert any("validation_loss" in point for point in grown)
    async with asyncio.timeout(DEADLINE):
        while not resume_points(facts):
            await asyncio.sleep(0.02)
    await client.follow(len(client.points) + 2, performing)
    child = work._standby._child
    assert child is not None

    os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(Passing, match="SIGKILL"):
        await performing
    lost, point = await client.whole(), resume_points(facts)[-1]
    second = ordered(job, Facts(), point.epoch + 2, 2, point.prefix)
    performing = asyncio.create_task(work.perform(second))
    await client.follow(1_000_000, performing)
    final = await performing

    artifact: Artifact = final.records[0]
    finished = of_metrics(await here.store.get(artifact.key))
    assert await client.whole() == finished
    assert finished[-1]["step"] == final.summary["steps"]
    resumed = [each for each in lost if each["step"] <= point.step]
    assert finished[: len(resumed)] == resumed
    assert client.steps == sorted(set(client.steps))
    assert client.points == finished[: len(client.points)]


def resume_points(facts: Facts) -> list[ResumePointSaved]:
    return [each for each in facts.published if isinstance(each, ResumePointSaved)]
