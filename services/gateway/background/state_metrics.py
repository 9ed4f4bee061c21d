"""Set the gauges that say how things stand, before they are shown."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from math import nan

import structlog

from services.gateway import metrics
from services.gateway.background.supervisor import Supervisor
from services.gateway.ports import LINES
from services.gateway.system_ports import LoadStore, SystemLoad
from services.gateway.turns.workers import Workers
from shared.errors import Unavailable
from shared.messaging.messages import STAGES, Stage

DATABASE_SECONDS = 5.0
"""How long the database may take before it counts as away; a scrape commonly waits for 10."""
PRIORITIES = {False: "normal", True: "low"}
OF_DATABASE = (
    metrics.STAGE_JOBS, metrics.STAGE_OPEN_JOBS, metrics.STAGE_PRIORITY_JOBS,
    metrics.STAGE_DELAYED_JOBS, metrics.STAGE_OLDEST, metrics.LINE_JOBS, metrics.LINE_OLDEST,
    metrics.OUTBOX, metrics.OUTBOX_OLDEST,
)  # fmt: skip

log = structlog.get_logger()


class StateMetrics:
    """Reads database and broker, whether or not they answer."""

    def __init__(
        self,
        store: LoadStore,
        workers: Workers,
        supervisor: Supervisor,
        clock: Callable[[], float],
    ) -> None:
        self._workers = workers
        self._supervisor = supervisor
        self._clock = clock
        self._store = store

    async def refresh(self) -> None:
        load, idle = await asyncio.gather(self._load(), self._idle())
        _show_load(load, self._clock())
        metrics.WORKERS_IDLE.clear()
        for stage, number in idle.items():
            metrics.WORKERS_IDLE.labels(stage).set(number)
        metrics.BROKER_UP.set(await self._supervisor.broker_check() is None)
        lag = self._supervisor.lag()
        metrics.RECORDING.set(lag is not None)
        metrics.RECORDER_LAG.set(nan if lag is None else lag)
        metrics.CLAIM_SILENCE.set(nan if lag is None else self._supervisor.longest_silence())

    async def _load(self) -> SystemLoad | None:
        try:
            async with asyncio.timeout(DATABASE_SECONDS):
                return await self._store.load(self._clock())
        except (Unavailable, TimeoutError):
            return None

    async def _idle(self) -> dict[Stage, float]:
        if await self._supervisor.broker_check() is not None:
            return {}
        counted = await asyncio.gather(*(self._workers.idle(stage) for stage in STAGES))
        return {
            stage: each.number if each.is_known else nan
            for stage, each in zip(STAGES, counted, strict=True)
        }


def _show_load(load: SystemLoad | None, now: float) -> None:
    """What is not known is left out, rather than shown as it was."""
    metrics.DATABASE_UP.set(load is not None)
    for gauge in OF_DATABASE:
        gauge.clear()
    metrics.DEAD_LETTERS_KEPT.set(nan if load is None else load.dead_letters)
    if load is not None:
        _show_stages(load, now)
        _show_lines(load, now)
        _show_outbox(load, now)


def _show_stages(load: SystemLoad, now: float) -> None:
    for stage in STAGES:
        of_stage = [each for each in load.stages if each.stage == stage]
        for low, priority in PRIORITIES.items():
            alike = [each for each in of_stage if each.low == low]
            waiting = sum(each.waiting for each in alike)
            claimed = sum(each.claimed for each in alike)
            metrics.STAGE_PRIORITY_JOBS.labels(stage, "waiting", priority).set(waiting)
            metrics.STAGE_PRIORITY_JOBS.labels(stage, "claimed", priority).set(claimed)
        waiting = sum(each.waiting for each in of_stage)
        claimed = sum(each.claimed for each in of_stage)
        metrics.STAGE_JOBS.labels(stage, "waiting").set(waiting)
        metrics.STAGE_JOBS.labels(stage, "claimed").set(claimed)
        metrics.STAGE_OPEN_JOBS.labels(stage).set(waiting + claimed)
        metrics.STAGE_DELAYED_JOBS.labels(stage).set(sum(each.delayed for each in of_stage))
        metrics.STAGE_OLDEST.labels(stage).set(_age([each.oldest for each in of_stage], now))


def _show_lines(load: SystemLoad, now: float) -> None:
    for line in LINES:
        for low, priority in PRIORITIES.items():
            alike = [each for each in load.lines if (each.line, each.low) == (line, low)]
            metrics.LINE_JOBS.labels(line, priority).set(sum(each.waiting for each in alike))
            age = _age([each.oldest for each in alike], now)
            metrics.LINE_OLDEST.labels(line, priority).set(age)


def _show_outbox(load: SystemLoad, now: float) -> None:
    for webhooks, kind in ((False, "message"), (True, "webhook")):
        alike = [each for each in load.outbox if each.webhooks == webhooks]
        metrics.OUTBOX.labels(kind).set(sum(each.number for each in alike))
        metrics.OUTBOX_OLDEST.labels(kind).set(_age([each.oldest for each in alike], now))


def _age(moments: list[float | None], now: float) -> float:
    return max((now - moment for moment in moments if moment is not None), default=0.0)
