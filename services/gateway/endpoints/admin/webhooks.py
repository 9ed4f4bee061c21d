"""List the webhooks that were given up, of all jobs, and send one again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

from aiohttp import web

from services.gateway.endpoints.admin.page import page_in
from services.gateway.endpoints.admin.response_types import GivenUpWebhook, GivenUpWebhooks
from services.gateway.endpoints.webhooks import resend, shown_delivery
from services.gateway.jobs.record import Job
from services.gateway.jobs.repository import JobRepository, UnknownJob
from services.gateway.jobs.response_types import WebhookDelivery
from services.gateway.jobs.rows import read
from services.gateway.jobs.webhook_schedule import given_up_webhooks
from services.gateway.system_ports import SystemStore
from services.gateway.web.application import in_time
from services.gateway.web.authorization import NULL
from services.gateway.web.paging import PAGING, encode_cursor
from services.gateway.web.routing import Answer, route
from shared.words import iso


class AdminWebhookRoutes:
    """``/admin/webhooks``."""

    def __init__(
        self, system: SystemStore, repository: JobRepository, clock: Callable[[], float]
    ) -> None:
        self._system = system
        self._repository = repository
        self._clock = clock

    @route(
        "GET",
        "/admin/webhooks",
        "List the webhooks that failed and are not tried again",
        needs="operate",
        parameters=PAGING,
        answers={200: Answer("Those of a page of jobs; limit counts jobs.", GivenUpWebhooks)},
        errors=(400,),
    )
    async def _list(self, request: web.Request, _owner: str) -> web.Response:
        page = page_in(request.query)
        async with in_time():
            found = await self._system.given_up(page.after, page.limit + 1)
        shown = found[: page.limit]
        last = shown[-1] if len(found) > page.limit else None
        body: GivenUpWebhooks = {
            "webhooks": [each for row in shown for each in _given_up(read(row))],
            "next": encode_cursor((last.webhook_failed_at or 0.0, last.id)) if last else None,
        }
        return web.json_response(body)

    @route(
        "POST",
        "/admin/webhooks/{job}/{webhook}/resend",
        "Send a webhook of any job again now",
        needs="operate",
        answers={200: Answer("The new delivery.", WebhookDelivery)},
        errors=(409,),
    )
    async def _resend(self, request: web.Request, _owner: str) -> web.Response:
        job_id, webhook = request.match_info["job"], request.match_info["webhook"]
        async with in_time():
            job = None if NULL in job_id else await self._repository.get(job_id)
            if job is None:
                raise UnknownJob(job_id)
            tried = await resend(self._repository, job, webhook, self._clock())
        return web.json_response(shown_delivery(tried))


def _given_up(job: Job) -> Iterator[GivenUpWebhook]:
    for last in reversed(given_up_webhooks(job)):
        yield {
            "job": job.id,
            "webhook": last.id,
            "event": last.event,
            "host": urlsplit(job.webhook or "").hostname,
            "reason": last.reason or "",
            "attempts": last.attempt,
            "at": iso(last.at),
        }
