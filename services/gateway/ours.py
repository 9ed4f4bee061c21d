"""What a request names of ours: a link to one of our files, or a job; never fetched over HTTP."""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec

from services.gateway.ledger import Ledger
from shared.keys import link_holds
from shared.request import STORED, Invalid, Request

JOB_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Ours:
    """Finds what belongs to a client, and puts the store's key in place of its address."""

    def __init__(
        self, public_url: str, key: str, ledger: Ledger, clock: Callable[[], float]
    ) -> None:
        """``key`` is the deployment's; it has signed our links."""
        self._public_url = public_url
        self._key = key
        self._ledger = ledger
        self._clock = clock

    async def resolve(self, request: Request, owner: str) -> Request:
        """The request with keys of our store where it names something of ours.

        Raises:
            Invalid: it names something of ours that is not there, or not this owner's.
            Unavailable: the database does not answer.
        """
        mistakes: list[str] = []
        places = {
            name: await self._place(f"input.train.{name}", address, owner, mistakes)
            for name, address in (
                ("data_url", request.train.data_url),
                ("resume_ckpt_url", request.train.resume_ckpt_url),
            )
        }
        if mistakes:
            raise Invalid(mistakes)
        train = msgspec.structs.replace(request.train, **places)
        return msgspec.structs.replace(request, train=train)

    async def _place(self, field: str, address: str, owner: str, mistakes: list[str]) -> str:
        if address.startswith(f"{self._public_url}/"):
            key = await self._linked(address, owner)
            wanted = "a link of this service to a file of yours that has not ended"
        elif JOB_ID.fullmatch(address):
            key = await self._model(address, owner)
            wanted = "the id of a job of yours that has a model"
        else:
            return address
        if key is None:
            mistakes.append(f"{field}: expected {wanted}")
            return address
        return f"{STORED}{key}"

    async def _linked(self, address: str, owner: str) -> str | None:
        """The key that a signed link leads to; a job's files are its owner's only."""
        parts = urlsplit(address.removeprefix(self._public_url))
        query = parse_qs(parts.query)
        key = unquote(parts.path).removeprefix("/files/")
        expires, signature = query.get("expires", [""])[0], query.get("signature", [""])[0]
        if not expires.isdecimal() or not link_holds(
            self._key, key, int(expires[:20]), signature, self._clock()
        ):
            return None
        top, _, rest = key.partition("/")
        job = await self._ledger.get(rest.partition("/")[0]) if top == "jobs" else None
        return None if top == "jobs" and (job is None or job.owner != owner) else key

    async def _model(self, job_id: str, owner: str) -> str | None:
        """Where a job's trained model is."""
        job = await self._ledger.get(job_id)
        return job.model if job and job.owner == owner else None
