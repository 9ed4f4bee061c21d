"""What a check has staged is looked at, and staged again as a person has changed it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import msgspec
import pytest
from PIL import Image

from services.fetcher.parsing.datasets import pages as written
from shared.dataset.edited_report import CAPTIONS_AS_FOUND, SIZES_AS_FOUND, edited_report
from shared.dataset.edits import EditedDataset, PictureEdit
from shared.dataset.manifest import Manifest, Report, TrainedPicture
from shared.dataset.pages import page_name, preview_name
from shared.errors import Refused
from shared.messaging.messages import DatasetStaged
from shared.request import Validation
from shared.storage.folders import download_folder
from shared.storage.manifest import MANIFEST
from tests.integration.fetcher.test_work import Staging, drawn, zip_of
from tests.support.live_folders import files_below
from tests.support.servers.web import Web

FILES = {
    "IMG_0001.jpg": drawn(1200, 800, "JPEG", 6),
    "IMG_0002.jpg": drawn(600, 600, "JPEG"),
    "copy/IMG_0002.jpg": drawn(600, 600, "JPEG"),
    "a dog, running_1.png": drawn(900, 500),
    "broken.png": b"not a picture",
}
TINY = drawn(50, 40)


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    return Staging(tmp_path)


async def checked(staging: Staging, web: Web) -> DatasetStaged:
    return await staging.perform(data_url=web.serve("/data.zip", zip_of(FILES)))


async def again(
    staging: Staging, dataset: str, edits: dict[int, PictureEdit], **train: Any
) -> DatasetStaged:
    """Staged for a job that trains on it."""
    edited = EditedDataset(dataset=dataset, edits=edits)
    key = "jobs/check/values/0123abcd.json"
    await staging.store.put(key, msgspec.json.encode(edited))
    return await staging.perform(data_url=f"store:{key}", attempt=2, **train)


async def pictures_of(staging: Staging, staged: DatasetStaged) -> list[TrainedPicture]:
    page = await staging.store.get(f"{staged.pictures}/{page_name(1)}")
    return msgspec.json.decode(page, type=list[TrainedPicture])


async def files_of(staging: Staging, prefix: str, folder: Path) -> dict[str, bytes]:
    await download_folder(staging.store, prefix, folder)
    return {path.name: path.read_bytes() for path in files_below(folder)}


async def test_the_pages_tell_of_every_picture_and_previews_show_it_upright(
    staging: Staging, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(written, "PREVIEWS", 3)

    staged = await checked(staging, web)

    found = await pictures_of(staging, staged)
    assert [(each.file, each.caption, each.source) for each in found] == [
        ("IMG_0001.jpg", "IMG", "name"),
        ("IMG_0002.jpg", "IMG", "name"),
        ("copy/IMG_0002.jpg", "IMG", "name"),
        ("a dog, running_1.png", "a dog, running", "name"),
    ]
    assert "the same pixels as IMG_0002.jpg" in found[2].remarks
    assert found[0].bucket == "384x640"
    first = await staging.store.get(f"{staged.pictures}/{preview_name(1)}")
    with Image.open(io.BytesIO(first)) as preview:
        assert (preview.format, preview.size) == ("WEBP", (171, 256))
    assert await staging.store.exists(f"{staged.pictures}/{preview_name(3)}")
    assert not await staging.store.exists(f"{staged.pictures}/{preview_name(4)}")
    assert staged.dataset_bytes > sum(len(each) for each in list(FILES.values())[:4])
    told = [each async for each in staging.store.list(f"{staged.pictures}/")]
    assert staged.pictures_bytes == sum(
        each.bytes for each in told if not each.key.endswith(MANIFEST)
    )


async def test_without_changes_exactly_what_the_check_found_is_trained_on(
    staging: Staging, web: Web, tmp_path: Path
) -> None:
    first = await checked(staging, web)

    second = await again(staging, first.dataset, {})

    assert second.dataset != first.dataset
    assert await files_of(staging, second.dataset, tmp_path / "2") == await files_of(
        staging, first.dataset, tmp_path / "1"
    )
    shown: dict[str, Any] = {**second.report, "estimate": first.report["estimate"]}
    assert shown == first.report
    assert await pictures_of(staging, second) == await pictures_of(staging, first)


async def test_captions_are_changed_pictures_left_out_and_warnings_follow(
    staging: Staging, web: Web, tmp_path: Path
) -> None:
    first = await checked(staging, web)
    assert any("3 captions from a name that a camera" in each for each in first.report["warnings"])

    edits = {
        1: PictureEdit(caption="a photo of ted, at the beach, smiling"),
        2: PictureEdit(use=False),
        4: PictureEdit(caption=""),
    }
    second = await again(staging, first.dataset, edits)

    await download_folder(staging.store, second.dataset, tmp_path / "got")
    pictures = Manifest.read(tmp_path / "got").pictures
    assert [(each.name, each.caption, each.main_parts) for each in pictures] == [
        ("IMG_0001.jpg", "a photo of ted, at the beach, smiling", 1),
        ("copy/IMG_0002.jpg", "IMG", 1),
        ("a dog, running_1.png", "", 1),
    ]
    assert len([*(tmp_path / "got").glob("*.[jp][pn]g")]) == 3
    report = second.report
    assert (report["images"], report["skipped_count"], report["duplicates_count"]) == (3, 2, 0)
    assert {"file": "IMG_0002.jpg", "reason": "left out by a change of the checked dataset"} in (
        report["skipped"]
    )
    assert report["captions"]["edited"] == 1
    assert report["captions"]["missing"] == 1
    assert any("1 caption from a name that a camera" in each for each in report["warnings"])
    found = await pictures_of(staging, second)
    assert [each.source for each in found] == ["edit", "name", "missing"]
    assert not any("the same pixels" in remark for each in found for remark in each.remarks)
    assert found[2].remarks == ["no caption: trained on without words"]


async def test_the_report_of_a_changed_check_is_that_of_the_job_on_it(
    staging: Staging, web: Web
) -> None:
    validation = Validation(val_split_proportion=0.5)
    first = await staging.perform(
        data_url=web.serve(
            "/data.zip",
            zip_of(
                FILES
                | {
                    "IMG_0003.txt": b"a",
                    "_1.png": TINY,
                    "a dog, running_1.yaml": b"max_caption_length: 20",
                }
            ),
        ),
        validation=validation,
    )
    edits = {
        1: PictureEdit(caption="a photo of ted,, at \\(the\\) beach"),
        2: PictureEdit(use=False),
        4: PictureEdit(caption="a photo of ted at the beach, sunny"),
        5: PictureEdit(caption=" "),
    }
    second = await again(staging, first.dataset, edits, validation=validation)

    shown = edited_report(
        msgspec.convert(first.report, Report),
        await pictures_of(staging, first),
        edits,
        validation,
    )

    staged = msgspec.convert(second.report, Report)
    assert shown.held_out == 2
    for name in (
        "images", "held_out", "captions", "missing_captions", "skipped", "skipped_count",
        "undersized", "undersized_count", "duplicates", "duplicates_count",
    ):  # fmt: skip
        assert getattr(shown, name) == getattr(staged, name), name
    assert {*shown.warnings} - {SIZES_AS_FOUND} == {*staged.warnings}
    assert shown.warnings_count == staged.warnings_count + 1
    told = [(p.file, p.caption, p.source, {*p.remarks}) for p in shown.pictures]
    expected = [(p.file, p.caption, p.source, {*p.remarks}) for p in staged.pictures]
    assert sorted(told) == sorted(expected)
    dog = next(picture for picture in shown.pictures if picture.number == 4)
    assert dog.caption == "a photo of ted at th"
    assert "its caption is cut to 20 characters" in dog.remarks
    assert any("1 caption cut to max_caption_length" in each for each in shown.warnings)
    assert CAPTIONS_AS_FOUND in shown.warnings


async def test_a_changed_caption_that_is_cut_is_named(staging: Staging, web: Web) -> None:
    first = await checked(staging, web)

    second = await again(staging, first.dataset, {4: PictureEdit(caption="word " * 500)})

    assert any("1 caption cut" in each for each in second.report["warnings"])
    assert (
        "its caption is cut to 2048 characters" in (await pictures_of(staging, second))[3].remarks
    )


async def test_a_long_caption_is_remarked_on_its_page(staging: Staging, web: Web) -> None:
    first = await checked(staging, web)

    long = ", ".join(f"word {number}" for number in range(60))
    second = await again(staging, first.dataset, {2: PictureEdit(caption=long)})

    assert second.report["captions"]["over_long"] == 1
    found = await pictures_of(staging, second)
    assert [any("75 tokens" in remark for remark in each.remarks) for each in found] == [
        False, True, False, False
    ]  # fmt: skip


async def test_a_checked_dataset_that_is_gone_is_the_users_to_check_again(
    staging: Staging, web: Web
) -> None:
    first = await checked(staging, web)
    await staging.store.delete(f"{first.dataset}/")

    with pytest.raises(Refused, match=r"data_url: .* check it again"):
        await again(staging, first.dataset, {})
    with pytest.raises(Refused, match=r"data_url: .* check it again"):
        await staging.perform(data_url="store:jobs/gone/values/00.json")
