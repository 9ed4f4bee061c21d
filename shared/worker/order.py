"""What a worker works on: an order under a claim, or a best-effort task without one."""

from __future__ import annotations

import asyncio
import uuid
from time import monotonic
from typing import Any, TypedDict

import structlog

from shared.errors import Unavailable, Unpublishable, Unroutable
from shared.messaging.messages import (
    AnyMessage,
    ClaimGranted,
    ClaimRefused,
    CommandIssued,
    Stage,
    StageFact,
)
from shared.monitoring.worker import CLAIM
from shared.ports import Bus, ObjectStore, ReplyQueue
from shared.request import Command
from shared.retry import Reconnects
from shared.storage.large_fields import load_fields, store_message
from shared.telemetry import tracing

log = structlog.get_logger()


class Stamp(TypedDict):
    """The fields that identify claim and worker in every :class:`StageFact`."""

    job: str
    stage: Stage
    claim: str
    attempt: int
    worker: str


class Keepalive:
    """Remembers the last sign of life."""

    def __init__(self) -> None:
        self._last_sign_of_life = monotonic()

    def keepalive(self) -> None:
        """Report that the work is alive; without it for some minutes the work is cancelled."""
        self._last_sign_of_life = monotonic()

    @property
    def silence(self) -> float:
        """Seconds since the last sign of life."""
        return monotonic() - self._last_sign_of_life


class BestEffortTask(Keepalive):
    """One message that a worker handles without a claim."""

    def __init__(self, message: AnyMessage) -> None:
        super().__init__()
        self.message = message


class Order(Keepalive):
    """One claim of a stage, and the work under it."""

    def __init__(
        self,
        bus: Bus,
        store: ObjectStore,
        reply_queue: ReplyQueue,
        message: AnyMessage,
        stage: Stage,
    ) -> None:
        super().__init__()
        self.message = message
        """The fact that requests the work; whole once :meth:`load` has run."""
        self.stage: Stage = stage
        self.claim = str(uuid.uuid4())
        self._asked_at = monotonic()
        self.answered = asyncio.Event()
        self.granted: ClaimGranted | None = None
        self.refused: str | None = None
        """Why the claim was refused or withdrawn."""
        self.unpublishable: Unpublishable | None = None
        """The broker refuses the progress of this work for good."""
        self.stopping = asyncio.Event()
        """Set when the worker stops: save what has to be kept, then raise Interrupted."""
        self.commands: dict[Command, int] = {}
        """The user's open commands by number: see :class:`CommandIssued`."""
        self.commands_changed = asyncio.Event()
        """Set when there are new commands; the reader clears it."""
        self.numbers: dict[str, Any] = {}
        self._bus = bus
        self._store = store
        self._reply_queue = reply_queue

    @property
    def grant(self) -> ClaimGranted:
        """What the gateway granted."""
        if self.granted is None:
            raise RuntimeError("nothing is granted yet")
        return self.granted

    @property
    def job(self) -> str:
        return self.message.job

    @property
    def name(self) -> str:
        """For people: job, stage and attempt."""
        return f"{self.job}-{self.stage}-{self.grant.attempt}"

    def progress(self, **numbers: Any) -> None:
        """Update the numbers for ``/status``, sent with the next heartbeat; a sign of life."""
        self.keepalive()
        if "phase" in numbers:
            tracing.phase(str(numbers["phase"]))
        self.numbers = self.numbers | numbers

    def stamp(self) -> Stamp:
        """Fields for every fact under this claim: ``CheckpointSaved(**order.stamp(), ...)``."""
        return {
            "job": self.job,
            "stage": self.stage,
            "claim": self.claim,
            "attempt": self.granted.attempt if self.granted else 0,
            "worker": self._bus.source,
        }

    async def load(self) -> None:
        """Fetch what is too large for the requesting fact and for the grant.

        Raises:
            NotFound: the job is deleted.
            Unavailable: the store does not answer.
        """
        self.message = await load_fields(self._store, self.message)
        self.granted = await load_fields(self._store, self.grant)

    async def publish(self, fact: StageFact) -> None:
        """Publish a fact; retries until the broker has it or the claim is refused.

        Raises:
            Unpublishable: the broker refuses it for good.
        """
        async for _ in Reconnects():
            if await self.try_publish(fact) or self.refused is not None:
                return

    async def try_publish(self, fact: StageFact, *, mandatory: bool = True) -> bool:
        """Publish a fact once; returns whether the broker has it.

        Raises:
            Unpublishable: the broker refuses it for good.
        """
        try:
            small = await store_message(self._store, fact)
            await self._bus.publish(small, reply_to=self._reply_queue.address, mandatory=mandatory)
        except (Unavailable, Unroutable) as error:
            log.warning(
                "fact_not_published", fact=type(fact).__name__, job=self.job, reason=str(error)
            )
            return False
        return True

    def receive(self, message: ClaimGranted | ClaimRefused | CommandIssued) -> None:
        """Handle a message of the gateway about this claim."""
        if isinstance(message, ClaimGranted | CommandIssued):
            commands = message.commands
            if commands and commands != self.commands:
                self.commands = commands
                self.commands_changed.set()
        match message:
            case CommandIssued():
                return
            case ClaimGranted():
                self.granted = self.granted or message  # repeated, it says the same
            case ClaimRefused(reason=reason):
                self.refused = reason
        if not self.answered.is_set():
            answer = "granted" if self.refused is None else "refused"
            CLAIM.labels(self.stage, answer).observe(monotonic() - self._asked_at)
        self.answered.set()
