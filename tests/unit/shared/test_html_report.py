"""``report.html``: whole in itself, escaped, bounded, and without what is secret."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from shared.html_report.charts import charts_of, ticks
from shared.html_report.facts import TrainingFacts, settings_of
from shared.html_report.make import made_or_missing, store_report
from shared.html_report.page import duration, size
from shared.html_report.pictures import evenly
from shared.messaging.messages import (
    Artifact,
    ClaimGranted,
    DrawnImage,
    DrawnSample,
    SavedCheckpoint,
)
from shared.request import Train
from shared.storage.curve import Point
from tests.support.workers import folder_store

HOSTILE = "<script src=https://evil.example/x.js></script>\"'><img src=//evil.example onerror=x>"
BOUND = 5_000_000


class Seen(HTMLParser):
    """The elements, the text, and whatever a browser might ask for."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.asked: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.asked += [
            value or ""
            for name, value in attrs
            if name in ("src", "href", "srcset", "action", "data", "poster", "xlink:href")
        ]
        assert not [name for name, _ in attrs if name.startswith("on") or name == "style"]

    def handle_data(self, data: str) -> None:
        self.text += data


def artifact(name: str, **changes: Any) -> Artifact:
    whole = {"name": name, "kind": "checkpoint", "key": "k", "bytes": 4_270_000_000, **changes}
    return msgspec.convert({"sha256": "ab" * 32, **whole}, Artifact)


def sample(step: int, index: int, prompt: str = "a cat") -> DrawnSample:
    return DrawnSample(
        artifact=artifact("s.png"), thumbnail=f"{step}-{index}.webp", step=step, epoch=0,
        index=index, prompt=prompt, seed=index,
    )  # fmt: skip


def image(number: int, **changes: Any) -> DrawnImage:
    whole: dict[str, Any] = {
        "artifact": None, "thumbnail": f"image-{number}.webp", "prompt": "a dog", "width": 512,
        "height": 768, "num_inference_steps": 30, "guidance_scale": 7.5, "scheduler": "DDIM",
        "seed": 7,
    }  # fmt: skip
    return msgspec.convert({**whole, **changes}, DrawnImage)


def facts(**changes: Any) -> TrainingFacts:
    whole: dict[str, Any] = {
        "job": "the-job",
        "ended_at": 1e9,
        "gpu": "H200",
        "settings": settings_of(Train(data_url="http://d.example/a.zip")),
        "dataset": {"images": 12, "steps": 40, "skipped": [], "skipped_count": 0},
        "summary": {"steps": 40, "epochs": 4, "images": 12, "loss": 0.1234, "warnings": []},
        "checkpoint": artifact("last.safetensors"),
        "checkpoints": (),
        "points": [
            Point(step=step, epoch=0, time=step, loss=1 / step, lr=1e-6) for step in range(1, 41)
        ],
    }
    return TrainingFacts(**{**whole, **changes})


async def page(
    folder: Path,
    *,
    told: TrainingFacts | None = None,
    samples: list[DrawnSample] | None = None,
    images: list[DrawnImage] | None = None,
    warnings: tuple[str, ...] = (),
    thumbnail: bytes = b"webp",
) -> str:
    store = folder_store(folder / "store")
    keys = [each.thumbnail for each in samples or []] + [each.thumbnail for each in images or []]
    for key in {*filter(None, keys)}:
        await store.put(key, thumbnail)
    grant = ClaimGranted(
        job="the-job", stage="generation", claim="c", attempt=1, warnings=warnings,
        submitted_at=1e9 - 4000, started_at=1e9 - 3900,
    )  # fmt: skip
    made = await store_report(
        store, told or facts(), grant, prefix="p", folder=folder, samples=samples or [],
        images=images, keepalive=lambda: None,
    )  # fmt: skip
    written = await store.get(made.key)
    assert (made.name, made.kind, made.bytes) == ("report.html", "report", len(written))
    return written.decode()


