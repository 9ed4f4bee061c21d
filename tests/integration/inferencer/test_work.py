"""The inferencer's parent with its real child: from a trained model to stored images."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import torch
from msgspec.structs import replace
from PIL import Image, ImageChops, ImageStat

from services.inferencer.order import Provenance
from services.inferencer.work import InferencerWork, image_request, provenance
from shared.adapters.folder import FolderStore
from shared.child.parent import Standby
from shared.diffusion.saving import save_folder
from shared.errors import Passing, Refused
from shared.html_report.facts import TrainingFacts, settings_of
from shared.messaging.messages import (
    Artifact,
    CheckpointFinal,
    DrawnSample,
    ImagesGenerated,
    ModelStaged,
    SampleRow,
)
from shared.request import Inference, Train
from shared.storage.folders import upload_folder
from shared.worker.order import Order
from tests.support.drawing import POISON, poisoned
from tests.support.models import make_random_model, random_parts
from tests.support.workers import Facts, files_of, folder_store, granted_order, until_gone

pytestmark = pytest.mark.usefixtures("warm_children")

DEADLINE = 120.0
CHECKPOINT = Artifact(name="last", kind="checkpoint", key="k", bytes=1, sha256="0a" * 32)
LONG = "a (red:1.2) wall, " * 30


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a store with a trained model, a poisoned one, and a broken one."""
    folder = tmp_path_factory.mktemp("trained")
    store = folder_store(folder / "store")
    asyncio.run(upload_folder(store, make_random_model(folder / "model"), "model"))
    save_folder(poisoned(random_parts()), folder / "poisoned", dtype=torch.float32)
    asyncio.run(upload_folder(store, folder / "poisoned", "poisoned"))
    (folder / "broken").mkdir()
    (folder / "broken" / "model_index.json").write_text("{}")
    asyncio.run(upload_folder(store, folder / "broken", "broken"))
    return folder / "store"


@pytest.fixture
def store(trained: Path) -> FolderStore:
    return folder_store(trained)


@pytest.fixture
async def work(store: FolderStore, tmp_path: Path) -> AsyncIterator[InferencerWork]:
    standby = Standby("tests.support.warm.inferencer")
    work = InferencerWork(store, standby, scratch=tmp_path / "scratch", cache=tmp_path / "cache")
    yield work
    await work.close()


def small(prompt: str, *, steps: int = 1, outputs: int = 1, seed: int | None = None) -> Inference:
    return Inference(
        prompt=prompt,
        width=128,
        height=128,
        num_inference_steps=steps,
        num_outputs=outputs,
        seed=seed,
        passback=f"for {prompt}",
        scheduler="DDIM",
    )


def final(job: str, *entries: Inference, model: str = "model") -> CheckpointFinal:
    return CheckpointFinal(
        job=job, stage="training", claim="c", attempt=1, inference=entries, model=model,
        checkpoint=CHECKPOINT, summary={"steps": 80},
    )  # fmt: skip


def named(job: str, *entries: Inference, clip_skip: int = 0) -> ModelStaged:
    return ModelStaged(
        job=job, stage="staging", claim="c", inference=entries, model="model", clip_skip=clip_skip,
        name="last-first.safetensors", sha256="5" * 64,
    )  # fmt: skip


async def image_of(store: FolderStore, file: Artifact) -> Image.Image:
    return Image.open(io.BytesIO(await store.get(file.key)))


async def small_of(store: FolderStore, key: str | None) -> Image.Image:
    """A thumbnail, which lies under its image's key but for the end."""
    assert key is not None
    assert await store.exists(key.replace(".webp", ".png"))
    image = Image.open(io.BytesIO(await store.get(key)))
    assert image.format == "WEBP"
    return image


def closeness(one: Image.Image, other: Image.Image) -> float:
    """The mean difference of two images' colours, of 255, seen from afar."""
    far = (each.convert("RGB").resize((4, 4), Image.Resampling.BOX) for each in (one, other))
    difference = ImageChops.difference(*far)
    return sum(ImageStat.Stat(difference).mean) / 3


def pid_of(work: InferencerWork) -> int:
    assert work._standby._child is not None
    return work._standby._child.pid


