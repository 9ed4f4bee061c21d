"""The trainer's parent and its real child: a job from the store to the store, stops and deaths."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace
from safetensors.torch import load_file

from services.trainer import work as trainer_work
from services.trainer.artifact_uploads import CHECKPOINTS
from services.trainer.work import TrainerWork
from shared.adapters.folder import FolderStore
from shared.dataset.manifest import Manifest
from shared.dataset.speed import DEVICE_KEY, ProbedDevice, speed_key
from shared.diffusion.loading import load
from shared.diffusion.lora_file import attach
from shared.errors import Interrupted, Passing, Refused, Unavailable
from shared.html_report.facts import TrainingFacts
from shared.messaging.messages import (
    Artifact,
    CheckpointSampled,
    CheckpointSaved,
    CommandIssued,
    DatasetStaged,
    Message,
    ResumePointSaved,
    SampleRow,
    SavedCheckpoint,
)
from shared.request import Command, Inference, Validation
from shared.storage.folders import download_folder, folder_exists, read_manifest, upload_folder
from shared.storage.manifest import LORA, LORA_SHAPE, PARAMETERS, SINGLE_FILE
from shared.storage.models import stored_model
from shared.storage.snapshots import sample_key, snapshot_prefix, snapshots_of, waiting_snapshots
from shared.worker.order import Order
from tests.support.models import make_random_model
from tests.support.training import make_dataset, train_request
from tests.support.workers import Facts, folder_store, granted_order, until_gone

OWN_CHILD = trainer_work.CHILD
INFERENCE = (Inference(prompt="a red wall"),)
DEADLINE = 120.0


@pytest.fixture(autouse=True)
def _warm(warm_children: None, monkeypatch: pytest.MonkeyPatch) -> None:
    del warm_children
    monkeypatch.setattr(trainer_work, "CHILD", "tests.support.warm.trainer")


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store's folder that holds a dataset and a base model."""
    folder = tmp_path_factory.mktemp("staged")
    store = folder_store(folder / "store")
    data = make_dataset(folder / "data", images=3)
    model = make_random_model(folder / "model")
    asyncio.run(upload_folder(store, data, "jobs/j/staging/1/dataset"))
    asyncio.run(upload_folder(store, model, "cache/base"))
    return folder / "store"


@pytest.fixture
def store(staged: Path) -> FolderStore:
    return folder_store(staged)


@pytest.fixture
async def work(store: FolderStore, tmp_path: Path) -> AsyncIterator[TrainerWork]:
    work = make_work(store, tmp_path)
    yield work
    await work.close()


def make_work(store: FolderStore, folder: Path, *, resume_every: float = 1e9) -> TrainerWork:
    return TrainerWork(
        store, scratch=folder / "scratch", cache=folder / "cache", resume_every=resume_every
    )


def dataset_staged(job: str, **fields: Any) -> DatasetStaged:
    return DatasetStaged(
        job=job,
        stage="staging",
        claim="c",
        attempt=1,
        train=train_request(**fields),
        inference=INFERENCE,
        dataset="jobs/j/staging/1/dataset",
        base_model="cache/base",
        report={},
    )


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not condition():
            await asyncio.sleep(0.02)


def of_kind(facts: Facts, kind: type[Message]) -> list[Any]:
    return [fact for fact in facts.published if isinstance(fact, kind)]


def is_training(order: Order) -> bool:
    return bool(order.numbers.get("step", 0) >= 2)


