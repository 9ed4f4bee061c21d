"""Budgets of a key: what it may keep, and have under way, so that no key can harm another.

What is kept is counted in the database, for all gateways together; what is in flight is counted by
each gateway for itself.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Literal, NamedTuple, get_args

from services.gateway.ports import JobStore
from services.gateway.upload_ports import UploadStore
from shared.settings import Settings

BudgetName = Literal[
    "live_jobs",
    "kept_jobs",
    "request_bytes",
    "body_bytes",
    "upload_bytes",
    "unfinished_uploads",
    "upload_parts",
    "model_bytes",
    "waiting_requests",
]
BUDGETS: tuple[BudgetName, ...] = get_args(BudgetName)
"""Each is allowed what the setting says that is called like it, after ``EVERYDREAM_MAX_``."""
IN_FLIGHT: tuple[BudgetName, ...] = ("body_bytes", "waiting_requests")
ADVICE: Mapping[BudgetName, str] = {
    "live_jobs": "wait until some have ended, or cancel some",
    "kept_jobs": "delete some that have ended",
    "request_bytes": "delete some jobs, or send smaller requests",
    "body_bytes": "send fewer large bodies at a time",
    "upload_bytes": "delete some uploads, or checks of datasets",
    "unfinished_uploads": "finish or delete one first",
    "upload_parts": "delete some uploads, or send larger chunks",
    "model_bytes": "wait until other jobs have ended, or delete failed ones",
    "waiting_requests": "keep fewer of them open",
}
Amounts = Mapping[BudgetName, int]


class BudgetExceeded(Exception):
    """A budget of the key has not enough left."""

    def __init__(self, name: BudgetName, used: int, allowed: int) -> None:
        super().__init__(
            f"budget {name}: {used} of {allowed} are used, and this needs more than is left;"
            f" {ADVICE[name]}"
        )
        self.name = name
        self.used = used
        self.allowed = allowed


class Budgets:
    """Grants parts of the budgets for as long as a block runs, and reports what is used."""

    def __init__(self, settings: Settings, jobs: JobStore, uploads: UploadStore) -> None:
        self.allowed: Amounts = {name: getattr(settings, f"max_{name}") for name in BUDGETS}
        self._jobs = jobs
        self._uploads = uploads
        self._in_flight: defaultdict[BudgetName, Counter[str]] = defaultdict(Counter)
        self._job_queue = _Queue(self._used_by_jobs, self.allowed)
        self._upload_queue = _Queue(self._used_by_uploads, self.allowed)

    async def used(self, owner: str) -> Amounts:
        """What the owner uses of each budget. Raises Unavailable."""
        return {
            **await self._used_by_jobs(owner),
            **await self._used_by_uploads(owner),
            "model_bytes": await self._jobs.model_bytes(owner),
            **{name: self._in_flight[name][owner] for name in IN_FLIGHT},
        }

    @asynccontextmanager
    async def new_job(self, owner: str, request_bytes: int) -> AsyncIterator[None]:
        """Grant a job, which the block creates. Raises BudgetExceeded or Unavailable."""
        needed: Amounts = {"live_jobs": 1, "kept_jobs": 1, "request_bytes": request_bytes}
        async with self._job_queue.grant(owner, needed):
            yield

    @asynccontextmanager
    async def new_check(self, owner: str, request_bytes: int) -> AsyncIterator[None]:
        """Grant a check; its dataset is kept if there is room when it is staged.

        Raises BudgetExceeded or Unavailable.
        """
        async with (
            self._upload_queue.grant(owner, {"upload_bytes": 1}),
            self.new_job(owner, request_bytes),
        ):
            yield

    async def expect_room_for_dataset(self, owner: str, size: int) -> None:
        """Check that a dataset may be kept. Raises BudgetExceeded or Unavailable."""
        used = await self._used_by_uploads(owner)
        _expect(self.allowed, used, {"upload_bytes": size})

    async def expect_room_for_model(self, owner: str, prefix: str, size: int) -> None:
        """Check that a model may be kept, which counts once for all jobs that start from it.

        Raises BudgetExceeded or Unavailable.
        """
        used = await self._jobs.model_bytes(owner, without=prefix)
        _expect(self.allowed, {"model_bytes": used}, {"model_bytes": size})

    @asynccontextmanager
    async def changed_check(self, owner: str, size: int) -> AsyncIterator[None]:
        """Grant so many bytes of changes of a check. Raises BudgetExceeded or Unavailable."""
        async with self._job_queue.grant(owner, {"request_bytes": size}):
            yield

    @asynccontextmanager
    async def retried_job(self, owner: str) -> AsyncIterator[None]:
        """Grant that a kept job lives again. Raises BudgetExceeded or Unavailable."""
        async with self._job_queue.grant(owner, {"live_jobs": 1}):
            yield

    @asynccontextmanager
    async def new_upload(self, owner: str, size: int) -> AsyncIterator[None]:
        """Grant an upload of so many bytes. Raises BudgetExceeded or Unavailable."""
        needed: Amounts = {"upload_bytes": size, "unfinished_uploads": 1, "upload_parts": 2}
        async with self._upload_queue.grant(owner, needed):
            yield

    @asynccontextmanager
    async def new_part(self, owner: str) -> AsyncIterator[None]:
        """Grant a part of an upload. Raises BudgetExceeded or Unavailable."""
        async with self._upload_queue.grant(owner, {"upload_parts": 1}):
            yield

    @contextmanager
    def in_flight(self, name: BudgetName, owner: str, amount: int = 1) -> Iterator[None]:
        """Grant a part of a budget of this gateway's. Raises BudgetExceeded."""
        used = self._in_flight[name]
        if used[owner] + amount > self.allowed[name]:
            raise BudgetExceeded(name, used[owner], self.allowed[name])
        used[owner] += amount
        try:
            yield
        finally:
            used[owner] -= amount
            if not used[owner]:
                del used[owner]

    async def _used_by_jobs(self, owner: str) -> Amounts:
        usage = await self._jobs.usage(owner)
        return {
            "live_jobs": usage.live,
            "kept_jobs": usage.kept,
            "request_bytes": usage.request_bytes,
        }

    async def _used_by_uploads(self, owner: str) -> Amounts:
        usage = await self._uploads.usage(owner)
        return {
            "upload_bytes": usage.bytes + await self._jobs.kept_bytes(owner),
            "unfinished_uploads": usage.unfinished,
            "upload_parts": usage.parts + usage.uploads,
        }


