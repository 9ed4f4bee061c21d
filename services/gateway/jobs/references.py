"""Resolve references to our own files, uploads and jobs, which are never fetched over HTTP."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from functools import partial
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec
import structlog
from msgspec.structs import replace

from services.gateway.jobs.fields.shown import shown
from services.gateway.jobs.outputs import keep_dataset
from services.gateway.jobs.presenter import Presenter
from services.gateway.jobs.record import Job, Step, clip_skip_of
from services.gateway.jobs.repository import JobRepository
from services.gateway.jobs.request_parser import Invalid
from services.gateway.jobs.rows import read
from services.gateway.jobs.uploads import Uploads
from services.gateway.ports import JobStore, StoredJob
from shared.dataset.edits import EDITED, EditedDataset
from shared.keys import link_holds
from shared.messaging.messages import (
    Artifact,
    CheckpointFinal,
    DatasetStaged,
    ModelStaged,
    Submission,
    decode,
)
from shared.network.addresses import shown_url
from shared.ports import ObjectStore
from shared.request import JOB_ID, STORED, ModelSource, Request, Train
from shared.storage.large_fields import put_value
from shared.storage.uploads import list_key

JOBS = "jobs/"
LIVE = ("IN_QUEUE", "IN_PROGRESS")
PAGE = 100
"""Jobs that are read at a time."""

log = structlog.get_logger()


class References:
    """Replaces a client's references by keys of the store."""

    def __init__(
        self,
        *,
        public_url: str,
        key: str,
        store: ObjectStore,
        repository: JobRepository,
        presenter: Presenter,
        uploads: Uploads,
        clock: Callable[[], float],
    ) -> None:
        """``key`` is the deployment's secret key, which signs links."""
        self._public_url = public_url
        self._key = key
        self._store = store
        self._repository = repository
        self._presenter = presenter
        self._uploads = uploads
        self._clock = clock

    async def resolve(self, request: Request, owner: str) -> Request:
        """The request with store keys in place of references.

        Raises:
            Invalid: a reference leads nowhere, or to something of another owner.
            Unavailable: the database does not answer.
        """
        mistakes: list[str] = []
        until = self._clock() + request.policy.ttl / 1000
        train = request.train
        resolved = replace(
            request,
            train=await self._train(train, owner, until, mistakes) if train else None,
            model=await self._model(request.model, owner, mistakes) if request.model else None,
        )
        if mistakes:
            raise Invalid(mistakes)
        return resolved

    async def keep_for_retry(self, job: Job) -> None:
        """Keep what a check has staged for a job that has to stage it again.

        Raises:
            Invalid: what the job stages from is not kept any more.
            Unavailable: the database or the store does not answer.
        """
        staging = job.stages["staging"]
        submitted = decode(staging.trigger)
        if staging.done or not isinstance(submitted, Submission) or submitted.train is None:
            return
        address = submitted.train.data_url
        if (edited := EDITED.fullmatch(address)) is not None:
            check, until = edited["check"], self._clock() + job.policy.ttl / 1000
            if await self._kept_check(check, job.owner, until) is None:
                gone = (
                    f"the dataset of check {check}, which this job trains on, is not kept any more"
                )
                raise Invalid([f"{gone}: check it again, and submit the job with that check's id"])
        elif address.startswith(STORED) and not await self._store.exists(
            address.removeprefix(STORED)
        ):
            raise Invalid(
                ["the upload that this job trains on is not kept any more: submit it anew"]
            )

    async def _train(self, train: Train, owner: str, until: float, mistakes: list[str]) -> Train:
        field, base = "input.train.resume_ckpt_url", train.base
        source = await self._key_for(field, train.resume_ckpt_url, owner, mistakes)
        if base:
            base = await self._key_for("input.train.base", base, owner, mistakes)
        return replace(
            train,
            data_url=await self._dataset(train.data_url, owner, until, mistakes),
            resume_ckpt_url=source,
            base=base or _base_of(source, *await self._checkpoint_at(source)) or None,
        )

    async def _dataset(self, address: str, owner: str, until: float, mistakes: list[str]) -> str:
        """An upload's address and a check's id have no signature, so only their owner may use them.

        What a check has staged is kept for the job, which ends before ``until``.
        """
        field, upload_id = "input.train.data_url", self._uploads.id_in(address)
        if re.search(JOB_ID, address):
            key = await self._checked(address, owner, until)
            if key is None:
                wanted = "the id of a dataset check of yours that has completed and is still kept"
                mistakes.append(f"{field}: expected {wanted}, got {shown(address)}")
            return f"{STORED}{key}"
        if upload_id is None:
            return await self._key_for(field, address, owner, mistakes)
        upload = await self._uploads.find(upload_id, owner)
        if upload is None:
            kept = "an upload of yours that is still kept"
            mistakes.append(f"{field}: expected {kept}, got {shown(shown_url(address))}")
        elif upload.finished_at is None:
            there = f"{upload.received} of its {upload.bytes} bytes are here"
            mistakes.append(f"{field}: expected an upload that is finished; of this one {there}")
        return f"{STORED}{list_key(upload_id)}"

    async def _checked(self, check_id: str, owner: str, until: float) -> str | None:
        """The key of an object that names what a check has staged, and how it was edited since."""
        check = await self._kept_check(check_id, owner, until)
        whole = await self._repository.with_edits(check) if check else None
        if whole is None or whole.kept is None:
            return None
        edited = EditedDataset(dataset=whole.kept.dataset, edits=whole.edits)
        return await put_value(self._store, check_id, msgspec.json.encode(edited), set())

    async def _kept_check(self, check_id: str, owner: str, until: float) -> Job | None:
        """A check of the owner, whose dataset is kept until then; None: there is none."""
        now = self._clock()
        keep = partial(keep_for, owner=owner, until=until, now=now)
        check = await self._repository.change(check_id, keep)
        if check is None or check.owner != owner or check.kept is None or check.kept.until < now:
            return None
        return check

    async def _model(self, model: ModelSource, owner: str, mistakes: list[str]) -> ModelSource:
        """The model with what its job's record knows about it, if a job has made it."""
        keys = {
            field: await self._key_for(field, address, owner, mistakes)
            for field, address in model.named.items()
        }
        base = keys.pop("input.base", "")
        first, *others = [(key, await self._checkpoint_at(key)) for key in keys.values()]
        source, (job, checkpoint) = first
        return replace(
            model,
            source=source,
            base=base or _base_of(source, job, checkpoint),
            clip_skip=clip_skip_of(job) if job else 0,
            name=checkpoint.name if checkpoint else "",
            sha256=checkpoint.sha256 if checkpoint else "",
            loras=tuple(
                replace(each, source=key, name=found.name if found else "")
                for each, (key, (_, found)) in zip(model.loras, others, strict=True)
            ),
        )

    async def _checkpoint_at(self, address: str) -> tuple[Job | None, Artifact | None]:
        """The job that has made what lies under a key of the store, and the checkpoint there."""
        key = address.removeprefix(STORED)
        job = await self._job_of(key) if key != address else None
        if job is None or key == job.model:
            return job, job.checkpoint if job else None
        every = (job.checkpoint, *(each.artifact for each in job.checkpoints))
        return job, next((each for each in every if each and each.key == key), None)

    async def _key_for(self, field: str, address: str, owner: str, mistakes: list[str]) -> str:
        if address.startswith(f"{self._public_url}/"):
            key = await self._linked(address, owner)
            wanted = "a link of this service to a file of yours that has not ended"
        elif re.search(JOB_ID, address):
            job = await self._repository.get(address)
            key = job.model if job and job.owner == owner else None
            wanted = "the id of a job of yours that has a model"
        else:
            return address
        if key is None:
            mistakes.append(f"{field}: expected {wanted}, got {shown(shown_url(address))}")
            return address
        return f"{STORED}{key}"

    async def _linked(self, address: str, owner: str) -> str | None:
        """The key of a valid signed link, which must belong to the owner if it is a job's."""
        parts = urlsplit(address.removeprefix(self._public_url))
        query = parse_qs(parts.query)
        key = unquote(parts.path).removeprefix("/files/")
        expires, signature = query.get("expires", [""])[0], query.get("signature", [""])[0]
        if not expires.isdecimal() or not link_holds(
            self._key, key, int(expires[:20]), signature, self._clock()
        ):
            return None
        job = await self._job_of(key)
        return None if key.startswith(JOBS) and (job is None or job.owner != owner) else key

    async def _job_of(self, key: str) -> Job | None:
        """The job that a store key belongs to."""
        job_id = key.removeprefix(JOBS).partition("/")[0]
        if not key.startswith(JOBS) or (job := await self._repository.get(job_id)) is None:
            return None
        return await self._presenter.whole(job, ["checkpoints"])


