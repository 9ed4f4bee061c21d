"""A whole staging: from ``staging.due`` to ``dataset.staged`` or ``model.staged``."""

import asyncio
import hashlib
import io
import zipfile
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from msgspec.structs import replace
from PIL import Image
from safetensors.torch import save_file

from services.fetcher import progress_meter as meters
from services.fetcher import work as fetcher_work
from services.fetcher.models.configured_model import TINY_FOLDER
from services.fetcher.models.stage import ModelStager
from services.fetcher.progress_meter import ProgressMeter
from services.fetcher.work import DATASET as DATASET_FOLDER
from services.fetcher.work import PAGES, FetcherWork
from shared.adapters.folder import FolderStore
from shared.adapters.memory import MemoryBroker
from shared.dataset.manifest import Manifest, Picture, Report
from shared.dataset.plan import EpochConfig, job_seed, total_steps
from shared.dataset.speed import DEVICE_KEY, ProbedDevice, speed_key
from shared.diffusion.loading import load
from shared.errors import Passing, Refused, Unavailable
from shared.messaging.messages import (
    CheckpointFinal,
    ClaimGranted,
    DatasetStaged,
    ModelStaged,
    StagingDue,
    encode,
)
from shared.ports import UploadPart
from shared.request import (
    AddedLora,
    Inference,
    LoraShape,
    LoraSource,
    ModelSource,
    Train,
    Validation,
)
from shared.storage.folders import download_folder, folder_exists, read_manifest, upload_folder
from shared.storage.manifest import LORA, LORA_SHAPE, PARAMETERS
from shared.storage.uploads import list_key, write_list
from shared.worker.order import Order
from tests.support.in_process_parser import InProcessParser, InProcessReader
from tests.support.models import make_random_model
from tests.support.servers.process import HOST
from tests.support.servers.web import Page, Web
from tests.support.staging import tensors_of, zipped

JOB = "7b1c"
CAT = (Inference(prompt="a cat"),)
TINY_PARAMETERS = 1_895_156 + 447_623 + 242_368
"""UNet, VAE, text encoder."""


def drawn(width: int, height: int, kind: str = "PNG", orientation: int = 1) -> bytes:
    image, exif, buffer = (
        Image.new("RGB", (width, height), (9, 99, 199)),
        Image.Exif(),
        io.BytesIO(),
    )
    exif[0x0112] = orientation
    image.save(buffer, kind, exif=exif)
    return buffer.getvalue()


def zip_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zipped:
        for name, content in files.items():
            zipped.writestr(name, content)
    return buffer.getvalue()


DATASET = {
    "cats/a cat, sitting_1.png": drawn(600, 600),
    "cats/a cat, lying_2.jpg": drawn(1200, 800, "JPEG", 6),
    "dogs/x.webp": drawn(900, 500, "WEBP"),
    "dogs/x.txt": b"a dog, running",
    "dogs/broken.png": drawn(600, 600)[:50],
    "readme.md": b"hello",
}


class Staging:
    """A fetcher and its store."""

    def __init__(self, folder: Path) -> None:
        self.store = FolderStore(folder / "store", public_url="http://x", key="k" * 32)
        self.scratch = folder / "scratch"
        self.parser = InProcessParser()
        self.work = self.fetcher(frozenset({HOST}))
        self.reported: list[dict[str, Any]] = []
        self.begun = asyncio.Event()

    def fetcher(self, allowed: frozenset[str], patience: float = 0.0) -> FetcherWork:
        home = self.scratch.parent
        models = ModelStager(self.store, configured="tiny", home=home, allowed=allowed)
        return FetcherWork(
            self.store, models, self.parser, scratch=self.scratch, allowed=allowed,
            patience=patience,
        )  # fmt: skip

    def order(
        self,
        *,
        attempt: int = 1,
        model: ModelSource | None = None,
        inference: Sequence[Inference] = CAT,
        **train: Any,
    ) -> Order:
        """A granted claim for the job's staging."""
        message = StagingDue(
            job=JOB,
            run=1,
            train=None if model else Train(**train),
            model=model,
            inference=tuple(inference),
        )
        bus: Any = MemoryBroker().bus("fetcher/here")
        nobody: Any = None
        order = Order(bus, self.store, nobody, message, "staging")
        order.granted = ClaimGranted(job=JOB, stage="staging", claim=order.claim, attempt=attempt)
        progress = order.progress

        def reported(**numbers: Any) -> None:
            self.reported.append(numbers)
            self.begun.set()
            progress(**numbers)

        order.progress = reported  # type: ignore[method-assign]
        return order

    async def perform(self, **train: Any) -> DatasetStaged:
        return await self.perform_order(self.order(**train))

    async def perform_order(self, order: Order) -> DatasetStaged:
        staged = await self.work.perform(order)
        assert isinstance(staged, DatasetStaged)
        return staged

    async def perform_model(
        self, source: str, *, inference: Sequence[Inference] = CAT, **known: Any
    ) -> ModelStaged:
        model = ModelSource(source=source, **known)
        staged = await self.work.perform(self.order(model=model, attempt=2, inference=inference))
        assert isinstance(staged, ModelStaged)
        return staged


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    return Staging(tmp_path)


