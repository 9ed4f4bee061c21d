"""Turn a request, from HTTP or the broker, into a job."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import msgspec
import structlog

from services.gateway.jobs.budgets import BudgetExceeded, Budgets
from services.gateway.jobs.record import Job, Step
from services.gateway.jobs.references import References
from services.gateway.jobs.repository import JobRepository
from services.gateway.jobs.request_parser import (
    DisallowedAddress,
    Invalid,
    parse_request,
)
from services.gateway.jobs.transitions import RETRYABLE, admit, release, rerun
from services.gateway.turns.places import Places
from shared import keys
from shared.network.addresses import AllowedHosts, why_not
from shared.request import Inference, Request, Train, is_http_url
from shared.telemetry import tracing

RANDOM_SEED = -1
SEEDS = 2**32
Part = TypeVar("Part", Train, Inference)

log = structlog.get_logger()


class IdReused(Exception):
    """The id belongs to another request, or to a deleted job."""


class Admission:
    """Checks requests and creates their jobs; opens no outside connection."""

    def __init__(
        self,
        key: str,
        repository: JobRepository,
        references: References,
        budgets: Budgets,
        places: Places,
        *,
        clock: Callable[[], float],
        allowed: frozenset[str],
    ) -> None:
        """Connect the parts.

        Args:
            key: the deployment's secret key, which encrypts the user's bucket secrets.
            repository: where jobs are created.
            references: resolves references to our own files.
            budgets: of each owner.
            places: for jobs whose turn is at once.
            clock: seconds since the epoch.
            allowed: private hosts that URLs may name.
        """
        self._key = key
        self._repository = repository
        self._references = references
        self._budgets = budgets
        self._places = places
        self._clock = clock
        self._allows = AllowedHosts(allowed)

    async def admit(self, job_id: str, owner: str, body: Any, *, checks: bool = False) -> Job:
        """Create a job; if nobody waits and there is a place, release it, in one commit.

        Repeating a request with its id changes nothing. With ``checks`` the job ends with the
        report on its dataset.

        Returns:
            The job, new or known.

        Raises:
            Invalid: with every mistake of the body.
            DisallowedAddress: a URL names a private address or no host.
            IdReused: the id belongs to another request, or to a job that was deleted.
            BudgetExceeded: the owner may have no more jobs, or none as large.
            Unavailable: the database does not answer.
        """
        body = unwrap(body)
        request = parse_request(body)
        if checks:
            request = dataset_alone(request)
        request = await self._references.resolve(with_seeds(request), owner)
        check_hosts(request, self._allows)
        sealed = keys.seal(self._key, request.s3, job_id) if request.s3 else None
        digest = keys.digest(self._key, {"checks": body} if checks else body)
        step = admit(
            job_id, owner, request, body["input"],
            sealed=sealed, now=self._clock(), digest=digest, checks=checks,
        )  # fmt: skip
        step = _traced(step)
        try:
            size = len(msgspec.json.encode(body))
            grant = self._budgets.new_check if checks else self._budgets.new_job
            async with grant(owner, size):
                is_new = await self._create(step, size)
        except BudgetExceeded:
            if not await self._is_known(job_id):
                raise
            is_new = False
        if not is_new:
            return await self._existing(step.job)
        log.info("job_admitted", job=job_id, owner=owner[:16])
        return step.job

    async def _create(self, admitted: Step, size: int) -> bool:
        job = admitted.job
        async with self._places.entering(job.line, job.owner) as its_turn:
            step = _released(admitted, self._clock()) if its_turn else admitted
            return await self._repository.create(step, size)

    async def retry(self, job: Job) -> Job | None:
        """Start the next run of a job that has failed; one that has not stays as it is.

        Returns:
            The job afterwards; None when there is no such job any more.

        Raises:
            Invalid: what it would have to stage again is not kept any more.
            BudgetExceeded: the owner may have no more live jobs.
            Unavailable: the database does not answer.
        """
        if job.status in RETRYABLE:
            await self._references.keep_for_retry(job)
        async with (
            self._budgets.retried_job(job.owner),
            self._places.entering(job.line, job.owner) as its_turn,
        ):
            return await self._repository.change(job.id, partial(self._next_run, its_turn))

    def _next_run(self, its_turn: bool, job: Job) -> Step:  # noqa: FBT001
        now = self._clock()
        step = rerun(job, now)
        is_new = step.job.run > job.run
        if is_new:
            tracing.link(tracing.context_of(job))
            step = _traced(step)
        return _released(step, now) if its_turn and is_new else step

    async def _is_known(self, job_id: str) -> bool:
        return await self._repository.get(job_id) is not None

    async def _existing(self, repeated: Job) -> Job:
        known = await self._repository.get(repeated.id)
        if known is None:
            raise IdReused("the job of this idempotency key was deleted; use another key")
        if known.digest != repeated.digest:
            raise IdReused(
                "this idempotency key was used for another request; send the same request again,"
                " or another key"
            )
        return known


def _released(step: Step, now: float) -> Step:
    released = release(step.job, now, step.due)
    return Step(released.job, (*step.effects, *released.effects))


def _traced(step: Step) -> Step:
    """The run belongs to the request that is handled now."""
    job = msgspec.structs.replace(step.job, **tracing.kept(tracing.context()))
    return msgspec.structs.replace(step, job=job)


def unwrap(body: Any) -> Any:
    """Remove the second ``input`` that RunPod's asynchronous Python client wraps a request in."""
    match body:
        case {"input": {"input": _} as inner} if len(body) == 1:
            return inner
    return body


def dataset_alone(request: Request) -> Request:
    """The request without images and bucket, for a check of its dataset.

    Raises:
        Invalid: there is no dataset.
    """
    if request.train is None:
        raise Invalid(["input.train: required for a check of its dataset, but missing"])
    return msgspec.structs.replace(request, inference=(), s3=None)


def check_hosts(request: Request, allows: AllowedHosts) -> None:
    """Refuse URLs at once that no service would connect to later.

    Raises:
        DisallowedAddress: a URL names a private address, or no host at all.
    """
    train, s3 = request.train, request.s3
    named = {
        "input.train.data_url": train and train.data_url,
        "input.train.resume_ckpt_url": train and train.resume_ckpt_url,
        "input.train.base": train and train.base,
        **(request.model.named if request.model else {}),
        "s3Config.endpointUrl": s3 and s3.endpointUrl,
        "webhook": request.webhook,
    }
    urls = {field: url for field, url in named.items() if url and is_http_url(url)}
    reasons = {field: why_not(url, allows) for field, url in urls.items()}
    if mistakes := [f"{field}: {reason}" for field, reason in reasons.items() if reason]:
        raise DisallowedAddress(mistakes)


def with_seeds(request: Request) -> Request:
    """Choose all random seeds now, so that every attempt gives the same result."""
    return msgspec.structs.replace(
        request,
        train=_with_seed(request.train) if request.train else None,
        inference=tuple(_with_seed(entry) for entry in request.inference),
    )


def _with_seed(part: Part) -> Part:
    if part.seed not in (None, RANDOM_SEED):
        return part
    return msgspec.structs.replace(part, seed=secrets.randbelow(SEEDS))
