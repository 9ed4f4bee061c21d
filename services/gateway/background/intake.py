"""Admit jobs that other programs publish as ``job.requested``."""

from __future__ import annotations

import uuid
from functools import reduce

import structlog

from services.gateway.background.consumer import consume
from services.gateway.jobs.admission import Admission, IdReused
from services.gateway.jobs.budgets import BudgetExceeded
from services.gateway.jobs.repository import JobRepository
from services.gateway.jobs.request_parser import Invalid
from shared.messaging.envelope import Envelope
from shared.messaging.messages import NAMESPACE, JobRefused, JobRequested, stable_id
from shared.messaging.topology import GATEWAY_INTAKE, RESERVED_NAMES
from shared.ports import Bus, Delivery

DIRECT_REPLY = "amq.rabbitmq.reply-to."
"""Begins the address that the broker itself makes for the channel that asks for direct replies."""

ID_REUSED = (
    "cloudEvents_source and cloudEvents_id: used for another request, whose job is as it was; send"
    " this request under another id"
)

log = structlog.get_logger()


class Intake:
    """Admits requests from the broker, or publishes ``job.refused``."""

    def __init__(self, bus: Bus, admission: Admission, repository: JobRepository) -> None:
        self._bus = bus
        self._admission = admission
        self._repository = repository

    async def run(self) -> None:
        await consume(self._bus, GATEWAY_INTAKE, self._admit)

    async def _admit(self, delivery: Delivery) -> None:
        message, envelope = delivery.message, delivery.envelope
        if not isinstance(message, JobRequested):
            return
        job_id = job_id_for(envelope)
        try:
            owner = owner_for(envelope)
            if await self._is_former_job(envelope, owner):
                job_id = former_job_id_for(envelope)
            await self._admission.admit(job_id, owner, message.request)
        except Invalid as invalid:
            await self._refuse(job_id, invalid.mistakes, envelope)
        except BudgetExceeded as exceeded:
            await self._refuse(job_id, [str(exceeded)], envelope)
        except IdReused:
            log.warning("event_id_used_again", job=job_id, source=envelope.source)
            await self._refuse(job_id, [ID_REUSED], envelope)

    async def _is_former_job(self, envelope: Envelope, owner: str) -> bool:
        """Whether this is a repetition: of a request admitted before ids had the login in them."""
        former = await self._repository.get(former_job_id_for(envelope))
        return former is not None and former.owner == owner

    async def _refuse(self, job_id: str, mistakes: list[str], envelope: Envelope) -> None:
        """Publish it, and send it to the producer's reply queue if it named one of its own."""
        reply_to = envelope.reply_to or None
        if reply_to and not may_reply_to(reply_to, envelope.user_id):
            mistakes = [*mistakes, why_no_reply(envelope.user_id)]
            reply_to = None
        log.info("job_refused", job=job_id, source=envelope.source, mistakes=len(mistakes))
        refused = JobRefused(job=job_id, mistakes=mistakes)
        await self._bus.publish(refused, mandatory=False)
        if reply_to:
            await self._bus.send(reply_to, refused, mandatory=False)


def job_id_for(envelope: Envelope) -> str:
    """The same event from the same source of the same login is always the same job.

    Each part is a namespace for the next, so that no login can spell another's id.
    """
    parts = (envelope.user_id or "", envelope.source, envelope.id)
    return str(reduce(uuid.uuid5, parts, NAMESPACE))


def former_job_id_for(envelope: Envelope) -> str:
    """The id that the job has if it was admitted before ids had the login in them."""
    return stable_id(envelope.source, envelope.id)


def owner_for(envelope: Envelope) -> str:
    """The owner, from the login that the broker verified.

    Raises:
        Invalid: the message does not name its login.
    """
    if not envelope.user_id:
        raise Invalid(["user_id: expected the login of your connection, which the broker verifies"])
    return f"producer:{envelope.user_id}"


def may_reply_to(queue: str, login: str | None) -> bool:
    """Whether a queue is known to be the login's own: by its name, or made by the broker for it."""
    if queue.startswith(DIRECT_REPLY):
        return True
    if not login or login.partition(".")[0] in RESERVED_NAMES:
        return False
    return queue.startswith(f"{login}.")


def why_no_reply(login: str | None) -> str:
    """What a producer is told that named a queue which is not known to be its own."""
    own = f"{login}." if login else "your login and a dot"
    return (
        f"reply_to: nothing is sent there; expected a queue whose name begins with {own} or direct"
        " reply-to (amq.rabbitmq.reply-to)"
    )
