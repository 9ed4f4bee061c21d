"""Who is let in: a request's key, and how much it may ask at once."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from time import monotonic

from aiohttp import web

from services.gateway.jobs.repository import JobRepository, JobVersion, UnknownJob
from services.gateway.web.authentication import Caller, Scope
from services.gateway.web.rate_limits import RATES, Limit, Operation, Rate, TooMany
from services.gateway.web.routing import Handler

NEEDED: Mapping[Operation, Scope] = {
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
}
OwnersHandler = Callable[[web.Request, str], Awaitable[web.StreamResponse]]
"""Answers a request of this owner."""
NULL = "\0"
"""No text of PostgreSQL has it, not even one that is looked for."""
CALLER = web.RequestKey("caller", Caller)
"""Who asks; there only if the request has a key that we know."""


class Authorizer:
    """Knows scopes and limits; each gateway counts by itself."""

    def __init__(self, repository: JobRepository, rates: Mapping[Operation, Rate] = RATES) -> None:
        self._repository = repository
        self._limits = {operation: Limit(rate, monotonic) for operation, rate in rates.items()}

    @contextmanager
    def let_in(self, request: web.Request, operation: Operation) -> Iterator[str]:
        """The owner that the request's key stands for, who holds a place meanwhile.

        Raises:
            web.HTTPUnauthorized: nobody we know.
            web.HTTPForbidden: the key is not good for this.
            web.HTTPTooManyRequests: too many requests.
        """
        caller = _caller(request, NEEDED[operation])
        try:
            with self._limits[operation].place(caller.owner):
                yield caller.owner
        except TooMany as error:
            raise web.HTTPTooManyRequests(
                text=str(error), headers={"Retry-After": str(math.ceil(error.seconds))}
            ) from None

    def guard(self, handler: OwnersHandler, operation: Operation) -> Handler:
        """A handler that first lets in, and tells the inner one whom."""

        async def guarded(request: web.Request) -> web.StreamResponse:
            with self.let_in(request, operation) as owner:
                return await handler(request, owner)

        return guarded

    async def job(self, request: web.Request, owner: str) -> JobVersion:
        """The job in the path; somebody else's is as unknown as one that never was.

        Raises:
            UnknownJob: there is none.
            Unavailable: the database does not answer.
        """
        job_id = request.match_info["job"]
        current = None if NULL in job_id else await self._repository.version(job_id)
        if current is None or current.job.owner != owner:
            raise UnknownJob
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
