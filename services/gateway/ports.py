"""The stores that the gateway needs, as protocols."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

from msgspec import Struct

from shared.messaging.messages import Stage

Status = Literal["IN_QUEUE", "IN_PROGRESS", "COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"]
END_STATUSES: tuple[Status, ...] = ("COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT")
Line = Literal["train", "draw", "check"]
LINES: tuple[Line, ...] = ("train", "draw", "check")


class StoredJob(Struct, frozen=True, kw_only=True):
    """A job's row: a column for each field that is queried, the whole record as JSON."""

    id: str
    owner: str
    status: str
    version: int
    """Grows by one with every write, for compare-and-set."""
    run: int = 1
    created_at: float
    started_at: float | None = None
    ended_at: float | None
    overdue_at: float | None = None
    """When its first time limit passes; seconds since the epoch. None: it has ended."""
    line: Line | None = None
    """Jobs of a line wait for the same workers; None: an earlier version wrote it."""
    low: bool = False
    """Its turn comes only while no other of its line waits."""
    released_at: float | None = 0.0
    """When its turn came, seconds since the epoch; None: it waits for it."""
    staging: bool = False
    """Whether its staging is open."""
    record: bytes
    request_bytes: int = 0
    """Size of the request, as compact JSON; in :meth:`JobStore.replace` what is added to it."""
    kept_until: float | None = None
    """When files of it are to be deleted though it stays, seconds since the epoch: the dataset of a
    check, which is kept for others to train on; or what was deleted by request."""
    kept_bytes: int = 0
    """Of this dataset."""
    model: str | None = None
    """Store prefix of the model that the job still needs."""
    model_bytes: int = 0
    """Of this model, as far as it is counted for the owner."""
    webhook_failed_at: float | None = None
    """When the last of its webhooks failed that are not tried again, seconds since the epoch."""


class JobUsage(NamedTuple):
    """What an owner's jobs use."""

    live: int
    """Jobs that have not ended."""
    kept: int
    request_bytes: int
    """These two are of all jobs, ended ones included."""


class OpenStage(NamedTuple):
    """A stage that a live job waits for: all that supervision reads of it."""

    job: str
    stage: Stage
    claim: str | None
    """The live claim's id; None: it waits for a worker."""
    due_at: float
    """When it was last queued, or will be; seconds since the epoch."""


class StoredProgress(NamedTuple):
    """The newest numbers of a stage, beside the job's row."""

    job: str
    stage: Stage
    run: int
    """Of the job; an earlier run's numbers are not shown."""
    numbers: bytes
    """JSON."""
    sequence: int = 0
    """How often they have changed; the store counts."""


class RemovedJob(NamedTuple):
    """A job that its owner removed."""

    id: str
    at: float
    """Seconds since the epoch, by the gateway's clock."""


class StoredEvent(Struct, frozen=True, kw_only=True):
    """Something that happened to a job, written in the same commit as the change."""

    job: str
    version: int
    """Of the job's row after the change."""
    number: int
    """From 0, among the events of one version."""
    at: float
    """Seconds since the epoch, by the gateway's clock."""
    type: str
    data: bytes
    """JSON, with store keys in place of links."""


DELETED = "deleted"
"""The type of the event that is left of a removed job."""


class EventPlace(NamedTuple):
    """Where an event stands among all events of its owner."""

    at: float
    job: str
    version: int
    number: int


class Outgoing(Struct, frozen=True, kw_only=True):
    """A message to publish when it is due, written in the same commit as its cause."""

    id: str
    """Deterministic, so that writing a message twice keeps one."""
    message: bytes
    """The encoded body."""
    queue: str | None = None
    """Sent by the default exchange; None: published on the topic exchange under its type."""
    mandatory: bool = True
    due_at: float = 0.0
    """Seconds since the epoch, by the gateway's clock."""
    owner: str | None = None
    """Whose webhook it is; None: it is none."""
    traceparent: str | None = None
    """The W3C trace context of its cause; None: it belongs to no trace."""
    tracestate: str = ""

    @property
    def job(self) -> str:
        """The id of its job, which its own id begins with."""
        return self.id.partition("/")[0]


class Replacement(NamedTuple):
    """What :meth:`JobStore.replace` writes."""

    job: StoredJob
    outgoing: Sequence[Outgoing] = ()
    happened: Sequence[StoredEvent] = ()
    stages: Sequence[OpenStage] | None = None


class Due(NamedTuple):
    """Whether there are any of these."""

    messages: bool
    webhooks: bool


