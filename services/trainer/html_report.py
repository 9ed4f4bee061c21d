"""Store what a report says of the training, and the report of a job that draws nothing."""

from __future__ import annotations

from pathlib import Path
from time import time

import msgspec
from msgspec.structs import replace

from services.trainer.order import METRICS, TrainingOrder
from shared.concurrency import in_thread
from shared.html_report.facts import TrainingFacts, settings_of
from shared.html_report.make import made_or_missing, store_report
from shared.messaging.messages import Artifact, CheckpointFinal, DatasetStaged
from shared.ports import ObjectStore
from shared.storage.curve import Curve, Point
from shared.worker.order import Order

FACTS = "report.json"
POINTS = 600
"""Of a curve: more than a picture of it shows."""
CHUNK = 1 << 20
"""Bytes of metrics that are read at once."""


async def with_report(
    store: ObjectStore,
    order: Order,
    training_order: TrainingOrder,
    final: CheckpointFinal,
    *,
    gpu: str,
) -> CheckpointFinal:
    """The fact with the stored report, or with a warning that there is none."""
    making = _make(store, order, Path(training_order.out), final, gpu)
    report, warnings = await made_or_missing(order.job, making)
    if report is None:
        told = [*final.summary["warnings"], *warnings]
        return replace(final, summary={**final.summary, "warnings": told})
    return replace(final, html_report=report, report_facts=_facts_key(order))


async def _make(
    store: ObjectStore, order: Order, out: Path, final: CheckpointFinal, gpu: str
) -> Artifact:
    staged = order.message
    assert isinstance(staged, DatasetStaged)  # noqa: S101 - a trainer gets no other order
    facts = TrainingFacts(
        job=order.job,
        ended_at=time(),
        gpu=gpu,
        settings=settings_of(staged.train),
        dataset=staged.report,
        summary=final.summary,
        checkpoint=final.checkpoint,
        checkpoints=final.checkpoints,
        merged=tuple(each for each in final.records if each.kind == "checkpoint"),
        points=await in_thread(read_points, out / METRICS),
    )
    await store.put(_facts_key(order), msgspec.json.encode(facts))
    return await store_report(
        store, facts, order.grant, prefix=_records(order), folder=out, keepalive=order.keepalive
    )


def _records(order: Order) -> str:
    return f"jobs/{order.job}/training/{order.grant.attempt}/records"


def _facts_key(order: Order) -> str:
    return f"{_records(order)}/{FACTS}"


def read_points(metrics: Path) -> list[Point]:
    """The points of the curves; holds a part of the file at a time."""
    curve = Curve(POINTS)
    with metrics.open("rb") as file:
        while lines := file.readlines(CHUNK):
            curve.add(b"".join(lines), float("inf"))
    return curve.points()