class _Grant(NamedTuple):
    needed: Amounts
    over: asyncio.Event
    """Set when the database has it, or never will."""


class _Queue:
    """Decides about a key's requests in their order, without making them wait for one another.

    Only where the last of a budget is at stake does a request wait until the database has those
    before it. So requests at the same time never get more than there is, at one gateway; of several
    gateways each may grant what another is about to use.
    """

    def __init__(self, used: Callable[[str], Awaitable[Amounts]], allowed: Amounts) -> None:
        self._used = used
        self._allowed = allowed
        self._granting: dict[str, list[_Grant]] = {}

    @asynccontextmanager
    async def grant(self, owner: str, needed: Amounts) -> AsyncIterator[None]:
        granting = self._granting.setdefault(owner, [])
        earlier, grant = list(granting), _Grant(needed, asyncio.Event())
        granting.append(grant)
        try:
            await self._decide(owner, needed, earlier)
            yield
        finally:
            grant.over.set()
            granting.remove(grant)
            if not granting:
                del self._granting[owner]

    async def _decide(self, owner: str, needed: Amounts, earlier: list[_Grant]) -> None:
        while True:
            used = await self._used(owner)
            _expect(self._allowed, used, needed)
            if _short(self._allowed, used, needed, *(each.needed for each in earlier)) is None:
                return
            for each in earlier:
                await each.over.wait()
            earlier = []


def _expect(allowed: Amounts, used: Amounts, needed: Amounts) -> None:
    """Raises BudgetExceeded."""
    if (short := _short(allowed, used, needed)) is not None:
        raise BudgetExceeded(short, used[short], allowed[short])


def _short(allowed: Amounts, used: Amounts, *needed: Amounts) -> BudgetName | None:
    """The first budget that these exceed together."""
    for name in needed[0]:
        if used[name] + sum(each.get(name, 0) for each in needed) > allowed[name]:
            return name
    return None
