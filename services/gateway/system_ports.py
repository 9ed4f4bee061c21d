"""What operators look at, of all jobs, as protocols."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from services.gateway.ports import Line, OpenStage, Outgoing, StoredJob
from shared.messaging.messages import Stage
from shared.ports import DeadLetter


class Work(NamedTuple):
    """A stage that is claimed, and its job."""

    stage: OpenStage
    job: StoredJob


WorkPlace = tuple[float, str, Stage]
"""``due_at``, job and stage of the last one of a page."""


class StageLoad(NamedTuple):
    """How much of a stage there is to do, of all released jobs."""

    stage: Stage
    claimed: int
    waiting: int
    """Due by now, and not claimed."""
    delayed: int
    """To be tried again later."""
    oldest: float | None
    """When the first that waits was due; seconds since the epoch. None: none waits."""


class LineLoad(NamedTuple):
    """How many jobs wait for their turn."""

    line: Line
    waiting: int
    oldest: float
    """When the first of them was created; seconds since the epoch."""


class StageClass(NamedTuple):
    """:class:`StageLoad`, of the jobs of one priority."""

    stage: Stage
    low: bool
    claimed: int
    waiting: int
    delayed: int
    oldest: float | None


class LineClass(NamedTuple):
    """:class:`LineLoad`, of the jobs of one priority."""

    line: Line
    low: bool
    waiting: int
    oldest: float


class OutboxLoad(NamedTuple):
    """What is to be published: webhooks, or all else."""

    webhooks: bool
    number: int
    """Those due later included."""
    oldest: float | None
    """When the first that is due was due; seconds since the epoch. None: none is."""


class SystemLoad(NamedTuple):
    """How much there is to do, of all owners; each with the classes in which there is any."""

    stages: Sequence[StageClass]
    lines: Sequence[LineClass]
    outbox: Sequence[OutboxLoad]
    dead_letters: int


class StoredBytes(NamedTuple):
    """What the record knows to be kept, by kind."""

    uploads: int
    datasets: int
    """Of checks, with the pages that tell of their pictures."""
    models: int
    """That requests named and that are still needed."""
    database: int
    """The database itself."""


class SystemStore(Protocol):
    """What all jobs together come to.

    All calls raise ``Unavailable`` when the database does not answer.
    """

    async def work(self, after: WorkPlace | None, limit: int) -> Sequence[Work]:
        """What is claimed, the longest due first."""

    async def stages(self, now: float) -> Sequence[StageLoad]:
        """Of the stages that any job waits for."""

    async def lines(self) -> Sequence[LineLoad]:
        """Of the lines that any job waits in."""

    async def given_up(self, before: tuple[float, str] | None, limit: int) -> Sequence[StoredJob]:
        """Jobs with webhooks that are not tried again, newest first.

        ``before`` is (webhook_failed_at, id) of the last one that is known already.
        """

    async def stored_bytes(self) -> StoredBytes: ...


class LoadStore(Protocol):
    """What there is to do."""

    async def load(self, now: float) -> SystemLoad:
        """Counted by a few statements over rows of open stages, and indexes.

        Raises:
            Unavailable: the database does not answer.
        """


class StoredDeadLetter(NamedTuple):
    """A dead letter that was taken from the broker."""

    id: str
    at: float
    """When it was dead-lettered; seconds since the epoch."""
    letter: DeadLetter


class DeadLetterStore(Protocol):
    """Dead letters, which are here and no longer on the broker.

    All calls raise ``Unavailable`` when the database does not answer.
    """

    async def add(self, letter: StoredDeadLetter) -> None:
        """Keep one; nothing if its id is known."""

    async def find(self, letter_id: str) -> StoredDeadLetter | None: ...

    async def newest(
        self, before: tuple[float, str] | None, limit: int
    ) -> Sequence[StoredDeadLetter]:
        """Newest first; ``before`` is (at, id) of the last one that is known already."""

    async def requeue(self, letter_id: str, message: Outgoing) -> bool:
        """Delete it and write its message to the outbox, in one commit; False: it is gone."""

    async def delete(self, letter_id: str) -> bool:
        """False: it is gone."""

    async def trim(self, before: float, most: int) -> None:
        """Delete those from before this moment, and all but the ``most`` newest."""
