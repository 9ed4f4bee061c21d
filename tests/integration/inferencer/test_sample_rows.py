"""Rows of samples from the real child: same pixels each time, and superseded rows skipped."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

import msgspec
import pytest
import torch
from PIL import Image

from services.inferencer import sample_rows, work
from services.inferencer.order import GenerationOrder, Provenance
from services.inferencer.sample_rows import SampleRows, sample_requests
from services.inferencer.work import InferencerWork
from shared.adapters.folder import FolderStore
from shared.child.parent import OnRecord, Standby
from shared.child.records import ImageFailed
from shared.diffusion.loading import Parts, load
from shared.diffusion.saving import save_folder
from shared.diffusion.weights import save_weights
from shared.errors import Unavailable
from shared.messaging.messages import (
    Artifact,
    CheckpointFinal,
    CheckpointSampled,
    SampleRow,
    SamplesGenerated,
)
from shared.request import Inference
from shared.storage.folders import upload_folder
from shared.storage.snapshots import drawn_steps, snapshot_prefix, waiting_snapshots
from shared.worker.order import BestEffortTask
from tests.support.models import make_random_model, random_parts
from tests.support.workers import Facts, files_of, folder_store, granted_order

pytestmark = pytest.mark.usefixtures("warm_children")

SIDE: Literal[128] = 128
PROMPTS = ("a red wall", "blue")
CHECKPOINT = Artifact(name="last", kind="checkpoint", key="k", bytes=1, sha256="s")


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return folder_store(tmp_path / "store")


@pytest.fixture
async def standby() -> AsyncIterator[Standby]:
    standby = Standby("tests.support.warm.inferencer")
    yield standby
    await standby.close()


@pytest.fixture
def facts() -> Facts:
    return Facts()


@pytest.fixture
def best_effort_tasks(
    store: FolderStore, standby: Standby, facts: Facts, tmp_path: Path
) -> SampleRows:
    return SampleRows(
        facts, store, standby, scratch=tmp_path / "scratch", cache=tmp_path / "cache"  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.fixture
def results(store: FolderStore, standby: Standby, tmp_path: Path) -> InferencerWork:
    return InferencerWork(store, standby, scratch=tmp_path / "scratch", cache=tmp_path / "cache")


def row(step: int = 4, *, resolution: int = SIDE) -> SampleRow:
    return SampleRow(step=step, epoch=1, prompts=PROMPTS, seed=5, resolution=resolution)


def sampled(job: str, *, step: int = 4, base: str = "base", clip_skip: int = 0) -> BestEffortTask:
    asked = CheckpointSampled(
        job=job, stage="training", claim="c", snapshot=snapshot_prefix(job, 1, step=step, epoch=1),
        base_model=base, clip_skip=clip_skip, row=row(step),
    )  # fmt: skip
    return BestEffortTask(asked)


def final(job: str, *entries: Inference, clip_skip: int = 0) -> CheckpointFinal:
    return CheckpointFinal(
        job=job, stage="training", claim="c", inference=entries, model=f"{job}-model", row=row(8),
        clip_skip=clip_skip, checkpoint=CHECKPOINT, summary={"steps": 8},
    )  # fmt: skip


def trained(base: Path, *networks: str) -> Parts:
    """The base model with some of its networks changed."""
    parts = load(base)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name in networks:
            for each in getattr(parts, name).parameters():
                each.add_(torch.randn(each.shape, generator=generator), alpha=0.02)
    return parts


async def store_both(
    store: FolderStore, folder: Path, job: str, parts: Parts, *networks: str
) -> None:
    """Store a training's snapshot, and the model as it would be saved at that step."""
    save_folder(parts, folder / "model")
    save_weights({name: getattr(parts, name) for name in networks}, folder / "snapshot")
    await upload_folder(store, folder / "model", f"{job}-model")
    await upload_folder(store, folder / "snapshot", snapshot_prefix(job, 1, step=4, epoch=1))


async def image_of(store: FolderStore, file: Artifact) -> Image.Image:
    return Image.open(io.BytesIO(await store.get(file.key)))


def pixels_of(images: list[Image.Image]) -> list[bytes]:
    return [each.tobytes() for each in images]


def steps_told(images: list[Image.Image]) -> list[int]:
    """As the PNGs have it."""
    return [json.loads(each.info["everydream"])["step"] for each in images]