@pytest.mark.parametrize("base", [stored_model("a" * 64), "jobs/old/training/1/model"])
async def test_a_lora_is_stored_beside_its_base_model_which_is_not_copied(
    base: str, store: FolderStore, work: TrainerWork, tmp_path: Path
) -> None:
    await upload_folder(store, make_random_model(tmp_path / "base"), base)
    asked = dataset_staged("lora", max_epochs=1, lora_rank=2, lora_merge=True)

    order = granted_order(replace(asked, base_model=base), "training", Facts())
    final = await work.perform(order)

    assert final.lora_base == base
    files = {file.name: file for file in (await read_manifest(store, final.model)).files}
    assert files[LORA].key == final.checkpoint.key
    own = {name for name, file in files.items() if file.key is None}
    assert own == {"scheduler/scheduler_config.json", PARAMETERS, LORA_SHAPE}
    unet = "unet/diffusion_pytorch_model.safetensors"
    assert files[unet].key == f"{base}/{unet}"
    await download_folder(store, final.model, tmp_path / "model")
    assert [*attach(load(tmp_path / "model"), tmp_path / "model" / LORA)] == [
        "unet",
        "text_encoder",
    ]
    merged, *_ = final.records
    assert (merged.kind, merged.name) == (
        "checkpoint",
        f"{Path(final.checkpoint.name).stem}-merged.safetensors",
    )
    assert merged.bytes > final.checkpoint.bytes


async def test_a_job_is_trained_from_the_store_to_the_store(staged: Path, tmp_path: Path) -> None:
    """Even when the store refuses everything once, and resume points come thick and fast."""
    store, facts = Flickering(staged), Facts()
    work = make_work(store, tmp_path, resume_every=1e-3)
    try:
        gpu = await work.prepare()
        order = granted_order(
            dataset_staged("whole", max_epochs=3, clip_skip=2, seed=-1), "training", facts
        )
        final = await work.perform(order)
    finally:
        await work.close()

    assert gpu == "cpu"
    assert (final.job, final.stage, final.attempt) == ("whole", "training", 1)
    assert final.model == "jobs/whole/training/1/model"
    assert (final.clip_skip, final.inference) == (2, INFERENCE)
    assert final.checkpoint.name == "last-whole-ep03-gs00009.safetensors"
    path = store.path_of(final.checkpoint.key)
    assert path.stat().st_size == final.checkpoint.bytes
    assert "cond_stage_model.transformer.text_model.final_layer_norm.bias" in load_file(path)
    await download_folder(store, final.model, tmp_path / "model")
    assert json.loads((tmp_path / "model" / "model_index.json").read_text())["unet"]
    assert (tmp_path / "model" / SINGLE_FILE).read_bytes() == path.read_bytes()
    kept = [each.key async for each in store.list(f"{final.model}/")]
    assert [each for each in kept if each.endswith(".safetensors")] == [], "kept twice"
    summary = final.summary
    numbers = (summary["steps"], summary["updates"], summary["epochs"], summary["images"])
    assert numbers == (9, 9, 3, 9)
    assert summary["seed"] >= 0
    assert order.numbers["step"] == 9
    assert list((tmp_path / "scratch").iterdir()) == []

    points = [point.prefix for point in of_kind(facts, ResumePointSaved)]
    kept = [each for each in points if await folder_exists(store, each)]
    assert kept == points[-2:]
    assert points[-1] == "jobs/whole/training/1/resume/9"
    assert store.refusals > 0


async def test_the_speed_of_a_finished_training_is_remembered_for_its_whole_base_model(
    work: TrainerWork, store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_work, "MIN_STEPS", 9)
    report = {"steps": 9, "megapixels": 9 * 256 * 256 / 1e6}
    message = dataset_staged("measured", max_epochs=3)
    message = msgspec.structs.replace(message, report=report, lora_base="cache/whole")
    order = granted_order(message, "training", Facts())

    await work.perform(order)

    speed = msgspec.json.decode(await store.get(speed_key("cpu", "cache/whole")))
    assert speed == {
        "gpu": "cpu",
        "megapixels_per_second": pytest.approx(
            order.numbers["images_per_second"] * 256 * 256 / 1e6
        ),
    }