async def test_a_job_is_staged_with_its_images_captions_and_base_model(
    staging: Staging, web: Web, tmp_path: Path
) -> None:
    url = web.serve("/data.zip", zip_of(DATASET))

    staged = await staging.perform(data_url=url, batch_size=2, resolution=512)

    assert staged.dataset == "jobs/7b1c/staging/1/dataset"
    await download_folder(staging.store, staged.dataset, tmp_path / "got")
    pictures = Manifest.read(tmp_path / "got").pictures
    assert [(p.name, p.caption, p.width, p.height) for p in pictures] == [
        ("cats/a cat, sitting_1.png", "a cat, sitting", 600, 600),
        ("cats/a cat, lying_2.jpg", "a cat, lying", 800, 1200),
        ("dogs/x.webp", "a dog, running", 900, 500),
    ]
    for picture in pictures:
        assert (tmp_path / "got" / picture.file).read_bytes() == DATASET[picture.name]
    assert await folder_exists(staging.store, staged.base_model)
    assert staged.base_model.startswith("cache/")


@pytest.mark.parametrize("folder", [DATASET_FOLDER, PAGES])
async def test_what_a_child_changes_as_long_as_it_lives_is_not_stored(
    staging: Staging, web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"not for users")

    async def close(_reader: InProcessReader) -> None:
        """The last moment."""
        [written] = staging.scratch.glob(f"*/{folder}")
        file = next(written.glob("000001.*"))
        file.unlink()
        file.symlink_to(secret)

    monkeypatch.setattr(InProcessReader, "close", close)
    with pytest.raises(Passing, match="other files than it names"):
        await staging.perform(data_url=web.serve("/data.zip", zip_of(DATASET)))
    assert [entry async for entry in staging.store.list("jobs/")] == []


async def test_the_fact_carries_the_job_on_and_the_report_along(staging: Staging, web: Web) -> None:
    order = staging.order(data_url=web.serve("/data.zip", zip_of(DATASET)), batch_size=2, attempt=3)

    staged = await staging.perform_order(order)

    assert (staged.job, staged.stage, staged.attempt) == (JOB, "staging", 3)
    assert (staged.claim, staged.worker) == (order.claim, "fetcher/here")
    assert isinstance(order.message, StagingDue)
    assert (staged.train, staged.inference) == (order.message.train, order.message.inference)
    assert staged.dataset == "jobs/7b1c/staging/3/dataset"
    assert staged.report["images"] == 3
    assert staged.report["captions"] == {
        "from_names": 2, "from_files": 1, "edited": 0, "missing": 0, "empty": 0, "over_long": 0
    }  # fmt: skip
    assert staged.report["buckets"] == {"512x512": 1, "384x640": 1, "640x384": 1}
    assert staged.report["short_buckets"] == {"512x512": 1, "384x640": 1, "640x384": 1}
    assert staged.report["steps_per_epoch"] == 3
    assert {entry["file"] for entry in staged.report["skipped"]} == {"dogs/broken.png", "readme.md"}
    assert staged.model_bytes == 0, "the deployment's own model is nobody's"
    assert len(encode(staged)) < 4000