def _base_of(address: str, job: Job | None, checkpoint: Artifact | None) -> str:
    """The model that a LoRA's file is for, which a job has made; empty: it is no such file.

    A job's model comes with it. Its files alone do not, and would be put on the deployment's.
    """
    if job is None or checkpoint is None or address == f"{STORED}{job.model}":
        return ""
    staged = decode(job.stages["training"].trigger)
    if isinstance(staged, DatasetStaged) and staged.train.lora_rank is not None:
        return f"{STORED}{staged.lora_base or staged.base_model}"
    return ""


def keep_for(job: Job, owner: str, until: float, now: float) -> Step:
    """Keep a check's dataset for another job, if it is of the same owner."""
    return keep_dataset(job, until, now) if job.owner == owner else Step(job)


async def jobs_needing(jobs: JobStore, owner: str, prefix: str, most: int) -> list[str]:
    """Ids of an owner's live jobs that have yet to read what is under a prefix of the store.

    The newest come first; not many more than ``most`` are looked for.

    Raises:
        Unavailable: the database does not answer.
    """
    ids: list[str] = []
    before: tuple[float, str] | None = None
    while rows := await jobs.newest(owner=owner, statuses=LIVE, before=before, limit=PAGE):
        for row in rows:
            needed = list(_needed(row))
            needed += [base async for base in _bases(jobs, needed)]
            ids += [row.id] if any(key.startswith(prefix) for key in needed) else []
        if len(ids) > most:
            break
        before = rows[-1].created_at, rows[-1].id
    return ids