@pytest.mark.parametrize(
    ("report", "steps"), [({}, 1000), ({"steps": 1, "megapixels": 1.0}, 99)], ids=["old", "short"]
)
async def test_a_training_that_does_not_report_its_speed_is_not_remembered(
    work: TrainerWork, store: FolderStore, report: dict[str, Any], steps: int
) -> None:
    await store.delete("cache/speed")
    order = granted_order(
        msgspec.structs.replace(dataset_staged("short"), report=report), "training", Facts()
    )
    order.progress(images_per_second=3.0)

    await work._remember_speed(order, "cpu", steps)

    assert [entry async for entry in store.list("cache/speed")] == []


async def test_a_store_that_is_away_costs_the_speed_not_the_job(tmp_path: Path) -> None:
    tried = []

    class Away(FolderStore):
        async def put(self, key: str, data: bytes) -> None:
            tried.append((key, data))
            raise Unavailable("store_unavailable")

    store = Away(tmp_path / "store", public_url="http://127.0.0.1:1", key="k" * 32)
    work = make_work(store, tmp_path)
    message = msgspec.structs.replace(
        dataset_staged("away"), report={"steps": 1, "megapixels": 1.0}
    )
    order = granted_order(message, "training", Facts())
    order.progress(images_per_second=3.0)

    await work._remember_speed(order, "cpu", 1000)

    key = speed_key("cpu", "cache/base")
    assert tried == [(key, b'{"gpu":"cpu","megapixels_per_second":3.0}')]


async def test_a_trainer_that_starts_tells_its_device_once(
    work: TrainerWork, store: FolderStore
) -> None:
    await work.prepare()
    device = msgspec.json.decode(await store.get(DEVICE_KEY), type=ProbedDevice)
    await store.delete(DEVICE_KEY)
    await work.close()
    await work.prepare()

    assert device.gpu == "cpu"
    assert 1e-4 < device.teraflops < 100
    assert not await store.exists(DEVICE_KEY)


async def test_a_trainer_starts_though_its_store_is_away_and_tells_its_device_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_work, "REMEMBERING_SECONDS", 0.05)
    is_there = asyncio.Event()

    class Waiting(FolderStore):
        async def put(self, key: str, data: bytes) -> None:
            await is_there.wait()
            await super().put(key, data)

    store = Waiting(tmp_path / "store", public_url="http://127.0.0.1:1", key="k" * 32)
    work = make_work(store, tmp_path)
    try:
        assert await work.prepare() == "cpu"
        assert not await store.exists(DEVICE_KEY)
        is_there.set()
        await work.prepare()
        assert await store.exists(DEVICE_KEY)
    finally:
        await work.close()


async def test_the_newest_checkpoint_and_the_best_stay_in_the_store_and_records_come_along(
    work: TrainerWork, store: FolderStore
) -> None:
    """A rate this high makes the first epochs the best ones, so that the best is not the newest."""
    facts = Facts()
    message = dataset_staged(
        "kept", max_epochs=6, lr=0.05, save_every_n_epochs=1, keep_checkpoints=1,
        save_optimizer=True, validation=Validation(),
    )  # fmt: skip

    final = await work.perform(granted_order(message, "training", facts))

    saved = of_kind(facts, CheckpointSaved)
    losses = {fact.artifact.key: fact.validation_loss for fact in saved}
    best, newest = min(losses, key=losses.__getitem__), saved[-1].artifact.key
    kept = [each.artifact.key for each in final.checkpoints]
    assert len(saved) == 5
    assert kept == sorted({best, newest}, key=list(losses).index)
    assert {key for fact in saved for key in fact.replaced} == losses.keys() - kept
    last_loss = final.summary["validation"]["last"]["loss"]
    flags = [final.summary["best"], *(each.best for each in final.checkpoints)]
    assert flags == [last_loss < losses[best], *(
        key == best and losses[best] <= last_loss for key in kept
    )]  # fmt: skip
    names = {Path(key).name for key in (*kept, final.checkpoint.key)}
    optimizers = {f"{Path(key).stem}.optimizer" for key in kept}
    assert await stored_in(store, "jobs/kept/training/1/checkpoints") == names | optimizers

    assert [(each.name, each.kind) for each in final.records] == [
        ("metrics.jsonl", "metrics"), ("events.out.tfevents.kept", "tensorboard")
    ]  # fmt: skip
    lines = store.path_of(final.records[0].key).read_bytes().splitlines()
    assert final.records[0].bytes == store.path_of(final.records[0].key).stat().st_size
    assert json.loads(lines[-1])["validation_loss"] == last_loss

    assert final.html_report is not None
    report = store.path_of(final.html_report.key)
    assert (final.html_report.name, final.html_report.kind) == ("report.html", "report")
    assert final.html_report.bytes == report.stat().st_size
    page = report.read_text()
    digests = [each.sha256 for each in (final.checkpoint, *(c.artifact for c in final.checkpoints))]
    assert [page.count(each) for each in digests] == [1] * len(digests)
    titles = ("Loss", "Validation loss", "Learning rate")
    assert [f"<figcaption>{title}" in page for title in titles] == [True] * 3
    facts_of = msgspec.json.decode(await store.get(final.report_facts), type=TrainingFacts)
    assert (facts_of.checkpoints, facts_of.gpu) == (final.checkpoints, "cpu")
    assert facts_of.points[-1].validation_loss == last_loss


