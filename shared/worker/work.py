"""What a service implements for the runtime, as protocols."""

from __future__ import annotations

from typing import Protocol

from shared.messaging.messages import AnyMessage, Interruption, Progressed, Result, Stage, Started
from shared.messaging.topology import Queue
from shared.worker.order import BestEffortTask, Order


class Work(Protocol):
    """What a service implements for the runtime."""

    queue: Queue
    concurrency: int
    """How many jobs at a time; 1 for a GPU."""
    graceful: bool
    """Whether, at shutdown, work gets ``order.stopping`` and a grace period, or is cancelled."""

    @property
    def started(self) -> type[Started]:
        """The fact by which this service claims."""

    @property
    def progressed(self) -> type[Progressed]:
        """The fact that serves as heartbeat."""

    @property
    def interrupted(self) -> type[Interruption]:
        """The fact by which it hands its work over at shutdown."""

    def stage_of(self, message: AnyMessage) -> Stage | None:
        """The stage that a message on our queue requests; None: no work for us."""
        ...

    async def prepare(self) -> str:
        """Prepare for the next order (start the child); returns the GPU's name."""
        ...

    async def perform(self, order: Order) -> Result:
        """Do the work and return the fact that ends the stage.

        Cancelled when the claim is refused; it must then leave nothing running.

        Raises:
            Refused: the job cannot succeed; this ends it.
            Interrupted: stopped because ``order.stopping`` was set.
            Exception: anything else is temporary; the stage is retried.
        """
        ...

    async def close(self) -> None:
        """Stop what :meth:`prepare` started."""
        ...


class BestEffortTasks(Protocol):
    """What a slot does while no work waits; without a claim, so it may be lost or done twice."""

    queue: Queue

    async def run(self, best_effort_task: BestEffortTask) -> None:
        """Do the task; what it leaves undone is lost.

        Cancelled when its job ends, when it shows no sign of life for too long, and when the worker
        stops. Only in the last case it is requeued.

        Raises:
            Exception: it is requeued, up to the delivery limit.
        """
        ...
