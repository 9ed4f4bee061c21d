"""Make the report of a training with its samples and images."""

from __future__ import annotations

from pathlib import Path

import msgspec
from msgspec.structs import replace

from shared.html_report.facts import TrainingFacts
from shared.html_report.make import made_or_missing, store_report
from shared.messaging.messages import Artifact, CheckpointFinal, ImagesGenerated
from shared.ports import ObjectStore
from shared.worker.order import Order


async def with_report(
    store: ObjectStore, order: Order, generated: ImagesGenerated, folder: Path
) -> ImagesGenerated:
    """The fact with the stored report, or with a warning that there is none.

    As it is where nothing was trained, or an earlier version's trainer has told nothing of it.
    """
    finished = order.message
    if not isinstance(finished, CheckpointFinal) or not finished.report_facts:
        return generated
    making = _make(store, order, finished, generated, folder)
    report, warnings = await made_or_missing(order.job, making)
    return replace(generated, html_report=report, warnings=(*generated.warnings, *warnings))


async def _make(
    store: ObjectStore,
    order: Order,
    finished: CheckpointFinal,
    generated: ImagesGenerated,
    folder: Path,
) -> Artifact:
    facts = msgspec.json.decode(await store.get(finished.report_facts), type=TrainingFacts)
    grant = order.grant
    return await store_report(
        store,
        facts,
        replace(grant, warnings=(*grant.warnings, *generated.warnings)),
        prefix=f"jobs/{order.job}/generation/{grant.attempt}",
        folder=folder,
        samples=(*grant.drawn, *generated.samples),
        images=generated.images if finished.inference else None,
        keepalive=order.keepalive,
    )