async def test_the_report_estimates_before_training_what_the_job_will_take(
    staging: Staging, web: Web
) -> None:
    words = ", ".join(f"tag {number}" for number in range(40))
    files = DATASET | {"dogs/x.caption": f"a dog, {words}".encode()}
    url = web.serve("/data.zip", zip_of(files))
    await staging.store.put(DEVICE_KEY, b'{"gpu": "a card", "teraflops": 40.0}')

    first = await staging.perform(data_url=url, batch_size=2, max_epochs=100)
    await staging.store.put(
        speed_key("a card", first.base_model), b'{"gpu": "a card", "megapixels_per_second": 0.5}'
    )
    staged = await staging.perform(data_url=url, batch_size=2, max_epochs=100)

    assert first.report["estimate"]["rate"].endswith("on a card, by a test of 40 TFLOP/s")
    report = msgspec.convert(staged.report, Report)
    assert report.captions.over_long == 1
    assert report.over_long_captions == ["dogs/x.webp"]
    assert (report.steps, report.repeats) == (300, 3)
    pixels = 100 * 2 * (512 * 512 + 2 * 640 * 384)
    assert report.megapixels == pytest.approx(pixels / 1e6, abs=1e-3)
    assert report.estimate is not None
    assert report.estimate.minutes == pytest.approx(pixels / 1e6 / 0.5 / 60, abs=0.1)
    assert report.estimate.rate == "measured: 0.5 megapixels per second on a card"
    assert report.estimate.model_bytes == 2 * TINY_PARAMETERS


