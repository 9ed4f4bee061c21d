"""Tell heartbeats that change nothing by the version of their job's row, without its record."""

from __future__ import annotations

from typing import NamedTuple

from services.gateway.jobs.repository import JobVersion
from shared.messaging.messages import AnyMessage, Progressed, Stage

KEPT = 20_000
"""Claims; beyond that all are forgotten, and learned anew from the next heartbeat of each."""


class _Idle(NamedTuple):
    job: str
    stage: Stage
    reply_queue: str | None
    version: int


class IdleHeartbeats:
    """Remembers what was recorded of each live claim's last heartbeat.

    What a heartbeat does follows from the job's record, its claim and its reply queue alone. So
    if it did nothing at this version of the row, the next like it does nothing either, until
    anything changes the job.
    """

    def __init__(self) -> None:
        self._runs: dict[str, tuple[_Idle, int]] = {}
        """By claim: the heartbeat, and the job's run."""

    def learn(self, fact: Progressed, reply_queue: str | None, at: JobVersion) -> None:
        """Note that a heartbeat of a live claim changed nothing, and caused no message."""
        if len(self._runs) >= KEPT:
            self._runs.clear()
        idle = _Idle(fact.job, fact.stage, reply_queue, at.version)
        self._runs[fact.claim] = idle, at.job.run

    def knows(self, fact: AnyMessage) -> bool:
        """Whether it may be idle: it is worth to look at the version."""
        if not isinstance(fact, Progressed) or (known := self._runs.get(fact.claim)) is None:
            return False
        return known[0].job == fact.job

    def run_of(self, fact: AnyMessage, reply_queue: str | None, version: int) -> int | None:
        """The run of its job; None: it is not known to be idle at this version."""
        if not isinstance(fact, Progressed) or (known := self._runs.get(fact.claim)) is None:
            return None
        idle, run = known
        return run if idle == (fact.job, fact.stage, reply_queue, version) else None
