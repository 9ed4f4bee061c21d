"""How a request becomes a job, whether it came by HTTP or from the broker."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

import msgspec
import structlog

from services.gateway.jobs.record import Job
from services.gateway.jobs.references import References
from services.gateway.jobs.repository import JobRepository
from services.gateway.jobs.request_parser import DisallowedAddress, Invalid, parse_request
from services.gateway.jobs.transitions import admit
from shared import keys
from shared.network.addresses import AllowedHosts, why_not
from shared.request import Inference, Request, Train, is_http_url

RANDOM_SEED = -1
SEEDS = 2**32

log = structlog.get_logger()


class IdReused(Exception):
    """An id that was used for another request."""


class Admission:
    """Checks requests and writes them down; opens no outside connection."""

    def __init__(
        self,
        key: str,
        repository: JobRepository,
        references: References,
        clock: Callable[[], float],
        allowed: frozenset[str],
    ) -> None:
        """``key`` is the deployment's; it seals the user's bucket secrets.

        ``allowed`` are the private hosts that users may name.
        """
        self._key = key
        self._repository = repository
        self._references = references
        self._clock = clock
        self._allows = AllowedHosts(allowed)

    async def admit(self, job_id: str, owner: str, body: Any, *, checks: bool = False) -> Job:
        """Write the job and the fact that asks for its staging, in one commit.

        A repeat of a known id changes nothing. ``checks``: the job ends with the report on its
        dataset.

        Returns:
            The job; of a repeat the one that is known.

        Raises:
            Invalid: with every mistake of the body.
            DisallowedAddress: its URLs name what nobody will be sent to.
            IdReused: the id is known, but of another request, or of a job that was deleted.
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
        if not await self._repository.create(step):
            return await self._known(step.job)
        log.info("job_admitted", job=job_id, owner=owner[:16])
        return step.job

    async def _known(self, repeated: Job) -> Job:
        known = await self._repository.get(repeated.id)
        if known is None:
            raise IdReused("the job of this idempotency key was deleted; use another key")
        if known.digest != repeated.digest:
            raise IdReused(
                "this idempotency key was used for another request; send the same request again,"
                " or another key"
            )
        return known


def unwrap(body: Any) -> Any:
    """RunPod's asynchronous Python client puts a whole request into ``input`` once more."""
    match body:
        case {"input": {"input": _} as inner} if len(body) == 1:
            return inner
    return body


def dataset_alone(request: Request) -> Request:
    """What a check needs of a request: nothing is drawn, and nothing goes to a bucket.

    Raises:
        Invalid: there is no dataset.
    """
    if request.train is None:
        raise Invalid(["input.train: required for a check of its dataset, but missing"])
    return msgspec.structs.replace(request, inference=(), s3=None)


def check_hosts(request: Request, allows: AllowedHosts) -> None:
    """Refuse at once what nobody would connect to later.

    Raises:
        DisallowedAddress: a URL names a private address, or no host at all.
    """
    train, model, s3 = request.train, request.model, request.s3
    named = {
        "input.train.data_url": train and train.data_url,
        "input.train.resume_ckpt_url": train and train.resume_ckpt_url,
        "input.model": model and model.source,
        "s3Config.endpointUrl": s3 and s3.endpointUrl,
        "webhook": request.webhook,
    }
    urls = {field: url for field, url in named.items() if url and is_http_url(url)}
    reasons = {field: why_not(url, allows) for field, url in urls.items()}
    if mistakes := [f"{field}: {reason}" for field, reason in reasons.items() if reason]:
        raise DisallowedAddress(mistakes)


def with_seeds(request: Request) -> Request:
    """Draw now what was left to chance, so that every attempt draws the same images."""
    return msgspec.structs.replace(
        request,
        train=_seeded(request.train) if request.train else None,
        inference=tuple(_drawn(entry) for entry in request.inference),
    )


def _seeded(train: Train) -> Train:
    if train.seed != RANDOM_SEED:
        return train
    return msgspec.structs.replace(train, seed=secrets.randbelow(SEEDS))


def _drawn(entry: Inference) -> Inference:
    if entry.seed not in (None, RANDOM_SEED):
        return entry
    return msgspec.structs.replace(entry, seed=secrets.randbelow(SEEDS))