async def test_a_snapshot_is_drawn_to_the_pixels_of_the_model_saved_at_that_step(
    store: FolderStore, best_effort_tasks: SampleRows, results: InferencerWork, facts: Facts,
    tmp_path: Path,
) -> None:  # fmt: skip
    """One child, both kinds of base models, all networks or one, rows and results."""
    rows: list[SamplesGenerated] = []
    firsts: list[bytes] = []
    cases = {
        "both": ("epsilon", 0, ("unet", "text_encoder")),
        "unet": ("epsilon", 2, ("unet",)),
        "v": ("v_prediction", 0, ("text_encoder",)),
    }
    for job, (kind, clip_skip, networks) in cases.items():
        base = make_random_model(tmp_path / job / "base", prediction_type=kind)
        await upload_folder(store, base, f"{job}-base")
        await store_both(store, tmp_path / job, job, trained(base, *networks), *networks)
        entry = Inference(
            prompt=PROMPTS[1], width=SIDE, height=SIDE, seed=6, num_inference_steps=30,
            guidance_scale=7.5, scheduler="DDIM",
        )  # fmt: skip

        await best_effort_tasks.run(sampled(job, base=f"{job}-base", clip_skip=clip_skip))
        last = final(job, entry, clip_skip=clip_skip)
        whole = await results.perform(granted_order(last, "generation", facts))

        told = facts.published[-1]
        assert isinstance(told, SamplesGenerated)
        rows.append(told)
        places = [(each.step, each.index, each.seed) for each in told.samples]
        assert places == [(4, 0, 5), (4, 1, 6)]
        assert [each.prompt for each in told.samples] == list(PROMPTS)
        assert [each.step for each in whole.samples] == [8, 8]
        drawn = [await image_of(store, each.artifact) for each in told.samples]
        ended = [await image_of(store, each.artifact) for each in whole.samples]
        (result,) = [await image_of(store, each) for each in files_of(whole)]
        firsts.append(drawn[0].tobytes())
        assert pixels_of(drawn) == pixels_of(ended)
        assert pixels_of([result]) == pixels_of(drawn[1:])
        assert [steps_told(each) for each in (drawn, ended, [result])] == [[4, 4], [8, 8], [8]]
        assert await waiting_snapshots(store, job) == []

    assert len(set(firsts)) == len(cases)
    keys = [each.artifact.key for each in rows[0].samples]
    assert keys == [f"jobs/both/samples/sample-gs00004-00{index}.png" for index in range(2)]
    smalls = [each.thumbnail for each in rows[0].samples]
    assert smalls == [f"jobs/both/samples/sample-gs00004-00{index}.webp" for index in range(2)]
    small = Image.open(io.BytesIO(await store.get(smalls[0] or "")))
    assert (small.format, small.size) == ("WEBP", (SIDE, SIDE))
    assert await drawn_steps(store, "both") == [4, 8]
    image = await image_of(store, rows[0].samples[0].artifact)
    assert (image.mode, image.size) == ("RGB", (SIDE, SIDE))
    assert list((tmp_path / "scratch").iterdir()) == []


async def test_a_row_at_step_0_shows_the_same_without_weights_as_with_the_base_models(
    store: FolderStore, best_effort_tasks: SampleRows, facts: Facts, tmp_path: Path
) -> None:
    """As earlier versions wrote them, and as this one does."""
    base = load(make_random_model(tmp_path / "base"))
    await upload_folder(store, tmp_path / "base", "base")
    (tmp_path / "without").mkdir()
    save_weights({"unet": base.unet, "text_encoder": base.text_encoder}, tmp_path / "with")
    for job in ("without", "with"):
        await upload_folder(store, tmp_path / job, snapshot_prefix(job, 1, step=0, epoch=1))
        await best_effort_tasks.run(sampled(job, step=0))
        assert await waiting_snapshots(store, job) == []

    rows = []
    for told in facts.published:
        assert isinstance(told, SamplesGenerated)
        images = [await image_of(store, each.artifact) for each in told.samples]
        rows.append(pixels_of(images))
    assert len(rows[0]) == len(PROMPTS)
    assert rows[0] == rows[1]


async def test_a_snapshot_is_not_copied_on_the_stores_disk_to_be_drawn(
    store: FolderStore, best_effort_tasks: SampleRows, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "unet.safetensors").write_bytes(b"gigabytes")
    for name in ("base", prefix := snapshot_prefix("job", 1, step=4, epoch=1)):
        await upload_folder(store, tmp_path / "weights", name)
    links: list[bool] = []

    async def look(_: Standby, order: GenerationOrder, _record: OnRecord) -> tuple[str, ...]:
        weights = Path(order.snapshot or "") / "unet.safetensors"
        links.append(weights.samefile(store.path_of(f"{prefix}/unet.safetensors")))
        return ()

    monkeypatch.setattr(sample_rows, "run_order", look)
    await best_effort_tasks.run(sampled("job"))

    assert links == [True]


