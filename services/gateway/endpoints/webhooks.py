"""The deliveries of a job's webhooks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from aiohttp import web

from services.gateway.jobs.record import Job, WebhookTry
from services.gateway.jobs.repository import JobRepository
from services.gateway.jobs.response_types import WebhookDeliveries, WebhookDelivery
from services.gateway.jobs.webhook_schedule import resend_webhook
from services.gateway.web.application import in_time
from services.gateway.web.authorization import Authorizer
from services.gateway.web.routing import Answer, route
from shared.words import iso

MOST_TRIES = 50
"""Of one webhook. Each has a body of its own, which may be large and is kept with its job."""


class WebhookRoutes:
    """``/jobs/{job}/webhooks``: list deliveries, and send a webhook again."""

    def __init__(
        self, authorizer: Authorizer, repository: JobRepository, clock: Callable[[], float]
    ) -> None:
        self._authorizer = authorizer
        self._repository = repository
        self._clock = clock

    @route(
        "GET",
        "/jobs/{job}/webhooks",
        "List the deliveries of a job's webhooks",
        needs="status",
        answers={200: Answer("The newest deliveries.", WebhookDeliveries)},
    )
    async def _list(self, request: web.Request, owner: str) -> web.Response:
        async with in_time():
            job = (await self._authorizer.job(request, owner)).job
        shown: WebhookDeliveries = {
            "deliveries": [shown_delivery(each) for each in job.webhook_tries[::-1]]
        }
        return web.json_response(shown)

    @route(
        "POST",
        "/jobs/{job}/webhooks/{webhook}/resend",
        "Send a webhook again now",
        needs="resend",
        answers={200: Answer("The new delivery.", WebhookDelivery)},
        errors=(409,),
    )
    async def _resend(self, request: web.Request, owner: str) -> web.Response:
        async with in_time():
            job = (await self._authorizer.job(request, owner)).job
            tried = await resend(
                self._repository, job, request.match_info["webhook"], self._clock()
            )
        return web.json_response(shown_delivery(tried))


async def resend(repository: JobRepository, job: Job, webhook: str, now: float) -> WebhookTry:
    """Send a job's webhook once more; the new try.

    Raises:
        web.HTTPConflict: it was sent too often already.
        web.HTTPNotFound: the job has no such webhook.
        Unavailable: the database does not answer.
    """
    tried = [each.attempt for each in job.webhook_tries if each.id == webhook]
    if max(tried, default=0) >= MOST_TRIES:
        raise web.HTTPConflict(text=f"this webhook was sent {MOST_TRIES} times already")
    again = partial(resend_webhook, webhook=webhook, now=now)
    job = await repository.change(job.id, again) or job
    tries = [each for each in job.webhook_tries if each.id == webhook]
    if not tries:
        raise web.HTTPNotFound(text=f"there is no webhook {webhook[:80]!r} of this job")
    return tries[-1]


def shown_delivery(tried: WebhookTry) -> WebhookDelivery:
    return {
        "id": tried.id,
        "event": tried.event,
        "attempt": tried.attempt,
        "at": iso(tried.at),
        "status": tried.status,
        "reason": tried.reason,
    }