async def stored_in(store: FolderStore, folder: str) -> set[str]:
    """Names just below a folder of the store."""
    return {entry.key.split("/")[5] async for entry in store.list(f"{folder}/")}


async def test_a_stopped_training_goes_on_elsewhere_and_remembers_its_checkpoints(
    work: TrainerWork, store: FolderStore, tmp_path: Path
) -> None:
    facts = Facts()
    first = granted_order(dataset_staged("moved", max_epochs=100_000), "training", facts)
    performing = asyncio.create_task(work.perform(first))
    await until(lambda: is_training(first) or performing.done())

    first.stopping.set()
    with pytest.raises(Interrupted):
        await performing

    (point,) = of_kind(facts, ResumePointSaved)
    assert point.prefix == f"jobs/moved/training/1/resume/{point.step}"
    earlier = SavedCheckpoint(
        artifact=Artifact(name="a", kind="checkpoint", key="k", bytes=1, sha256="s"),
        step=1,
        epoch=0,
    )
    await download_folder(store, point.prefix, tmp_path / "point")
    assert (tmp_path / "point" / CHECKPOINTS).read_bytes() == b"[]"
    (tmp_path / "point" / CHECKPOINTS).write_bytes(msgspec.json.encode([earlier]))
    await upload_folder(store, tmp_path / "point", changed := "jobs/moved/training/1/resume/x")

    epochs = point.epoch + 1
    again = dataset_staged("moved", max_epochs=epochs)
    second = granted_order(again, "training", Facts(), attempt=2, resume_point=changed)
    final = await work.perform(second)

    assert final.summary["steps"] == 3 * epochs
    assert final.checkpoint.key.startswith("jobs/moved/training/2/")
    assert final.checkpoints == (earlier,)


async def test_a_resume_point_is_not_copied_on_the_stores_disk(
    work: TrainerWork, store: FolderStore, tmp_path: Path
) -> None:
    (tmp_path / "point").mkdir()
    (tmp_path / "point" / "unet.safetensors").write_bytes(b"gigabytes")
    await upload_folder(store, tmp_path / "point", "point")
    order = granted_order(dataset_staged("linked"), "training", Facts(), resume_point="point")

    fetched = await work._fetch_resume_point(order, tmp_path / "from")

    assert fetched is not None
    assert (fetched / "unet.safetensors").samefile(store.path_of("point/unet.safetensors"))


