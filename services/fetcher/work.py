"""The fetcher's work: stage a job's dataset and model before any GPU time is spent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec
import structlog
from msgspec.structs import replace

from services.fetcher.download import download
from services.fetcher.estimate import estimate, memory_warnings
from services.fetcher.limits import dataset_limits, model_limits
from services.fetcher.loras import added_loras, check_weights, going_on_with, idle_weight
from services.fetcher.models.stage import ModelReference, ModelStager
from services.fetcher.models.stored_model import StagedModel, fetch_tokenizer, stored_parameters
from services.fetcher.order import (
    DescribeModel,
    ModelDescription,
    ParseDataset,
    ParsedDataset,
    ParseEditedDataset,
)
from services.fetcher.parser import Parser, Reader, check_left
from services.fetcher.progress_meter import ProgressMeter
from shared.concurrency import in_thread
from shared.dataset.edits import EDITED, EditedDataset
from shared.dataset.manifest import Report
from shared.dataset.plan import job_seed
from shared.dataset.speed import DEVICE_KEY, ProbedDevice, Speed, speed_key
from shared.errors import NotFound, Refused
from shared.messaging.messages import (
    AnyMessage,
    DatasetStaged,
    Interruption,
    ModelStaged,
    Progressed,
    Stage,
    StagingInterrupted,
    StagingProgressed,
    StagingStarted,
    Started,
    Submission,
)
from shared.messaging.topology import FETCHER
from shared.network.addresses import shown_url
from shared.ports import ObjectStore
from shared.request import STORED, Inference, ModelSource, Train
from shared.scratch import scratch_folder
from shared.storage.folders import download_folder, upload_folder
from shared.storage.uploads import ARCHIVE_BYTES, UPLOADS, download_upload
from shared.worker.order import Order

DATASET, MODEL, PAGES, TOKENIZER = "dataset", "model", "pages", "tokenizer"
"""Inside the scratch folder: images with their manifest; the model's files; what people look at; of
a model that was in the store already."""
BASE_FIELD = "input.base"

POLL_SECONDS = 0.5

log = structlog.get_logger()
Measured = TypeVar("Measured", Speed, ProbedDevice)


class Workplace(NamedTuple):
    """What all steps of one order share."""

    order: Order
    scratch: Path
    """An empty folder, removed with the order."""
    reader: Reader


class StoredDataset(NamedTuple):
    """Prefixes in the store: of the dataset, and of the pages that tell of its pictures."""

    dataset: str
    pictures: str
    dataset_bytes: int
    pictures_bytes: int


class FetcherWork:
    """Turns ``staging.due`` into ``dataset.staged``, or ``model.staged`` for a finished model."""

    queue = FETCHER
    started: type[Started] = StagingStarted
    progressed: type[Progressed] = StagingProgressed
    interrupted: type[Interruption] = StagingInterrupted
    graceful = False

    def __init__(
        self,
        store: ObjectStore,
        models: ModelStager,
        parser: Parser,
        *,
        scratch: Path,
        allowed: frozenset[str],
        concurrency: int = 4,
        patience: float = 0.0,
    ) -> None:
        """For ``patience`` seconds a report waits for what a trainer is about to tell of itself."""
        self.concurrency = concurrency
        self._impatient_at = time.monotonic() + patience
        self._store = store
        self._models = models
        self._parser = parser
        self._scratch = scratch
        self._allowed = allowed

    def stage_of(self, message: AnyMessage) -> Stage | None:
        return "staging" if isinstance(message, Submission) else None

    async def prepare(self) -> str:
        """Have a child ready to read files."""
        await self._parser.prepare()
        return ""

    async def close(self) -> None:
        """End the child that waits."""
        await self._parser.close()

    async def perform(self, order: Order) -> DatasetStaged | ModelStaged:
        """Stage what the job asks for; the scratch folder is always removed."""
        async with (
            scratch_folder(self._scratch, order.name) as scratch,
            self._parser.reader() as reader,
        ):
            at = Workplace(order, scratch, reader)
            match order.message:
                case Submission(train=Train() as train, inference=inference):
                    return await self._stage_for_training(at, train, inference)
                case Submission(model=ModelSource() as model, inference=inference):
                    return await self._stage_for_inference(at, model, inference)
            raise TypeError(f"{type(order.message).__name__} does not ask for staging")

    async def _stage_for_training(
        self, at: Workplace, train: Train, inference: tuple[Inference, ...]
    ) -> DatasetStaged:
        reference = ModelReference(
            train.resume_ckpt_url,
            "input.train.resume_ckpt_url",
            train.hf_repo_subfolder,
            base=train.base,
            base_field="input.train.base",
        )
        parsed = await self._parse_dataset(at, train)
        base = await self._stage_model(at, "the base model", reference)
        train = going_on_with(train, base.lora)
        check_weights(inference, 0 if train.lora_rank is None else 1)
        report = await self._with_model_facts(at, parsed.report, train, base)
        report = replace(
            report,
            warnings=[*report.warnings, *base.warnings],
            warnings_count=report.warnings_count + len(base.warnings),
        )
        staged = await self._store_dataset(at, parsed)
        log.info(
            "dataset_staged",
            job=at.order.job,
            images=report.images,
            skipped=report.skipped_count,
        )
        return DatasetStaged(
            **at.order.stamp(),
            train=train,
            inference=inference,
            dataset=staged.dataset,
            base_model=base.prefix,
            report=report.plain(),
            pictures=staged.pictures,
            dataset_bytes=staged.dataset_bytes,
            pictures_bytes=staged.pictures_bytes,
            model_bytes=base.bytes,
            lora_base=base.lora_base,
        )

    async def _stage_for_inference(
        self, at: Workplace, model: ModelSource, inference: tuple[Inference, ...]
    ) -> ModelStaged:
        first, *others = (
            ModelReference(source, field)
            for field, source in model.named.items()
            if field != BASE_FIELD
        )
        first = first._replace(base=model.base or None, base_field=BASE_FIELD)
        staged = await self._stage_model(at, "the model", first, others)
        loras = added_loras(model, staged.loras)
        check_weights(inference, len(loras))
        return ModelStaged(
            **at.order.stamp(),
            inference=inference,
            model=staged.prefix,
            warnings=(*staged.warnings, *idle_weight(model, staged.loras)),
            model_bytes=staged.bytes,
            clip_skip=model.clip_skip,
            name=model.name,
            sha256=model.sha256,
            loras=loras,
            lora_base=staged.lora_base,
        )

    async def _parse_dataset(self, at: Workplace, train: Train) -> ParsedDataset:
        """Leave the dataset and the pages that tell of it in the scratch folder."""
        order = at.order
        await in_thread((at.scratch / PAGES).mkdir)
        is_checked = EDITED.fullmatch(train.data_url)
        fetch = self._fetch_checked if is_checked else self._fetch_archive
        task, size = await fetch(at, train)
        return await at.reader.parse(
            task, dataset_limits(size), ParsedDataset,
            keepalive=order.keepalive, on_progress=order.progress,
        )  # fmt: skip

    async def _store_dataset(self, at: Workplace, parsed: ParsedDataset) -> StoredDataset:
        """Once the child is gone, which could still put something else in a file's place."""
        order = at.order
        await at.reader.close()
        await in_thread(check_left, at.scratch / DATASET, parsed.files)
        await in_thread(check_left, at.scratch / PAGES, parsed.pages)
        order.progress(phase="storing the dataset")
        attempt = f"jobs/{order.job}/{{}}/{order.grant.attempt}"
        dataset, pages = f"{attempt.format('staging')}/dataset", attempt.format("pictures")
        stored = await upload_folder(
            self._store, at.scratch / DATASET, dataset, keepalive=order.keepalive
        )
        stored_pages = await upload_folder(
            self._store, at.scratch / PAGES, pages, keepalive=order.keepalive
        )
        return StoredDataset(dataset, pages, stored.bytes, stored_pages.bytes)

    async def _stage_model(
        self,
        at: Workplace,
        shown: str,
        reference: ModelReference,
        loras: Sequence[ModelReference] = (),
    ) -> StagedModel:
        meter = ProgressMeter(f"downloading {shown}", at.order.progress, at.order.keepalive)
        at.order.progress(phase=f"staging {shown}", bytes=0, bytes_total=None)
        await in_thread((at.scratch / MODEL).mkdir)
        own = f"jobs/{at.order.job}/staging/{at.order.grant.attempt}/model"
        return await self._models.stage_together(
            reference, loras, at.scratch / MODEL, meter, at.reader, own=own
        )

    async def _with_model_facts(
        self, at: Workplace, report: Report, train: Train, base: StagedModel
    ) -> Report:
        """Add what depends on the base model: tokens, bytes and minutes."""
        folder = base.links or at.scratch / TOKENIZER
        parameters: dict[str, int] | None = None
        if base.links is None:
            parameters = await stored_parameters(self._store, base.prefix)
            await fetch_tokenizer(self._store, base.prefix, folder)
        task = DescribeModel(
            folder=str(folder),
            has_weights=parameters is None,
            dataset=str(at.scratch / DATASET),
            pages=str(at.scratch / PAGES),
            report=report,
        )
        described = await at.reader.parse(
            task, model_limits(0), ModelDescription, keepalive=at.order.keepalive
        )
        parameters = parameters or described.parameters or {}
        device = await self._device(at.order)
        measured = None
        if device:
            whole = base.lora_base or base.prefix
            key = speed_key(device.gpu, whole, lora=train.lora_rank is not None)
            measured = await self._remembered(key, Speed)
        report, lack = described.report, memory_warnings(train, parameters, device)
        return replace(
            report,
            estimate=estimate(train, parameters, report.megapixels, measured, device),
            warnings=[*lack, *report.warnings],
            warnings_count=report.warnings_count + len(lack),
        )

    async def _device(self, order: Order) -> ProbedDevice | None:
        """The trainers' device; one that has just started tells of it in some seconds."""
        while (device := await self._remembered(DEVICE_KEY, ProbedDevice)) is None:
            if time.monotonic() >= self._impatient_at:
                break
            order.keepalive()
            await asyncio.sleep(POLL_SECONDS)
        return device

    async def _remembered(self, key: str, kind: type[Measured]) -> Measured | None:
        """What a trainer has measured; None: nothing yet, or nothing that can be read."""
        try:
            return msgspec.json.decode(await self._store.get(key), type=kind)
        except NotFound:
            return None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            log.warning("speed_unreadable", key=key, reason=str(error))
            return None

    async def _fetch_archive(self, at: Workplace, train: Train) -> tuple[ParseDataset, int]:
        """Download the archive from the user's URL, or from our store; also its bytes."""
        archive, folder, url = at.scratch / "data.zip", at.scratch / DATASET, train.data_url
        await in_thread(folder.mkdir)
        if url.startswith(STORED):
            await self._fetch_upload(at.order, url.removeprefix(STORED), archive)
        else:
            meter = ProgressMeter("downloading the dataset", at.order.progress, at.order.keepalive)
            await download(
                url, archive, allowed=self._allowed, limit=ARCHIVE_BYTES, on_bytes=meter.bytes
            )
        task = ParseDataset(
            archive=str(archive),
            folder=str(folder),
            train=train,
            seed=job_seed(at.order.job, train),
            pages=str(at.scratch / PAGES),
            shown="the upload" if url.startswith(STORED) else shown_url(url),
        )
        return task, (await in_thread(archive.stat)).st_size

    async def _fetch_upload(self, order: Order, key: str, archive: Path) -> None:
        try:
            if key.startswith(UPLOADS):
                await download_upload(self._store, key, archive, keepalive=order.keepalive)
            else:
                await self._store.download(key, archive, keepalive=order.keepalive)
        except NotFound:
            raise Refused("input.train.data_url: the upload is not in the store any more") from None
        except Refused as error:
            raise Refused(f"input.train.data_url: {error}") from None

    async def _fetch_checked(self, at: Workplace, train: Train) -> tuple[ParseEditedDataset, int]:
        """Get what a check has staged; also its bytes."""
        order, folder = at.order, at.scratch / DATASET
        order.progress(phase="fetching the checked dataset")
        try:
            key = train.data_url.removeprefix(STORED)
            edited = msgspec.json.decode(await self._store.get(key), type=EditedDataset)
            found = await download_folder(
                self._store, edited.dataset, folder, keepalive=order.keepalive
            )
        except NotFound:
            raise Refused(
                "input.train.data_url: the checked dataset is not kept any more; check it again"
            ) from None
        task = ParseEditedDataset(
            folder=str(folder),
            edits=edited.edits,
            train=train,
            seed=job_seed(order.job, train),
            pages=str(at.scratch / PAGES),
            shown="the checked dataset",
        )
        return task, found.bytes
