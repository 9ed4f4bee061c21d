"""Who is let in: a request's key, and how much it may ask at once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from time import monotonic

from aiohttp import web

from services.gateway.auth import Keys
from services.gateway.ledger import Ledger, Seen
from services.gateway.limits import RATES, Limit, Operation, Rate, TooMany


class Door:
    """Knows keys and limits; each gateway counts by itself."""

    def __init__(self, keys: Keys, ledger: Ledger, rates: Mapping[Operation, Rate] = RATES) -> None:
        self._keys = keys
        self._ledger = ledger
        self._limits = {operation: Limit(rate, monotonic) for operation, rate in rates.items()}

    @contextmanager
    def let_in(self, request: web.Request, operation: Operation) -> Iterator[str]:
        """The owner that the request's key stands for, who holds a place meanwhile.

        Raises:
            web.HTTPUnauthorized, web.HTTPTooManyRequests: nobody we know; too many requests.
        """
        owner = self._keys.owner(request.headers.get("Authorization"))
        if owner is None:
            raise web.HTTPUnauthorized(
                text="invalid API key: send it as 'Authorization: Bearer KEY'",
                headers={"WWW-Authenticate": "Bearer"},
            )
        try:
            with self._limits[operation].place(owner):
                yield owner
        except TooMany as error:
            raise web.HTTPTooManyRequests(
                text=str(error), headers={"Retry-After": str(math.ceil(error.seconds))}
            ) from None

    async def job(self, request: web.Request, owner: str) -> Seen:
        """The job in the path; somebody else's is as unknown as one that never was.

        Raises:
            web.HTTPNotFound: there is none.
            Unavailable: the database does not answer.
        """
        seen = await self._ledger.look(request.match_info["job"])
        if seen is None or seen.job.owner != owner:
            raise web.HTTPNotFound(text="there is no such job")
        return seen