async def test_a_cancelled_job_leaves_no_child_and_no_file(
    store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The product's own child: a warm one outlives its stand-in for a moment, and writes on.
    monkeypatch.setattr(trainer_work, "CHILD", OWN_CHILD)
    work = make_work(store, tmp_path)
    await work.prepare()
    child = pid_of(work)
    order = granted_order(dataset_staged("cancelled", max_epochs=100_000), "training", Facts())
    performing = asyncio.create_task(work.perform(order))
    await until(lambda: is_training(order) or performing.done())

    performing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await performing

    await until_gone(child)
    assert list((tmp_path / "scratch").iterdir()) == []


async def test_an_idle_child_that_died_is_replaced_and_a_busy_one_is_a_passing_failure(
    work: TrainerWork,
) -> None:
    await work.prepare()
    os.kill(pid_of(work), signal.SIGKILL)
    await until(lambda: work._standby._child is None or not work._standby._child.alive)

    order = granted_order(dataset_staged("killed", max_epochs=100_000), "training", Facts())
    performing = asyncio.create_task(work.perform(order))
    await until(lambda: is_training(order) or performing.done())
    os.kill(pid_of(work), signal.SIGKILL)

    with pytest.raises(Passing, match="SIGKILL"):
        await performing


async def test_a_base_model_that_cannot_be_loaded_is_the_users_to_mend(
    work: TrainerWork, store: FolderStore, tmp_path: Path
) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "model_index.json").write_text("{}")
    await upload_folder(store, tmp_path / "broken", "cache/broken")
    message = msgspec.structs.replace(dataset_staged("broken"), base_model="cache/broken")

    with pytest.raises(Refused, match="base model"):
        await work.perform(granted_order(message, "training", Facts()))


async def test_without_its_resume_point_in_the_store_a_training_begins_anew(
    work: TrainerWork,
) -> None:
    gone = "jobs/anew/training/1/resume/2"
    order = granted_order(
        dataset_staged("anew", max_epochs=1), "training", Facts(), attempt=2, resume_point=gone
    )

    final = await work.perform(order)

    assert final.summary["steps"] == 3


class Drawing(Facts):
    """Facts received by an inferencer that draws every row at once, in its own way."""

    def __init__(self, store: FolderStore) -> None:
        super().__init__()
        self.steps: list[int] = []
        self._store = store

    async def publish(self, message: Message, **options: Any) -> None:
        await super().publish(message, **options)
        if isinstance(message, CheckpointSampled):
            assert await folder_exists(self._store, message.snapshot)
            self.steps.append(message.row.step)
            await self._store.delete(f"{message.snapshot}/")


async def test_rows_are_asked_for_on_the_way_as_fast_as_they_are_drawn_and_the_last_at_the_end(
    work: TrainerWork, store: FolderStore
) -> None:
    facts = Drawing(store)
    request = dataset_staged("rows", max_epochs=100_000, sample_steps=2, sample_prompts=["a", "b"])
    order = granted_order(request, "training", facts)
    performing = asyncio.create_task(work.perform(order))
    await until(lambda: len(facts.steps) >= 4 or performing.done())
    order.stopping.set()
    with pytest.raises(Interrupted):
        await performing

    assert facts.steps[:2] == [0, 2]
    assert facts.steps == sorted(set(facts.steps))
    assert all(step % 2 == 0 for step in facts.steps)
    sampled = of_kind(facts, CheckpointSampled)[1]
    assert sampled.row == SampleRow(step=2, epoch=0, prompts=("a", "b"), seed=555, resolution=256)
    assert (sampled.snapshot, sampled.base_model, sampled.claim) == (
        snapshot_prefix("rows", 1, step=2, epoch=0), "cache/base", order.claim
    )  # fmt: skip

    request = dataset_staged("end", max_epochs=1, sample_prompts=["a"])
    final = await work.perform(granted_order(request, "training", facts))
    assert final.row == SampleRow(step=3, epoch=1, prompts=("a",), seed=555, resolution=256)


def want(order: Order, commands: dict[Command, int]) -> None:
    order.receive(
        CommandIssued(job=order.job, stage="training", claim=order.claim, commands=commands)
    )