async def test_the_report_warns_of_a_card_without_room_for_the_training(
    staging: Staging, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_little(
        train: Train, parameters: dict[str, int], device: ProbedDevice | None
    ) -> list[str]:
        assert device is not None
        return [f"{train.resolution}, {sum(parameters.values())}, {device.memory_bytes}"]

    monkeypatch.setattr(fetcher_work, "memory_warnings", too_little)
    await staging.store.put(
        DEVICE_KEY, b'{"gpu": "a card", "teraflops": 40.0, "memory_bytes": 8000000000}'
    )

    staged = await staging.perform(data_url=web.serve("/data.zip", zip_of(DATASET)))

    assert staged.report["warnings"][0] == f"512, {TINY_PARAMETERS}, 8000000000"


@pytest.mark.parametrize("device", [None, b"{}", b'{"gpu": "x", "teraflops": 0}'])
async def test_without_a_device_that_is_known_the_minutes_are_not_known_either(
    staging: Staging, web: Web, device: bytes | None
) -> None:
    if device is not None:
        await staging.store.put(DEVICE_KEY, device)

    staged = await staging.perform(data_url=web.serve("/data.zip", zip_of(DATASET)))

    assert staged.report["estimate"]["rate"].startswith("not known yet: ")
    assert staged.report["estimate"]["minutes"] is None


async def test_the_first_report_waits_for_a_trainer_that_starts_with_its_fetcher(
    staging: Staging, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = asyncio.Event()
    remembered = FetcherWork._remembered

    async def told_after_a_question(work: FetcherWork, key: str, kind: Any) -> Any:
        found = await remembered(work, key, kind)
        if not asked.is_set():
            asked.set()
            await staging.store.put(DEVICE_KEY, b'{"gpu": "a card", "teraflops": 40.0}')
        return found

    monkeypatch.setattr(FetcherWork, "_remembered", told_after_a_question)
    staging.work = staging.fetcher(frozenset({HOST}), patience=60.0)

    staged = await staging.perform(data_url=web.serve("/data.zip", zip_of(DATASET)))

    assert "on a card" in staged.report["estimate"]["rate"]


async def test_an_earlier_job_s_model_gives_the_same_estimate_without_being_fetched(
    staging: Staging, web: Web, tmp_path: Path
) -> None:
    model = make_random_model(tmp_path / "model")
    await upload_folder(staging.store, model, "jobs/old/training/1/model")
    url = web.serve("/data.zip", zip_of(DATASET))

    staged = await staging.perform(data_url=url, resume_ckpt_url="store:jobs/old/training/1/model")

    assert staged.base_model == "jobs/old/training/1/model"
    parameters = sum(load(model).parameters.values())
    assert staged.report["estimate"]["model_bytes"] == 2 * parameters
    assert staged.report["captions"]["over_long"] == 0


async def test_a_job_that_names_a_lora_goes_on_with_its_shape_or_is_told_that_it_cannot(
    staging: Staging, web: Web, tmp_path: Path
) -> None:
    base, model = "jobs/old/training/1/model", "jobs/lora/training/1/model"
    files = await upload_folder(staging.store, make_random_model(tmp_path / "model"), base)
    shape = LoraShape(rank=4, alpha=2.0, conv_rank=1)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / LORA).write_bytes(b"its weights")
    (tmp_path / "own" / LORA_SHAPE).write_bytes(msgspec.json.encode(shape))
    parameters = load(tmp_path / "model").parameters
    (tmp_path / "own" / PARAMETERS).write_bytes(msgspec.json.encode(parameters))
    of_base = [replace(file, key=f"{base}/{file.name}") for file in files.files]
    await upload_folder(staging.store, tmp_path / "own", model, stored=of_base)
    asked = {
        "data_url": web.serve("/data.zip", zip_of(DATASET)),
        "resume_ckpt_url": f"store:{model}",
    }

    staged = await staging.perform(**asked)

    assert staged.train.lora_shape == shape
    assert 0 < staged.report["estimate"]["model_bytes"] < sum(parameters.values())
    with pytest.raises(Refused, match=r"lora_rank: the LoRA that resume_ckpt_url names has rank 4"):
        await staging.perform(**asked, lora_rank=8)
    with pytest.raises(Refused, match=r"checkpoint_format: resume_ckpt_url names a LoRA"):
        await staging.perform(**asked, checkpoint_format="ckpt")


async def test_a_model_and_loras_are_staged_together_with_their_weights(
    staging: Staging, web: Web, tmp_path: Path
) -> None:
    layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    weights = {f"{layer}.lora_down.weight": torch.ones(2, 64)}
    weights |= {f"{layer}.lora_up.weight": torch.ones(32, 2)}
    urls = []
    for name in ("my face.safetensors", "style.safetensors"):
        save_file(weights, tmp_path / name)
        urls.append(web.serve(f"/{name}", tmp_path / name).replace(" ", "%20"))
    loras = (LoraSource(source=urls[0], weight=0.5), LoraSource(source=urls[1]))
    weighed, missing = (Inference(prompt="x", loras=each) for each in ([0.5, 0.0], [1.0]))
    perform = partial(staging.perform_model, "sd_v1-5_vae")

    staged = await perform(weight=0.9, loras=loras, inference=[weighed])

    assert staged.warnings == ("input.model[0].weight has no effect: this is a whole model",)
    assert staged.loras == (
        AddedLora(file="lora.safetensors", name="my_face", weight=0.5),
        AddedLora(file="lora_2.safetensors", name="style"),
    )
    assert staged.lora_base.startswith("cache/")
    names = {each.name for each in (await read_manifest(staging.store, staged.model)).files}
    assert {"lora.safetensors", "lora_2.safetensors", "unet/config.json"} <= names
    with pytest.raises(Refused, match=r"inference\[1\]\.loras: .* which has 2, got 1"):
        await perform(loras=loras, inference=[weighed, missing])
    with pytest.raises(Refused, match=r"input\.model\[3\]: sd_v1-5_vae is a whole model"):
        await perform(loras=(*loras, LoraSource(source="sd_v1-5_vae")))


async def test_a_training_goes_on_with_a_lora_from_elsewhere_unless_none_of_ours_could_be_like_it(
    staging: Staging, web: Web, tmp_path: Path
) -> None:
    layer, file = "lora_te_text_model_encoder_layers_0_mlp_fc1", tmp_path / "lora.safetensors"
    asked: dict[str, Any] = {"data_url": web.serve("/data.zip", zip_of(DATASET))}
    for rank, alpha in ((2, 2.0), (300, 300.0), (4, 1e-6)):
        weights = {"lora_down.weight": torch.ones(rank, 64), "alpha": torch.tensor(alpha)}
        weights["lora_up.weight"] = torch.ones(256, rank)
        save_file({f"{layer}.{name}": each for name, each in weights.items()}, file)
        web.serve(f"/{rank}.safetensors", file.rename(tmp_path / f"{rank}"))

    staged = await staging.perform(**asked, resume_ckpt_url=web.url("/2.safetensors"))

    assert staged.train.lora_shape == LoraShape(rank=2, alpha=2.0)
    assert staged.base_model == f"jobs/{JOB}/staging/1/model"
    assert staged.lora_base.startswith("cache/")
    with pytest.raises(
        Refused, match=r"has rank 300, .*; the most that can be trained are rank 256"
    ):
        await staging.perform(**asked, resume_ckpt_url=web.url("/300.safetensors"))
    with pytest.raises(Refused, match=r"has rank 4, alpha 1e-06 .* trained from alpha 0\.001 on"):
        await staging.perform(**asked, resume_ckpt_url=web.url("/4.safetensors"))


async def test_a_lora_from_elsewhere_is_estimated_by_the_speed_of_others_on_its_base_model(
    staging: Staging, web: Web, tmp_path: Path
) -> None:
    layer, file = "lora_te_text_model_encoder_layers_0_mlp_fc1", tmp_path / "lora.safetensors"
    down, up = torch.ones(2, 64), torch.ones(256, 2)
    save_file({f"{layer}.lora_down.weight": down, f"{layer}.lora_up.weight": up}, file)
    asked = {
        "data_url": web.serve("/data.zip", zip_of(DATASET)),
        "resume_ckpt_url": web.serve("/lora.safetensors", file),
    }
    await staging.store.put(DEVICE_KEY, b'{"gpu": "a card", "teraflops": 40.0}')
    base = (await staging.perform(**asked)).lora_base
    measured = b'{"gpu": "a card", "megapixels_per_second": 0.5}'
    await staging.store.put(speed_key("a card", base, lora=True), measured)

    staged = await staging.perform(**asked)

    rate = staged.report["estimate"]["rate"]
    assert rate == "measured: 0.5 megapixels per second on a card"


async def test_a_job_without_a_seed_is_reported_with_the_one_it_will_be_trained_with(
    staging: Staging, web: Web
) -> None:
    shapes = {f"{number}.png": drawn(300 + 40 * number, 512) for number in range(12)}
    url = web.serve("/data.zip", zip_of(shapes))
    commands: dict[str, Any] = {"max_epochs": 40, "batch_size": 2, "rated_dataset": True}

    staged = await staging.perform(data_url=url, seed=-1, **commands)

    pictures = [
        Picture(file=name, caption="", width=300 + 40 * number, height=512)
        for number, name in enumerate(shapes)
    ]
    asked = staged.train
    seeds = [job_seed(JOB, asked), *range(-1, 9)]
    steps = [total_steps(pictures, EpochConfig.of(asked, seed=seed)) for seed in seeds]
    assert staged.report["steps"] == steps[0]
    assert steps.count(steps[0]) < 4


async def test_a_validation_is_seen_before_training(staging: Staging, web: Web) -> None:
    url = web.serve("/data.zip", zip_of(DATASET))

    staged = await staging.perform(data_url=url, validation=Validation())
    assert (staged.report["images"], staged.report["held_out"]) == (2, 1)

    with pytest.raises(Refused, match=r"input\.train\.validation: val_split_proportion 0\.9"):
        await staging.perform(data_url=url, validation=Validation(val_split_proportion=0.9))


async def test_progress_reports_the_phases_in_order(staging: Staging, web: Web) -> None:
    await staging.perform(data_url=web.serve("/data.zip", Page(zip_of(DATASET), piece=2000)))

    phases = list(dict.fromkeys(numbers["phase"] for numbers in staging.reported))
    assert phases == [
        "downloading the dataset",
        "unpacking",
        "checking images",
        "staging the base model",
        "storing the dataset",
    ]
    downloading = [each for each in staging.reported if each["phase"] == "downloading the dataset"]
    last = downloading[-1]
    assert last["bytes"] == last["bytes_total"] == len(zip_of(DATASET))


async def test_a_file_of_ours_is_taken_from_the_store(staging: Staging) -> None:
    await staging.store.put("jobs/old/dataset.zip", zip_of(DATASET))

    assert (await staging.perform(data_url="store:jobs/old/dataset.zip")).report["images"] == 3
    with pytest.raises(Refused, match="the upload is not in the store any more"):
        await staging.perform(data_url="store:jobs/new/dataset.zip")


async def uploaded(staging: Staging, data: bytes, sha256: str) -> str:
    """The ``data_url`` of an upload in three parts."""
    cuts = [0, 7, len(data) // 2, len(data)]
    parts = [
        UploadPart(upload="u", offset=start, bytes=end - start, key=f"uploads/u/{start}")
        for start, end in pairwise(cuts)
    ]
    for part in parts:
        await staging.store.put(part.key, data[part.offset :][: part.bytes])
    await write_list(staging.store, "u", sha256, parts)
    return f"store:{list_key('u')}"


async def test_an_upload_is_put_together_from_its_parts(staging: Staging) -> None:
    data = zip_of(DATASET)
    url = await uploaded(staging, data, hashlib.sha256(data).hexdigest())

    assert (await staging.perform(data_url=url)).report["images"] == 3

    await staging.store.delete("uploads/u/7")
    with pytest.raises(Refused, match=r"data_url: the upload is not in the store any more"):
        await staging.perform(data_url=url)


async def test_an_upload_that_is_not_what_arrived_is_refused(staging: Staging) -> None:
    url = await uploaded(staging, zip_of(DATASET), hashlib.sha256(b"something else").hexdigest())

    with pytest.raises(Refused, match=r"^input\.train\.data_url: the upload is damaged"):
        await staging.perform(data_url=url)


async def test_the_scratch_folder_goes_whatever_happens(staging: Staging, web: Web) -> None:
    good = web.serve("/data.zip", zip_of(DATASET))
    bad = web.serve("/page", b"<!doctype html>")
    gone = web.serve("/gone", Page(status=404))

    await staging.perform(data_url=good)
    assert list(staging.scratch.iterdir()) == []
    for url, reason in ((bad, "an HTML page"), (gone, "404")):
        with pytest.raises(Refused, match=reason):
            await staging.perform(data_url=url)
        assert list(staging.scratch.iterdir()) == []


async def test_what_an_earlier_process_left_behind_does_no_harm(staging: Staging, web: Web) -> None:
    leftover = staging.scratch / "7b1c-staging-1" / "dataset"
    leftover.mkdir(parents=True)
    (leftover / "old.png").write_bytes(b"old")

    staged = await staging.perform(data_url=web.serve("/data.zip", zip_of(DATASET)))

    assert staged.report["images"] == 3
    names = [entry.key async for entry in staging.store.list(staged.dataset)]
    assert not any("old.png" in name for name in names)


async def test_a_cancelled_staging_leaves_nothing_running_and_nothing_lying(
    staging: Staging, web: Web
) -> None:
    url = web.serve("/data.zip", Page(zip_of(DATASET), piece=100, pause=30))
    task = asyncio.create_task(staging.perform(data_url=url))
    async with asyncio.timeout(60):
        await staging.begun.wait()

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert list(staging.scratch.iterdir()) == []


async def test_a_private_address_is_refused_by_default(staging: Staging, web: Web) -> None:
    staging.work = staging.fetcher(frozenset())

    with pytest.raises(Refused, match=r"http://127\.0\.0\.1.*: the host is a private address"):
        await staging.perform(data_url=web.serve("/data.zip", zip_of(DATASET)))
    assert web.seen == []


async def test_an_archive_without_images_ends_the_job_by_name(staging: Staging, web: Web) -> None:
    url = web.serve("/empty.zip", zip_of({"a.txt": b"no image"}))

    with pytest.raises(Refused, match=r"/empty\.zip: no usable image in the archive"):
        await staging.perform(data_url=url)


async def test_a_base_model_that_cannot_be_taken_ends_the_job(staging: Staging, web: Web) -> None:
    data = web.serve("/data.zip", zip_of(DATASET))

    with pytest.raises(Refused, match=r"^input\.train\.resume_ckpt_url is 'nonsense'"):
        await staging.perform(data_url=data, resume_ckpt_url="nonsense")


async def test_a_finished_model_is_staged_alone_with_what_is_known_of_it(
    staging: Staging, web: Web, tmp_path: Path
) -> None:
    model = make_random_model(tmp_path / "model")
    await upload_folder(staging.store, model, "jobs/old/training/1/model")
    known: dict[str, Any] = {"clip_skip": 2, "name": "last-old.safetensors", "sha256": "5" * 64}

    staged = await staging.perform_model("store:jobs/old/training/1/model", **known)

    assert staged.model == "jobs/old/training/1/model"
    assert (staged.job, staged.stage, staged.attempt) == (JOB, "staging", 2)
    assert staged.inference == (Inference(prompt="a cat"),)
    assert {name: getattr(staged, name) for name in known} == known
    assert [numbers["phase"] for numbers in staging.reported] == ["staging the model"]
    assert [entry.key async for entry in staging.store.list(f"jobs/{JOB}/")] == []
    assert list(staging.scratch.iterdir()) == []
    assert web.seen == []


async def test_a_finished_model_from_elsewhere_is_staged_by_its_content(
    staging: Staging, web: Web, tmp_path: Path
) -> None:
    url = web.serve("/model.zip", zipped(make_random_model(tmp_path / "m"), tmp_path / "m.zip"))

    staged = await staging.perform_model(url)

    assert staged.model.startswith("cache/")
    assert await folder_exists(staging.store, staged.model)
    assert staged.model == (await staging.perform_model(url)).model
    assert staged.model_bytes == (await read_manifest(staging.store, staged.model)).bytes > 0
    assert "downloading the model" in {numbers["phase"] for numbers in staging.reported}


async def test_what_is_warned_of_a_model_is_in_the_report_or_with_the_staged_model(
    staging: Staging, web: Web, tmp_path: Path
) -> None:
    extra = {"model.diffusion_model.extra": torch.ones(1)}
    save_file(tensors_of(load(TINY_FOLDER)) | extra, tmp_path / "m.safetensors")
    model = web.serve("/m", tmp_path / "m.safetensors")
    warning = f"{model}: ignored, as Stable Diffusion has no such tensors: {next(iter(extra))}"

    trained = await staging.perform(
        data_url=web.serve("/data.zip", zip_of(DATASET)), resume_ckpt_url=model
    )

    assert trained.report["warnings"][-1] == warning
    assert trained.report["warnings_count"] == len(trained.report["warnings"])
    assert (await staging.perform_model(model)).warnings == (warning,)


async def test_a_finished_model_that_is_none_or_gone_is_refused_by_the_fields_name(
    staging: Staging,
) -> None:
    for source, reason in (
        ("nonsense", r"^input\.model is 'nonsense'; expected"),
        ("store:jobs/old/model", r"^input\.model: this model \(jobs/old/model\) is not in"),
    ):
        with pytest.raises(Refused, match=reason):
            await staging.perform_model(source)
    assert list(staging.scratch.iterdir()) == []


async def test_an_archive_over_the_limit_is_refused(
    staging: Staging, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetcher_work, "ARCHIVE_BYTES", 1000)

    with pytest.raises(Refused, match="more than 1e-06 GB"):
        await staging.perform(data_url=web.serve("/data.zip", zip_of(DATASET)))


async def test_a_store_that_is_away_passes(
    staging: Staging, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: Any, **__: Any) -> None:
        raise Unavailable("the store does not answer")

    monkeypatch.setattr(staging.store, "upload", away)

    with pytest.raises(Passing, match="the store does not answer"):
        await staging.perform(data_url=web.serve("/data.zip", zip_of(DATASET)))
    assert list(staging.scratch.iterdir()) == []


async def test_several_jobs_at_once_do_not_meet(staging: Staging, web: Web) -> None:
    url = web.serve("/data.zip", zip_of(DATASET))
    orders = [staging.order(data_url=url, attempt=attempt) for attempt in (1, 2, 3, 4)]

    staged = await asyncio.gather(*(staging.perform_order(order) for order in orders))

    assert len({one.dataset for one in staged}) == 4
    assert len({one.base_model for one in staged}) == 1


def test_a_meter_reports_rate_and_remaining_time_once_it_knows_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reported: list[dict[str, Any]] = []
    now = [100.0]
    monkeypatch.setattr(meters, "monotonic", lambda: now[0])
    meter = ProgressMeter("downloading", lambda **numbers: reported.append(numbers), lambda: None)

    for seconds, done in ((0.0, 0), (1.0, 1000), (4.0, 4000), (10.0, 10_000)):
        now[0] = 100.0 + seconds
        meter.bytes(done, 20_000)
    meter.bytes(11_000, None)

    assert [each["bytes_per_second"] for each in reported] == [None, None, 1000, 1000, 1100]
    assert [each["eta_seconds"] for each in reported] == [None, None, 16, 10, None]
    assert (
        reported[2] | {"phase": "downloading", "bytes": 4000, "bytes_total": 20_000} == reported[2]
    )


def test_only_a_submitted_job_is_for_the_fetcher(staging: Staging) -> None:
    order = staging.order(data_url="u")
    artifact: Any = None
    final = CheckpointFinal(
        job=JOB, stage="training", claim="c", model="m", checkpoint=artifact, summary={}
    )

    assert staging.work.stage_of(order.message) == "staging"
    assert staging.work.stage_of(final) is None
