"""Authorization and rate limiting."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from time import monotonic

from aiohttp import web

from services.gateway.jobs.budgets import Budgets
from services.gateway.jobs.repository import JobRepository, JobVersion, UnknownJob
from services.gateway.web.authentication import Caller, Scope
from services.gateway.web.rate_limits import RATES, Operation, Rate, RateLimiter, TooManyRequests
from services.gateway.web.routing import Handler

REQUIRED_SCOPES: Mapping[Operation, Scope] = {
    "run": "submit",
    "runsync": "submit",
    "status": "read",
    "stream": "read",
    "cancel": "submit",
    "command": "submit",
    "resend": "submit",
    "delete": "admin",
    "purge": "admin",
    "upload": "submit",
    "operate": "operate",
}
OwnerHandler = Callable[[web.Request, str], Awaitable[web.StreamResponse]]
"""A handler that also gets the owner."""
NULL = "\0"
"""PostgreSQL refuses it in any text, even in one to search for."""
CALLER = web.RequestKey("caller", Caller)
"""Set only if the request has a valid key."""


class Authorizer:
    """Checks scopes and rate limits; each gateway counts by itself."""

    def __init__(
        self,
        repository: JobRepository,
        budgets: Budgets,
        rates: Mapping[Operation, Rate] = RATES,
    ) -> None:
        self._repository = repository
        self._budgets = budgets
        self._limits = {
            operation: RateLimiter(rate, monotonic) for operation, rate in rates.items()
        }

    @contextmanager
    def authorize(self, request: web.Request, operation: Operation) -> Iterator[str]:
        """Check the request's key and take one of its concurrent requests; yields its owner.

        Raises:
            web.HTTPUnauthorized: no valid key.
            web.HTTPForbidden: the key lacks the scope.
            web.HTTPTooManyRequests: a rate limit is exceeded.
        """
        caller = _caller(request, REQUIRED_SCOPES[operation])
        try:
            with self._limits[operation].slot(caller.owner):
                yield caller.owner
        except TooManyRequests as error:
            raise web.HTTPTooManyRequests(
                text=str(error), headers={"Retry-After": str(math.ceil(error.seconds))}
            ) from None

    def guard(self, handler: OwnerHandler, operation: Operation, *, waits: bool) -> Handler:
        """Wrap a handler, so that it is authorized first and gets the owner.

        One that ``waits`` for a job counts among the owner's waiting requests.
        """

        async def guarded(request: web.Request) -> web.StreamResponse:
            with (
                self.authorize(request, operation) as owner,
                self._budgets.in_flight("waiting_requests", owner, int(waits)),
            ):
                return await handler(request, owner)

        return guarded

    async def job(self, request: web.Request, owner: str) -> JobVersion:
        """The job in the path.

        Raises:
            UnknownJob: it does not exist, or has another owner.
            Unavailable: the database does not answer.
        """
        job_id = request.match_info["job"]
        current = None if NULL in job_id else await self._repository.version(job_id)
        if current is None or current.job.owner != owner:
            raise UnknownJob(job_id)
        return current


def _caller(request: web.Request, needed: Scope) -> Caller:
    caller: Caller | None = request.get(CALLER)
    if caller is None:
        raise web.HTTPUnauthorized(
            text="invalid API key: send it as 'Authorization: Bearer KEY'",
            headers={"WWW-Authenticate": "Bearer"},
        )
    if needed not in caller.scopes:
        raise web.HTTPForbidden(text=f"this key has no scope {needed}")
    return caller