class JobStore(Protocol):
    """Jobs, their events, and the outbox; only gateways write. All calls raise Unavailable."""

    async def migrate(self) -> None:
        """Upgrade the schema; safe when several processes do it at once."""

    async def insert(
        self,
        job: StoredJob,
        outgoing: Sequence[Outgoing],
        happened: Sequence[StoredEvent] = (),
        stages: Sequence[OpenStage] = (),
    ) -> bool:
        """Add a job and all this in one commit; False: its id exists, or was :meth:`removed`."""

    async def get(self, job_id: str) -> StoredJob | None: ...
    async def get_many(self, job_ids: Sequence[str]) -> Sequence[StoredJob]: ...

    async def versions(self, job_ids: Sequence[str]) -> Mapping[str, int]:
        """Of those of these that there are; no record is read."""

    async def replace(
        self,
        job: StoredJob,
        outgoing: Sequence[Outgoing],
        happened: Sequence[StoredEvent] = (),
        stages: Sequence[OpenStage] | None = None,
        *,
        expected_version: int,
    ) -> bool:
        """Compare-and-set, with the messages, events and open stages, in one commit.

        ``stages`` takes the place of the job's former open stages; None: they stay. False when
        another writer was faster. ``job.version`` must be ``expected_version + 1``. Events are
        written as late as the job's last one if their ``at`` is earlier.
        """

    async def replace_many(self, replacements: Sequence[Replacement]) -> Collection[str]:
        """:meth:`replace` of different jobs in one commit, or of none; ids of those replaced."""

    async def claims(self) -> Sequence[OpenStage]:
        """Every stage that is claimed: as many as workers are busy."""

    async def waiting(self, now: float, limit: int = 100) -> Sequence[OpenStage]:
        """Of each stage the first ``limit`` that were due by now and that nobody has claimed."""

    def overdue(self, now: float) -> AsyncIterator[str]:
        """Ids of live jobs of which a time limit has passed, the longest first."""

    async def write_progress(self, rows: Sequence[StoredProgress]) -> None:
        """Set the newest numbers of many stages in one commit; of jobs that are gone, none."""

    async def get_live(self, job_id: str) -> tuple[StoredJob, Sequence[StoredProgress]] | None:
        """A job and, unless it has ended, the newest numbers of its stages, of any run."""

    async def progress_of(self, job_ids: Sequence[str]) -> Sequence[StoredProgress]:
        """The newest numbers of these jobs, of any stage and run; few jobs."""

    async def ended_before(
        self, moment: float, limit: int = 100, *, after: float = 0.0, now: float | None = None
    ) -> Sequence[str]:
        """Ids of jobs that ended between these, exclusive, in seconds; the oldest end first.

        With ``now`` without those whose datasets are still kept then.
        """

    async def delete(self, job_id: str) -> None:
        """Delete a job, all that is kept beside it, and the note that it was removed."""

    async def remove(self, job_id: str, at: float) -> bool:
        """Delete a job and its messages due after ``at``, and note it; False: there is none.

        Of its events one is left, that it was deleted, until :meth:`delete`.
        """

    async def removed(self) -> Sequence[RemovedJob]:
        """The jobs that were removed and not yet deleted, oldest removal first."""

    async def counts(self, owner: str, limit: int | None = None) -> Mapping[str, int]:
        """How many jobs an owner has, by status; a status without jobs is left out.

        Of each status at most ``limit`` are counted.
        """

    async def usage(self, owner: str) -> JobUsage:
        """What an owner's jobs use; removed ones use nothing."""

    async def kept_bytes(self, owner: str) -> int:
        """Of the datasets of an owner's checks, and of what tells of their pictures."""

    async def model_bytes(self, owner: str, *, without: str = "") -> int:
        """Of the models that an owner's jobs still need, each counted once; one may be left out."""

    async def needs_model(self, prefix: str) -> bool:
        """Whether any job still needs the model at this prefix of the store."""

    async def kept_before(self, moment: float, limit: int = 100) -> Sequence[str]:
        """Ids of jobs of which files were to be deleted before that, in seconds."""

    async def count_retried(self, owner: str) -> int:
        """How often an owner's jobs were run again."""

    async def queued(self, owner: str) -> Sequence[str]:
        """Ids of an owner's jobs that are IN_QUEUE, newest first."""

    async def execution_seconds(self, line: Line, limit: int) -> Sequence[float]:
        """From start to end, in seconds, of the newest jobs of a line that have completed."""

    async def newest(
        self,
        *,
        owner: str | None = None,
        statuses: Sequence[str] = (),
        lines: Sequence[Line] = (),
        before: tuple[float, str] | None = None,
        id_begins: str = "",
        limit: int = 100,
    ) -> Sequence[StoredJob]:
        """Newest first: of an owner, of any of these statuses, before this (created_at, id).

        With ``lines`` those of any of these, and rows that do not tell their line.
        """

    async def events_after(
        self, job_id: str, version: int, number: int, limit: int = 100
    ) -> Sequence[StoredEvent]:
        """A job's events after (version, number), in order."""

    async def streamed(self, job_id: str) -> tuple[str, float]:
        """The digest of the output that was streamed last, and when; ``""`` and 0: nothing yet."""

    async def stream(self, job_id: str, digest: str, at: float, *, expected: str) -> bool:
        """Set that digest, if it still is ``expected``; True for one of several callers."""

    async def take_due(self, now: float, until: float, limit: int = 100) -> Sequence[Outgoing]:
        """Lease outgoing messages that are due, but no webhooks, in the order of writing.

        Until ``until``, also if the caller dies, no other caller gets them or other messages of the
        same jobs. So each is published once and a job's messages in order.
        """

    async def due(self, now: float) -> Due:
        """What of the outbox is due, and not leased."""

    async def take_webhooks(self, now: float, until: float, limit: int) -> Sequence[Outgoing]:
        """Lease webhooks that are due: of every owner the first, then of every owner the next."""

    async def sent(self, outgoing_id: str) -> None:
        """Delete an outgoing message that was published."""

    async def postpone(self, outgoing_id: str, due_at: float) -> None:
        """Make an outgoing message due later, and release its lease."""

    async def close(self) -> None: ...