async def test_one_child_draws_job_after_job_and_outlives_one_that_fails(
    work: InferencerWork, store: FolderStore, tmp_path: Path
) -> None:
    assert await work.prepare() == "cpu"
    child = pid_of(work)
    order = granted_order(
        final("first", small("a", outputs=2, seed=7), small(LONG)), "generation", Facts()
    )

    result = await work.perform(order)

    assert [each.prompt for each in result.images] == ["a", "a", LONG]
    assert [each.passback for each in result.images] == ["for a", "for a", f"for {LONG}"]
    assert [each.seed for each in result.images[:2]] == [7, 8]
    names = [each.key for each in files_of(result)]
    assert names == [f"jobs/first/generation/1/{number:04}.png" for number in range(3)]
    assert len(await store.get(names[0])) == files_of(result)[0].bytes
    images = [await image_of(store, each) for each in files_of(result)]
    assert images[0].size == (128, 128)
    smalls = [await small_of(store, each.thumbnail) for each in result.images]
    assert [each.size for each in smalls] == [(128, 128)] * 3, "none is enlarged"
    assert [closeness(*each) < 8 for each in zip(images, smalls, strict=True)] == [True] * 3
    told = [json.loads(each.info["everydream"]) for each in images]
    assert [each["prompt"] for each in told] == ["a", "a", LONG]
    assert [each["seed"] for each in told] == [each.seed for each in result.images]
    assert {(each["job"], each["step"], each["model"]) for each in told} == {("first", 80, "last")}
    assert images[1].info["parameters"].startswith("a\nSteps: 1, Sampler: DDIM, CFG scale: 7.5, ")
    assert ", Seed: 8, Size: 128x128, Model hash: 0a0a0a0a0a, " in images[1].info["parameters"]
    assert list((tmp_path / "scratch").iterdir()) == []

    broken = final("second", small("a"), model="broken")
    with pytest.raises(Refused, match="base model"):
        await work.perform(granted_order(broken, "generation", Facts()))

    alone = granted_order(final("third", small("a", seed=8)), "generation", Facts())
    again = await work.perform(alone)

    (image,) = [await image_of(store, each) for each in files_of(again)]
    assert image.tobytes() == images[1].tobytes()
    assert pid_of(work) == child

    untrained = granted_order(named("fourth", small("a", seed=8)), "generation", Facts())
    once_more = await work.perform(untrained)

    (drawn,) = files_of(once_more)
    assert drawn.key == "jobs/fourth/generation/1/0000.png"
    assert (await image_of(store, drawn)).tobytes() == images[1].tobytes()
    assert (once_more.samples, once_more.warnings) == ((), ())

    skipping = named("fifth", small("a", seed=8), clip_skip=2)
    otherwise = await work.perform(granted_order(skipping, "generation", Facts()))

    (drawn,) = files_of(otherwise)
    assert (await image_of(store, drawn)).tobytes() != images[1].tobytes()


async def test_the_report_has_the_samples_of_all_steps_and_the_images(
    work: InferencerWork, store: FolderStore
) -> None:
    facts = TrainingFacts(
        job="told", ended_at=0.0, gpu="cpu", settings=settings_of(Train(data_url="d")),
        dataset={"steps": 80}, summary={"steps": 80}, checkpoint=CHECKPOINT, checkpoints=(),
        points=[],
    )  # fmt: skip
    await store.put("facts", msgspec.json.encode(facts))
    await store.put("early.webp", b"early")
    row = SampleRow(step=80, epoch=1, prompts=("a cat",), seed=3, resolution=128)
    early = DrawnSample(
        artifact=CHECKPOINT, thumbnail="early.webp", step=40, epoch=0, index=0, prompt="a cat",
        seed=3,
    )  # fmt: skip
    message = replace(final("told", small("a hat")), report_facts="facts", row=row)
    order = granted_order(message, "generation", Facts(), drawn=(early,))

    result = await work.perform(order)

    assert result.html_report is not None
    assert result.html_report.key == "jobs/told/generation/1/report.html"
    assert result.warnings == ()
    page = (await store.get(result.html_report.key)).decode()
    assert page.count("data:image/webp;base64,") == 3
    assert page.index('scope="row">80<') < page.index('scope="row">40<')
    assert "a hat" in page

    lost = replace(message, job="lost", inference=(), row=None, report_facts="none")
    result = await work.perform(granted_order(lost, "generation", Facts()))

    assert result.html_report is None
    assert [each.partition(":")[0] for each in result.warnings] == ["report.html is missing"]