async def test_a_report_asks_no_host_for_anything_and_runs_nothing_whatever_users_wrote(
    tmp_path: Path,
) -> None:
    told = facts(
        gpu=HOSTILE,
        settings=settings_of(
            Train(data_url=HOSTILE, sample_prompts=[HOSTILE], hf_repo_subfolder=HOSTILE)
        ),
        dataset={
            "images": 1, "buckets": {HOSTILE: 1}, "warnings": [HOSTILE], "skipped_count": 1,
            "skipped": [{"file": HOSTILE, "reason": HOSTILE}], "captions": {HOSTILE: 1},
        },
        summary={"steps": 40, "optimizer": HOSTILE, "warnings": [HOSTILE]},
        checkpoint=artifact(HOSTILE),
        checkpoints=(SavedCheckpoint(artifact=artifact(HOSTILE), step=3, epoch=0),),
    )  # fmt: skip
    written = await page(
        tmp_path, told=told, samples=[sample(0, 0, HOSTILE)], warnings=(HOSTILE,),
        images=[image(0, prompt=HOSTILE, negative_prompt=HOSTILE, error=HOSTILE)],
    )  # fmt: skip

    seen = Seen(written)
    assert seen.asked
    assert all(each.startswith(("data:image/webp;base64,", "#")) for each in seen.asked)
    assert {"script", "link", "iframe", "object", "base", "form", "use"} & {*seen.tags} == set()
    assert "url(" not in written
    assert "@import" not in written
    assert HOSTILE in seen.text
    assert "<script" not in written


async def test_a_report_says_what_was_trained_and_on_what(tmp_path: Path) -> None:
    saved = SavedCheckpoint(
        artifact=artifact("ep02.safetensors"), step=20, epoch=2, validation_loss=0.25, best=True
    )
    told = facts(
        settings=settings_of(Train(data_url="http://d.example/a.zip", lr=2e-6, lora_rank=8)),
        checkpoints=(saved,),
        merged=(artifact("merged.safetensors"),),
        dataset={"images": 12, "steps": 90, "skipped_count": 51, "skipped": [
            {"file": "broken.jpg", "reason": "it cannot be read"}], "warnings": ["of the data"]},
        summary={**facts().summary, "validation": {"last": {"loss": 0.5}}, "warnings": ["at last"]},
    )  # fmt: skip
    written = await page(
        tmp_path, told=told, samples=[sample(0, 0), sample(20, 0), sample(20, 1, "a hat")],
        images=[image(0)], warnings=("of the job", "of the data"),
    )  # fmt: skip

    text = Seen(written).text
    for wanted in (
        "the-job", "0.1234", "H200", "90 steps were planned", "2e-06", "broken.jpg",
        "it cannot be read", "and 50 more", "of the job", "at last", "ab" * 32, "4.27 GB",
        "lowest validation loss", "the LoRA", "merged into the base model", "0.25", "768", "seed 7",
        "2001-09-09 01:46:40 UTC",
        "1 min 40 s",
    ):  # fmt: skip
        assert wanted in text, wanted
    assert text.count("of the data") == 1
    assert written.count("<path") == 3  # the loss, smoothed too, and one rate
    assert written.index('scope="row">20<') < written.index('scope="row">0<')
    assert written.count("data:image/webp") == 4
    assert written.count('class="none"') == 1  # no sample of the second prompt at step 0


@pytest.mark.parametrize("address", [
    "https://user-data.example/folder-of-mine/a.zip?X-Amz-Signature=secret#secret",
    "store:jobs/secret/a.zip",
])  # fmt: skip
def test_what_signs_a_link_and_our_own_keys_are_not_said(address: str) -> None:
    train = Train(data_url=address, resume_ckpt_url=address)

    told = {each.name: each.value for each in settings_of(train)}

    assert "secret" not in str(told)
    assert "folder-of-mine" not in str(told)
    assert told["data_url"] in ("user-data.example/…/a.zip", "from this server's store")


def test_every_setting_is_told_and_whether_it_was_changed() -> None:
    told = {each.name: each for each in settings_of(Train(data_url="d", amp=False, lr=1e-5))}

    assert {*told} == {*Train.__struct_fields__}
    assert [each.name for each in told.values() if not each.is_default] == [
        "data_url", "amp", "lr",
    ]  # fmt: skip
    assert (told["amp"].value, told["lr"].value) == ("no", "1e-05")