class EventStore(Protocol):
    """The events of all jobs of an owner, in the order of their places, and the jobs' progress.

    A job's events become visible in their order. Of several jobs' an earlier one may become visible
    after a later one: ``at`` is taken before the commit, by each gateway's clock. All calls raise
    ``Unavailable`` when the database does not answer.
    """

    async def count(self, owner: str, after: float) -> tuple[int, float]:
        """How many there are after this moment, and ``at`` of the last; 0.0: there are none."""

    async def places(
        self, owner: str, after: float, limit: int | None = None
    ) -> Sequence[EventPlace]:
        """Where the first after this moment stand, all as of one moment."""

    async def read(self, places: Sequence[EventPlace]) -> Sequence[StoredEvent]:
        """These events, in order, without those that were deleted meanwhile."""

    async def progress(self, owner: str) -> Sequence[StoredProgress]:
        """The newest numbers of all stages that are claimed, of the jobs' current runs."""


class Held(NamedTuple):
    """Jobs of an owner in a line that are released and ``IN_QUEUE``, and how many of them stage."""

    line: Line
    owner: str
    jobs: int
    staging: int


class Standing(NamedTuple):
    """An owner with jobs that wait for their turn."""

    owner: str
    waiting: int
    released_at: float
    """When its last turn in this line was; seconds since the epoch. 0: it had none."""
    oldest: float
    """When the first of its jobs here was created; seconds since the epoch."""


class Place(NamedTuple):
    """Where a job of an owner waits: among its own jobs, oldest first."""

    line: Line
    low: bool
    owner: str


class TurnStore(Protocol):
    """Whose turn it is, from the jobs' rows.

    The order in a line: normal before low priority; then the owner whose last turn is the longest
    ago; then the oldest job. All calls raise ``Unavailable`` when the database does not answer.
    """

    async def held(self) -> Sequence[Held]:
        """By line and owner, what is released and still ``IN_QUEUE``."""

    async def is_waited_in(self, line: Line) -> bool:
        """Whether any job waits for its turn."""

    async def next(self, line: Line, barred: Collection[str] = ()) -> tuple[str, str] | None:
        """The id of the job whose turn is next, and its owner, who is not among the barred ones.

        While only barred owners have normal jobs, no job of low priority goes.
        """

    async def claims_of(self, stages: Collection[Stage]) -> Mapping[str, int]:
        """How many of these stages the jobs of each owner have claimed."""

    async def standings(self, line: Line, *, low: bool) -> Sequence[Standing]:
        """The owners with jobs that wait, the next to have its turn first."""

    async def count_released(self, line: Line) -> int:
        """How many jobs are released and ``IN_QUEUE``."""

    async def released_before(self, line: Line, job_ids: Sequence[str]) -> Mapping[str, int]:
        """How many of them were released before each of these, of those that are among them."""

    async def count_ahead(
        self,
        place: Place,
        position: tuple[float, str],
        *,
        behind: tuple[float, str] | None = None,
        limit: int | None = None,
    ) -> int:
        """How many jobs wait there in front of this (created_at, id), and behind the other.

        At most ``limit`` are counted.
        """

    async def every_waiting(self, place: Place, step: int) -> Sequence[tuple[float, str]]:
        """(created_at, id) of each ``step``-th job that waits there, oldest first."""