async def test_an_image_that_fails_has_an_error_instead_and_the_others_are_drawn(
    work: InferencerWork, store: FolderStore
) -> None:
    """Batches change the order in which the images are generated."""
    await work.prepare()
    child = pid_of(work)
    entries = (small("a", seed=1), small(POISON, outputs=2, seed=2), small("b", steps=2, seed=4),
               small("c", seed=5))  # fmt: skip
    row = SampleRow(step=8, epoch=1, prompts=("a", POISON, "b"), seed=5, resolution=128)
    asked = replace(final("job", *entries, model="poisoned"), row=row)

    result = await work.perform(granted_order(asked, "generation", Facts()))

    images = result.images
    assert [each.prompt for each in images] == ["a", POISON, POISON, "b", "c"]
    assert [each.seed for each in images] == [1, 2, 3, 4, 5]
    assert [bool(each.artifact) for each in images] == [True, False, False, True, True]
    assert [bool(each.error) for each in images] == [False, True, True, False, False]
    assert f"an image of {POISON!r} came out as not-a-number" in (images[1].error or "")
    assert images[1].passback == f"for {POISON}"
    names = [each.key.rpartition("/")[2] for each in files_of(result)]
    assert names == ["0000.png", "0003.png", "0004.png"]
    assert [each.index for each in result.samples] == [0, 2]
    assert [each.prompt for each in result.samples] == ["a", "b"]
    (warning,) = result.warnings
    assert warning.startswith(f"one of the last samples is missing: an image of {POISON!r} came")

    alone = final("alone", small("c", seed=5), model="poisoned")
    again = await work.perform(granted_order(alone, "generation", Facts()))
    drawn, redrawn = [await image_of(store, files_of(each)[-1]) for each in (result, again)]
    assert drawn.tobytes() == redrawn.tobytes()
    assert pid_of(work) == child


async def test_a_job_none_of_whose_images_can_be_drawn_fails_for_good_with_the_first_reason(
    work: InferencerWork,
) -> None:
    await work.prepare()
    child = pid_of(work)
    entries = (small(f"red {POISON}", steps=2), small(POISON), small(POISON))
    hopeless = granted_order(final("job", *entries, model="poisoned"), "generation", Facts())

    with pytest.raises(Refused, match=f"an image of 'red {POISON}' came out as not-a-number"):
        await work.perform(hopeless)

    assert pid_of(work) == child


async def test_a_cancelled_job_ends_the_child_and_a_killed_one_is_a_passing_failure(
    work: InferencerWork,
) -> None:
    await work.prepare()
    first = pid_of(work)
    endless = final("long", small("a", steps=500, outputs=10))
    order = granted_order(endless, "generation", Facts())
    performing = asyncio.create_task(work.perform(order))
    await _until_drawing(order, performing)
    performing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await performing
    await until_gone(first)

    await work.prepare()
    second = pid_of(work)
    order = granted_order(endless, "generation", Facts())
    performing = asyncio.create_task(work.perform(order))
    await _until_drawing(order, performing)
    os.kill(second, signal.SIGKILL)
    with pytest.raises(Passing, match="SIGKILL"):
        await performing


async def _until_drawing(order: Order, performing: asyncio.Task[ImagesGenerated]) -> None:
    async with asyncio.timeout(DEADLINE):
        while "step" not in order.numbers and not performing.done():
            await asyncio.sleep(0.02)


async def test_a_job_without_entries_has_no_images(work: InferencerWork) -> None:
    result = await work.perform(granted_order(final("none"), "generation", Facts()))

    assert result.images == ()


def test_a_trained_and_a_named_model_both_go_to_the_inferencer_and_are_distinguished(
    work: InferencerWork,
) -> None:
    trained, again = final("first"), named("again")

    assert work.stage_of(trained) == work.stage_of(again) == "generation"
    assert provenance(trained) == Provenance(
        job="first", step=80, model="last", sha256=CHECKPOINT.sha256
    )
    assert provenance(again) == Provenance(
        job="again", model="last-first.safetensors", sha256="5" * 64
    )


def test_an_open_seed_is_drawn_for_each_entry_and_a_given_one_is_kept() -> None:
    drawn = {image_request(small("a", seed=seed)).seed for seed in (None, -1) for _ in range(50)}

    assert len(drawn) == 100
    assert image_request(small("a", seed=0)).seed == 0
