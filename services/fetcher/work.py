"""The fetcher's work: stage a job's dataset and model before any GPU time is spent."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import msgspec
import structlog
from msgspec.structs import replace

from services.fetcher.download import download
from services.fetcher.estimate import estimate
from services.fetcher.limits import dataset_limits, model_limits
from services.fetcher.models.stage import LINKS_FOLDER, ModelReference, ModelStager
from services.fetcher.models.stored_model import fetch_tokenizer, stored_parameters
from services.fetcher.order import DescribeModel, ModelDescription, ParseDataset, ParsedDataset
from services.fetcher.parser import Parser, Reader, check_left
from services.fetcher.progress_meter import ProgressMeter
from shared.concurrency import in_thread
from shared.dataset.manifest import Report
from shared.dataset.plan import job_seed
from shared.dataset.speed import SPEED_KEY, Speed
from shared.errors import NotFound, Refused
from shared.messaging.messages import (
    AnyMessage,
    DatasetStaged,
    Interruption,
    JobSubmitted,
    ModelStaged,
    Progressed,
    Stage,
    StagingInterrupted,
    StagingProgressed,
    StagingStarted,
    Started,
)
from shared.messaging.topology import FETCHER
from shared.network.addresses import shown_url
from shared.ports import ObjectStore
from shared.request import STORED, Inference, ModelSource, Train
from shared.scratch import scratch_folder
from shared.storage.folders import upload_folder
from shared.storage.uploads import ARCHIVE_BYTES, UPLOADS, download_upload
from shared.worker.order import Order

DATASET, MODEL = "dataset", "model"
"""Inside the scratch folder: the images with their manifest; the model's files."""

log = structlog.get_logger()


class Workplace(NamedTuple):
    """What all steps of one order share."""

    order: Order
    scratch: Path
    """An empty folder, removed with the order."""
    reader: Reader


class FetcherWork:
    """Turns ``job.submitted`` into ``dataset.staged``, or ``model.staged`` for a finished model."""

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
    ) -> None:
        self.concurrency = concurrency
        self._store = store
        self._models = models
        self._parser = parser
        self._scratch = scratch
        self._allowed = allowed

    def stage_of(self, message: AnyMessage) -> Stage | None:
        return "staging" if isinstance(message, JobSubmitted) else None

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
                case JobSubmitted(train=Train() as train, inference=inference):
                    return await self._stage_for_training(at, train, inference)
                case JobSubmitted(model=ModelSource() as model, inference=inference):
                    return await self._stage_for_inference(at, model, inference)
            raise TypeError(f"{type(order.message).__name__} does not ask for staging")

    async def _stage_for_training(
        self, at: Workplace, train: Train, inference: tuple[Inference, ...]
    ) -> DatasetStaged:
        reference = ModelReference(
            train.resume_ckpt_url, "input.train.resume_ckpt_url", train.hf_repo_subfolder
        )
        dataset, report = await self._stage_dataset(at, train)
        base = await self._stage_model(at, "the base model", reference)
        report = await self._with_model_facts(at, report, train, base)
        return DatasetStaged(
            **at.order.stamp(),
            train=train,
            inference=inference,
            dataset=dataset,
            base_model=base,
            report=report.plain(),
        )

    async def _stage_for_inference(
        self, at: Workplace, model: ModelSource, inference: tuple[Inference, ...]
    ) -> ModelStaged:
        reference = ModelReference(model.source, "input.model")
        return ModelStaged(
            **at.order.stamp(),
            inference=inference,
            model=await self._stage_model(at, "the model", reference),
            clip_skip=model.clip_skip,
            name=model.name,
            sha256=model.sha256,
        )

    async def _stage_dataset(self, at: Workplace, train: Train) -> tuple[str, Report]:
        order, archive, folder = at.order, at.scratch / "data.zip", at.scratch / DATASET
        await in_thread(folder.mkdir)
        await self._fetch_archive(order, train.data_url, archive)
        task = ParseDataset(
            archive=str(archive),
            folder=str(folder),
            train=train,
            seed=job_seed(order.job, train),
            shown="the upload" if train.data_url.startswith(STORED) else shown_url(train.data_url),
        )
        limits = dataset_limits((await in_thread(archive.stat)).st_size)
        parsed = await at.reader.parse(
            task, limits, ParsedDataset, keepalive=order.keepalive, on_progress=order.progress
        )
        await in_thread(check_left, folder, parsed.files)
        order.progress(phase="storing the dataset")
        prefix = f"jobs/{order.job}/staging/{order.grant.attempt}/dataset"
        await upload_folder(self._store, folder, prefix, keepalive=order.keepalive)
        report = parsed.report
        log.info(
            "dataset_staged", job=order.job, images=report.images, skipped=report.skipped_count
        )
        return prefix, report

    async def _stage_model(self, at: Workplace, shown: str, reference: ModelReference) -> str:
        meter = ProgressMeter(f"downloading {shown}", at.order.progress, at.order.keepalive)
        at.order.progress(phase=f"staging {shown}", bytes=0, bytes_total=None)
        await in_thread((at.scratch / MODEL).mkdir)
        return await self._models.stage(reference, at.scratch / MODEL, meter, at.reader)

    async def _with_model_facts(
        self, at: Workplace, report: Report, train: Train, base: str
    ) -> Report:
        """Add what depends on the base model: tokens, bytes and minutes."""
        folder = at.scratch / MODEL / LINKS_FOLDER
        parameters: dict[str, int] | None = None
        if not await in_thread(folder.is_dir):  # it was in our store already
            parameters = await stored_parameters(self._store, base)
            await fetch_tokenizer(self._store, base, folder)
        task = DescribeModel(
            folder=str(folder),
            has_weights=parameters is None,
            dataset=str(at.scratch / DATASET),
            report=report,
        )
        described = await at.reader.parse(
            task, model_limits(0), ModelDescription, keepalive=at.order.keepalive
        )
        parameters = parameters or described.parameters or {}
        speed = await self._measured_speed()
        report = described.report
        return replace(report, estimate=estimate(train, parameters, report.megapixels, speed))

    async def _measured_speed(self) -> Speed | None:
        """The latest training's speed; None: there is none yet."""
        try:
            return msgspec.json.decode(await self._store.get(SPEED_KEY), type=Speed)
        except NotFound:
            return None
        except msgspec.DecodeError as error:
            log.warning("speed_unreadable", key=SPEED_KEY, reason=str(error))
            return None

    async def _fetch_archive(self, order: Order, url: str, archive: Path) -> None:
        """Download the archive from the user's URL, or from our store."""
        if not url.startswith(STORED):
            meter = ProgressMeter("downloading the dataset", order.progress, order.keepalive)
            await download(
                url, archive, allowed=self._allowed, limit=ARCHIVE_BYTES, on_bytes=meter.bytes
            )
            return
        key = url.removeprefix(STORED)
        try:
            if key.startswith(UPLOADS):
                await download_upload(self._store, key, archive, keepalive=order.keepalive)
            else:
                await self._store.download(key, archive, keepalive=order.keepalive)
        except NotFound:
            raise Refused("input.train.data_url: the upload is not in the store any more") from None
        except Refused as error:
            raise Refused(f"input.train.data_url: {error}") from None