async def test_a_report_of_a_long_training_stays_small_and_says_what_it_leaves_out(
    tmp_path: Path,
) -> None:
    long = "long " * 1_000
    told = facts(
        settings=settings_of(Train(data_url=long, sample_prompts=[long] * 1000)),
        checkpoints=tuple(
            SavedCheckpoint(artifact=artifact(f"{step}.ckpt"), step=step, epoch=0)
            for step in range(1000)
        ),
        summary={"steps": 40, "warnings": [f"{number}{long}" for number in range(1000)]},
    )
    same = "same.webp"
    samples = [
        replace(sample(step, index, long), thumbnail=same)
        for step in range(50)
        for index in range(30)
    ]
    images = [image(number, prompt=long, thumbnail=same) for number in range(70)]

    written = await page(
        tmp_path, told=told, samples=samples, images=images, thumbnail=b"x" * 30_000
    )

    assert len(written) < BOUND
    text = Seen(written).text
    rows = written.count('scope="row"')
    assert f"Left out evenly: {50 - rows} rows." in text
    assert "Left out at the end: 6 prompts." in text
    assert 'scope="row">49<' in written
    assert 'scope="row">0<' in written
    assert "The first 33 are shown, 37 are left out." in text


async def test_a_thumbnail_that_is_gone_costs_a_picture_and_a_store_that_fails_the_report(
    tmp_path: Path,
) -> None:
    store = folder_store(tmp_path / "store")
    grant = ClaimGranted(job="j", stage="training", claim="c", attempt=1)

    async def made(told: TrainingFacts) -> Artifact:
        return await store_report(
            store, told, grant, prefix="p", folder=tmp_path, samples=[sample(5, 0)],
            keepalive=lambda: None,
        )  # fmt: skip

    report, warnings = await made_or_missing("j", made(facts()))
    assert report is not None
    assert warnings == ()
    assert "data:image" not in (await store.get(report.key)).decode()

    report, warnings = await made_or_missing("j", made(facts(ended_at="never")))
    assert report is None
    assert [each.partition(":")[0] for each in warnings] == ["report.html is missing"]


def test_a_training_without_numbers_has_no_chart_and_one_with_few_has_points() -> None:
    assert charts_of([], [1]) == []

    lone = Point(step=5, epoch=0, time=1, loss=0.5, validation_loss=0.25)
    loss, validation = charts_of([lone], [5])

    assert [curve.dots for curve in loss.curves] == [curve.dots for curve in validation.curves] * 2
    assert loss.marks == [loss.curves[0].dots[0][0]]
    assert validation.description.startswith("Validation loss: 0.25 at step 5")


@pytest.mark.parametrize("loss", [0.09051796793937683, 0.7, 1e-30, 3e8])
@pytest.mark.parametrize("growth", [0, 1e-16, 1e-12, 1e-7])
def test_losses_that_are_the_same_but_for_their_rounding_have_a_chart(
    loss: float, growth: float
) -> None:
    points = [Point(step=at, epoch=0, time=1, loss=loss * (1 + growth * at)) for at in (1, 2)]

    for few in (points, points[1:]):
        (chart,) = charts_of(few, [])

        assert len(chart.y) > 1
        assert len({tick.at for tick in chart.y}) == len(chart.y)


@pytest.mark.parametrize(("low", "high", "count"), [(0, 1, 6), (3, 4.1, 6), (1e-7, 2e-6, 4)])
def test_ticks_are_round_and_few(low: float, high: float, count: int) -> None:
    found = ticks(low, high)

    assert len(found) <= count
    assert all(low <= each <= high * 1.0001 and len(f"{each:.3g}") <= 7 for each in found)


def test_rows_are_left_out_evenly_and_the_ends_stay() -> None:
    assert evenly([1, 2, 3], 3) == [1, 2, 3]
    assert evenly([*range(11)], 3) == [0, 5, 10]
    assert evenly([*range(11)], 1) == [10]


def test_sizes_and_spans_are_told_as_people_do() -> None:
    assert [size(each) for each in (12, 12_345, 4.27e9)] == ["12 bytes", "12.3 kB", "4.27 GB"]
    assert [duration(each) for each in (-1, 59, 61, 3700, 90_000)] == [
        "0 s", "59 s", "1 min 1 s", "1 h 1 min", "1 d 1 h",
    ]  # fmt: skip