async def test_commands_to_a_running_training_are_done_once_and_then_it_ends_early(
    work: TrainerWork, store: FolderStore
) -> None:
    facts = Drawing(store)
    request = dataset_staged(
        "wanted", max_epochs=100_000, sample_steps=1_000_000, sample_prompts=["a"]
    )
    order = granted_order(request, "training", facts)
    performing = asyncio.create_task(work.perform(order))
    await until(lambda: is_training(order) or performing.done())

    want(order, {"sample": 1, "save": 1})
    await until(lambda: len(facts.steps) == 2 and bool(of_kind(facts, CheckpointSaved)))
    want(order, {"sample": 1, "save": 1, "stop": 1})  # the first two again: not recorded yet
    async with asyncio.timeout(DEADLINE):
        final = await performing

    (saved,) = of_kind(facts, CheckpointSaved)
    assert [each.command for each in of_kind(facts, CheckpointSampled)] == [0, 1]
    assert saved.command == 1
    assert [each.artifact for each in final.checkpoints] == [saved.artifact]
    steps = final.summary["steps"]
    assert saved.step <= steps < 300_000
    assert final.summary["warnings"] == [f"stopped on request after step {steps} of 300000"]
    assert final.row == SampleRow(
        step=steps, epoch=steps // 3, prompts=("a",), seed=555, resolution=256
    )
    assert of_kind(facts, ResumePointSaved) == []


async def test_what_an_earlier_attempt_left_undone_is_done_by_the_next(work: TrainerWork) -> None:
    request = dataset_staged("left undone", max_epochs=100_000)
    order = granted_order(request, "training", Facts(), attempt=2, commands={"stop": 1})

    async with asyncio.timeout(DEADLINE):
        final = await work.perform(order)

    assert final.summary["warnings"][0].startswith("stopped on request after step ")


async def test_rows_that_an_earlier_attempt_left_are_asked_for_again_and_others_not_drawn_twice(
    work: TrainerWork, store: FolderStore, tmp_path: Path
) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "unet.safetensors").write_bytes(b"")
    left = [snapshot_prefix("left", 1, step=step, epoch=1) for step in (3, 6)]
    for prefix in left:
        await upload_folder(store, tmp_path / "weights", prefix)
    await store.put(sample_key("left", step=0, index=0), b"drawn")
    facts = Facts()

    request = dataset_staged("left", max_epochs=5, sample_steps=3)
    final = await work.perform(granted_order(request, "training", facts, attempt=2))

    republished = of_kind(facts, CheckpointSampled)
    assert [each.snapshot for each in republished] == left
    assert [each.prefix for each in await waiting_snapshots(store, "left")] == left
    assert len({*republished[0].row.prompts}) == 3
    assert republished[0].row.prompts == republished[1].row.prompts
    (warning,) = final.summary["warnings"]
    assert warning.endswith("not drawn yet, at steps: 9, 12")


async def test_without_prompts_and_captions_there_are_no_samples(
    work: TrainerWork, store: FolderStore, tmp_path: Path
) -> None:
    data = make_dataset(tmp_path / "data", images=1)
    (picture,) = Manifest.read(data).pictures
    Manifest(pictures=(msgspec.structs.replace(picture, caption=""),)).write(data)
    await upload_folder(store, data, "silent")
    facts = Facts()
    request = msgspec.structs.replace(dataset_staged("silent", max_epochs=1), dataset="silent")

    final = await work.perform(granted_order(request, "training", facts))

    assert final.row is None
    assert of_kind(facts, CheckpointSampled) == []
    assert [entry async for entry in store.list(snapshots_of("silent"))] == []


def pid_of(work: TrainerWork) -> int:
    assert work._standby._child is not None
    return work._standby._child.pid


class Flickering(FolderStore):
    """Refuses the first upload to every key."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, public_url="http://127.0.0.1:1", key="k" * 32)
        self.refusals = 0
        self._tried: set[str] = set()

    async def upload(self, path: Path, key: str, **options: Any) -> None:
        if key not in self._tried:
            self._tried.add(key)
            self.refusals += 1
            raise Unavailable("the store flickers")
        await super().upload(path, key, **options)
