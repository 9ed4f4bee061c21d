"""Admit jobs that other programs publish as ``job.requested``."""

from __future__ import annotations

import structlog

from services.gateway.background.consumer import consume
from services.gateway.jobs.admission import Admission, IdReused
from services.gateway.jobs.budgets import BudgetExceeded
from services.gateway.jobs.request_parser import Invalid
from shared.messaging.envelope import Envelope
from shared.messaging.messages import JobRefused, JobRequested, stable_id
from shared.messaging.topology import GATEWAY_INTAKE, QUEUES
from shared.ports import Bus, Delivery

SERVICE_QUEUES = frozenset(queue.name for queue in QUEUES)
"""Never used as a producer's reply queue."""

log = structlog.get_logger()


class Intake:
    """Admits requests from the broker, or publishes ``job.refused``."""

    def __init__(self, bus: Bus, admission: Admission) -> None:
        self._bus = bus
        self._admission = admission

    async def run(self) -> None:
        await consume(self._bus, GATEWAY_INTAKE, self._admit)

    async def _admit(self, delivery: Delivery) -> None:
        message, envelope = delivery.message, delivery.envelope
        if not isinstance(message, JobRequested):
            return
        job_id = job_id_for(envelope)
        try:
            await self._admission.admit(job_id, owner_for(envelope), message.request)
        except Invalid as invalid:
            log.info(
                "job_refused", job=job_id, source=envelope.source, mistakes=len(invalid.mistakes)
            )
            await self._refuse(JobRefused(job=job_id, mistakes=invalid.mistakes), envelope)
        except BudgetExceeded as exceeded:
            log.info("job_refused", job=job_id, source=envelope.source, budget=exceeded.name)
            await self._refuse(JobRefused(job=job_id, mistakes=[str(exceeded)]), envelope)
        except IdReused:
            log.warning("event_id_used_again", job=job_id, source=envelope.source)

    async def _refuse(self, refused: JobRefused, envelope: Envelope) -> None:
        """Publish it, and send it to the producer's reply queue if it named one."""
        await self._bus.publish(refused, mandatory=False)
        if envelope.reply_to and envelope.reply_to not in SERVICE_QUEUES:
            await self._bus.send(envelope.reply_to, refused, mandatory=False)


def job_id_for(envelope: Envelope) -> str:
    """The same event from the same source is always the same job."""
    return stable_id(envelope.source, envelope.id)


def owner_for(envelope: Envelope) -> str:
    """The owner, from the login that the broker verified.

    Raises:
        Invalid: the message does not name its login.
    """
    if not envelope.user_id:
        raise Invalid(["user_id: expected the login of your connection, which the broker verifies"])
    return f"producer:{envelope.user_id}"
