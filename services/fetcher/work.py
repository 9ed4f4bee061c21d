"""The fetcher's work: stage a job's dataset and model before any GPU time is spent."""

from __future__ import annotations

from pathlib import Path

import msgspec
import structlog
from msgspec.structs import replace

from services.fetcher.datasets.archive import unpack
from services.fetcher.datasets.estimate import estimate
from services.fetcher.datasets.report import build_report, captions_of, check_images, with_tokens
from services.fetcher.download import download
from services.fetcher.models.stage import LINKS_FOLDER, ModelReference, ModelStager
from services.fetcher.models.tokenizer_and_size import (
    count_parameters,
    count_tokens,
    fetch_tokenizer,
    stored_parameters,
)
from services.fetcher.progress_meter import ProgressMeter
from shared.concurrency import in_thread
from shared.dataset.manifest import Manifest, Report
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

log = structlog.get_logger()


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
        *,
        scratch: Path,
        allowed: frozenset[str],
        concurrency: int = 4,
    ) -> None:
        self.concurrency = concurrency
        self._store = store
        self._models = models
        self._scratch = scratch
        self._allowed = allowed

    def stage_of(self, message: AnyMessage) -> Stage | None:
        return "staging" if isinstance(message, JobSubmitted) else None

    async def prepare(self) -> str:
        return ""

    async def close(self) -> None:
        """Nothing is kept between orders."""

    async def perform(self, order: Order) -> DatasetStaged | ModelStaged:
        """Stage what the job asks for; the scratch folder is always removed."""
        async with scratch_folder(self._scratch, order.name) as scratch:
            match order.message:
                case JobSubmitted(train=Train() as train, inference=inference):
                    return await self._stage_for_training(order, train, inference, scratch)
                case JobSubmitted(model=ModelSource() as model, inference=inference):
                    return await self._stage_for_inference(order, model, inference, scratch)
            raise TypeError(f"{type(order.message).__name__} does not ask for staging")

    async def _stage_for_training(
        self, order: Order, train: Train, inference: tuple[Inference, ...], scratch: Path
    ) -> DatasetStaged:
        reference = ModelReference(
            train.resume_ckpt_url, "input.train.resume_ckpt_url", train.hf_repo_subfolder
        )
        dataset, manifest, report = await self._stage_dataset(order, train, scratch)
        base = await self._stage_model(order, "the base model", reference, scratch / "base")
        report = await self._with_model_facts(report, manifest, train, base, scratch / "base")
        return DatasetStaged(
            **order.stamp(),
            train=train,
            inference=inference,
            dataset=dataset,
            base_model=base,
            report=report.plain(),
        )

    async def _stage_for_inference(
        self, order: Order, model: ModelSource, inference: tuple[Inference, ...], scratch: Path
    ) -> ModelStaged:
        reference = ModelReference(model.source, "input.model")
        return ModelStaged(
            **order.stamp(),
            inference=inference,
            model=await self._stage_model(order, "the model", reference, scratch / "model"),
            clip_skip=model.clip_skip,
            name=model.name,
            sha256=model.sha256,
        )

    async def _stage_dataset(
        self, order: Order, train: Train, scratch: Path
    ) -> tuple[str, Manifest, Report]:
        archive, folder = scratch / "data.zip", scratch / "dataset"
        shown = "the upload" if train.data_url.startswith(STORED) else shown_url(train.data_url)
        await in_thread(folder.mkdir)
        await self._fetch_archive(order, train.data_url, archive)
        order.progress(phase="unpacking")
        unpacked = await unpack(archive, folder, shown=shown, keepalive=order.keepalive)
        await in_thread(archive.unlink)
        checked = await check_images(
            unpacked, folder, shown=shown,
            keepalive=lambda done, of: order.progress(phase="checking images", images=done, of=of),
        )  # fmt: skip
        manifest, report = await in_thread(
            build_report, checked, train, job_seed(order.job, train), shown
        )
        await in_thread(manifest.write, folder)
        order.progress(phase="storing the dataset")
        prefix = f"jobs/{order.job}/staging/{order.grant.attempt}/dataset"
        await upload_folder(self._store, folder, prefix, keepalive=order.keepalive)
        log.info(
            "dataset_staged", job=order.job, images=report.images, skipped=report.skipped_count
        )
        return prefix, manifest, report

    async def _stage_model(
        self, order: Order, shown: str, reference: ModelReference, scratch: Path
    ) -> str:
        meter = ProgressMeter(f"downloading {shown}", order.progress, order.keepalive)
        order.progress(phase=f"staging {shown}", bytes=0, bytes_total=None)
        await in_thread(scratch.mkdir)
        return await self._models.stage(reference, scratch, meter)

    async def _with_model_facts(
        self, report: Report, manifest: Manifest, train: Train, base: str, scratch: Path
    ) -> Report:
        """Add what depends on the base model: tokens, bytes and minutes."""
        folder = scratch / LINKS_FOLDER
        if await in_thread(folder.is_dir):
            parameters = await in_thread(count_parameters, folder)
        else:  # the model was in our store already, so nothing was downloaded
            parameters = await stored_parameters(self._store, base)
            await fetch_tokenizer(self._store, base, folder)
        counts = await in_thread(count_tokens, folder, captions_of(manifest))
        report = with_tokens(report, manifest, counts)
        speed = await self._measured_speed()
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