async def test_what_the_processor_has_drawn_is_said_of_rows_and_images(
    store: FolderStore, best_effort_tasks: SampleRows, results: InferencerWork, facts: Facts,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    async def slowly(_: Standby, order: GenerationOrder, on_record: OnRecord) -> tuple[str, ...]:
        for index in range(len(order.requests)):
            await on_record(ImageFailed(index=index, seed=1, reason="none"))
        return ("slow",)

    for module in (sample_rows, work):
        monkeypatch.setattr(module, "run_order", slowly)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "unet.safetensors").write_bytes(b"")
    for name in ("base", "job-model", snapshot_prefix("job", 1, step=4, epoch=1)):
        await upload_folder(store, tmp_path / "weights", name)

    await best_effort_tasks.run(sampled("job"))
    order = granted_order(final("job", Inference(prompt="a wall")), "generation", facts)
    whole = await results.perform(order)

    row_told = facts.published[0]
    assert isinstance(row_told, SamplesGenerated)
    assert row_told.warnings == ("samples during the training: slow",)
    assert {"the images: slow", "the last samples: slow"} < {*whole.warnings}


async def test_a_late_snapshot_is_passed_over_while_a_newer_one_of_its_job_stands(
    store: FolderStore, best_effort_tasks: SampleRows, facts: Facts, tmp_path: Path
) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "unet.safetensors").write_bytes(b"")
    for step in (4, 8):
        prefix = snapshot_prefix("job", 1, step=step, epoch=1)
        await upload_folder(store, tmp_path / "weights", prefix)

    await best_effort_tasks.run(sampled("job", step=4))

    assert [each.step for each in await waiting_snapshots(store, "job")] == [8]
    assert facts.published == []


async def test_a_snapshot_that_is_gone_or_broken_leaves_nothing_to_do(
    store: FolderStore, best_effort_tasks: SampleRows, facts: Facts, tmp_path: Path
) -> None:
    await upload_folder(store, make_random_model(tmp_path / "model"), "base")
    other = random_parts(layers=2)
    save_weights({"unet": other.unet}, tmp_path / "other")
    await upload_folder(store, tmp_path / "other", snapshot_prefix("broken", 1, step=4, epoch=1))

    await best_effort_tasks.run(sampled("gone"))
    await best_effort_tasks.run(sampled("broken"))

    assert facts.published == []
    assert await waiting_snapshots(store, "broken") == []


async def test_a_snapshot_stands_while_the_store_or_the_broker_is_away(
    store: FolderStore, best_effort_tasks: SampleRows, facts: Facts, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    base = make_random_model(tmp_path / "base")
    await upload_folder(store, base, "base")
    await store_both(store, tmp_path, "job", load(base), "unet")

    async def away(*_: object, **__: object) -> None:
        raise Unavailable("the broker is away")

    monkeypatch.setattr(facts, "publish", away)
    with pytest.raises(Unavailable):
        await best_effort_tasks.run(sampled("job"))

    assert [each.step for each in await waiting_snapshots(store, "job")] == [4]


async def test_a_job_whose_last_row_cannot_be_drawn_has_its_images_and_a_warning(
    store: FolderStore, results: InferencerWork, tmp_path: Path
) -> None:
    parts = random_parts()
    with torch.no_grad():
        parts.unet.conv_out.bias.fill_(float("nan"))
    save_folder(parts, tmp_path / "nan")
    await upload_folder(store, tmp_path / "nan", "job-model")

    drawn = await results.perform(granted_order(final("job"), "generation", Facts()))

    assert (drawn.images, drawn.samples) == ((), ())
    (warning,) = drawn.warnings
    assert warning.startswith("the last samples are missing: an image of 'a red wall' came out")


def test_a_row_may_be_larger_than_any_image_that_can_be_asked_for() -> None:
    order = GenerationOrder(
        model="m",
        requests=sample_requests(row(resolution=1152)),
        clip_skip=0,
        provenance=Provenance(job="job", step=8),
        out="o",
        snapshot="w",
    )

    read = msgspec.json.decode(msgspec.json.encode(order), type=GenerationOrder)

    assert read == order
    assert [request.side for request in read.requests] == [1152, 1152]