async def _bases(jobs: JobStore, needed: Iterable[str]) -> AsyncIterator[str]:
    """Prefixes of the models that LoRAs among what a job needs share files with."""
    for job_id in {key.split("/")[1] for key in needed if key.startswith(JOBS)}:
        if (row := await jobs.get(job_id)) is None:
            continue
        try:
            base = read(row).lora_base
        except msgspec.DecodeError:
            log.exception("cannot_judge", job=job_id)
            continue
        if base:
            yield f"{base}/"


def _needed(row: StoredJob) -> Iterator[str]:
    """Keys and prefixes in the store that a job's open stages are told to read."""
    try:
        triggers = [decode(each.trigger) for each in read(row).stages.values() if each.open]
    except msgspec.DecodeError:  # it must not keep its owner from deleting others
        log.exception("cannot_judge", job=row.id)
        return
    for trigger in triggers:
        match trigger:
            case Submission(train=train, model=model):
                of_train = (train.data_url, train.resume_ckpt_url, train.base) if train else ()
                for address in (*of_train, *(model.named.values() if model else ())):
                    yield (address or "").removeprefix(STORED)
            case DatasetStaged(base_model=prefix) | ModelStaged(model=prefix):
                yield f"{prefix}/"
                if trigger.lora_base:
                    yield f"{trigger.lora_base}/"
            case CheckpointFinal(model=prefix):  # its own, which may be a LoRA
                yield f"{prefix}/"
