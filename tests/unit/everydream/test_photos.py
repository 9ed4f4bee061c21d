"""A folder of photos becomes a zip of its images and captions."""

from __future__ import annotations

import asyncio
import errno
import io
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from everydream import photos
from everydream.job_spec import JobSpec
from everydream.photos import as_zip, dataset_files, left_out_lines, write_zip
from everydream.submission import validate
from everydream.terminal.display import Display
from services.fetcher.parsing.datasets import archive
from services.fetcher.parsing.datasets.archive import MAX_TEXT_BYTES
from shared.errors import Refused

PHOTOS = {
    "ted by the sea_1.jpg": b"sea",
    "deep/er/IMG_2.PNG": b"two",
    "deep/er/IMG_2.txt": b"a caption",
    "global.yaml": b"tags: x",
    "IMG_3.webp": b"three",
    "IMG_3.caption": b"another",
}
OTHERS = {
    "notes.docx": b"x",
    ".hidden.jpg": b"x",
    ".thumbnails/1.jpg": b"x",
    "__MACOSX/1.jpg": b"x",
    "film.mp4": b"x",
    "ted.jpg.bak": b"x",
}


def folder_of(files: dict[str, bytes], folder: Path) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


async def zip_of(data: Path, folder: Path) -> Path:
    await asyncio.to_thread(folder.mkdir)
    return await as_zip(data, folder, Display(Console(file=io.StringIO())))


async def test_a_zip_has_the_images_and_their_captions_and_nothing_else(tmp_path: Path) -> None:
    made = await zip_of(folder_of(PHOTOS | OTHERS, tmp_path / "photos"), tmp_path / "made")
    with zipfile.ZipFile(made) as zipped:
        found = {name: zipped.read(name) for name in zipped.namelist()}

    assert found == PHOTOS
    assert list(found) == sorted(found, key=lambda name: Path(name).parts)


async def test_the_same_photos_make_the_same_zip_wherever_and_whenever(tmp_path: Path) -> None:
    first = folder_of(PHOTOS, tmp_path / "first")
    second = folder_of(dict(reversed(PHOTOS.items())), tmp_path / "second")
    os.utime(second / "IMG_3.webp", (1, 1))

    one, other = await zip_of(first, tmp_path / "one"), await zip_of(second, tmp_path / "other")
    assert one.read_bytes() == other.read_bytes()


async def test_a_zip_is_taken_as_it_is_and_stays(tmp_path: Path) -> None:
    there = tmp_path / "photos.zip"
    there.write_bytes(b"whatever it is")

    assert await zip_of(there, tmp_path / "made") == there
    assert there.exists()


@pytest.mark.parametrize("is_full_from", ["the beginning", "the middle"])
async def test_a_full_temporary_folder_is_named_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_full_from: str
) -> None:
    folder = folder_of(PHOTOS, tmp_path / "photos")
    if is_full_from == "the beginning":
        monkeypatch.setattr(photos, "free_bytes", lambda _folder: 5)
    else:
        monkeypatch.setattr(photos, "write_zip", full)

    with pytest.raises(Refused, match=r"photos: no room in .* for the zip .*TMPDIR"):
        await zip_of(folder, tmp_path / "made")


def full(*_arguments: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


async def test_ctrl_c_ends_the_packing_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(photos, "PIECE", 1)
    folder = folder_of({"1.jpg": b"x" * 5_000_000}, tmp_path / "photos")
    packing = asyncio.create_task(zip_of(folder, tmp_path / "made"))
    while not (tmp_path / "made" / "dataset.zip").exists():
        await asyncio.sleep(0)

    packing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await packing

    assert (tmp_path / "made" / "dataset.zip").stat().st_size < 5_000_000


TOO_LARGE: dict[str, bytes] = {
    "IMG_2.txt": b"x" * (MAX_TEXT_BYTES + 1),
    "deep/IMG_2.png.caption": b"x" * (MAX_TEXT_BYTES + 1),
    "LICENSE.txt": b"x" * (MAX_TEXT_BYTES + 1),
}


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_what_a_server_would_not_take_is_said_before_it_is_uploaded(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "MAX_IMAGE_BYTES", 10)
    images = {"img_2.png": b"small", "deep/IMG_2.png": b"large enough"}
    data = folder_of(images | TOO_LARGE, tmp_path / "photos")
    if kind == "zip":
        names = [path.relative_to(data) for path in sorted(data.rglob("*.*"))]
        write_zip(tmp_path / "photos.zip", data, names, print)
        data = tmp_path / "photos.zip"

    with pytest.raises(Refused) as refused:
        validate(JobSpec(str(data)), None)

    first, *others = str(refused.value).splitlines()
    assert first == f"{data}: make these smaller, or leave them out:"
    assert sorted(others) == [
        "  - IMG_2.txt: 65537 bytes; at most 65536 are taken",
        "  - deep/IMG_2.png.caption: 65537 bytes; at most 65536 are taken",
        "  - deep/IMG_2.png: 12 bytes; at most 10 are taken",
    ]


def test_a_zip_without_an_image_is_refused_before_it_is_uploaded(tmp_path: Path) -> None:
    folder_of({"a.txt": b"x", "__MACOSX/a.jpg": b"x"}, tmp_path)
    write_zip(tmp_path / "no.zip", tmp_path, [Path("a.txt"), Path("__MACOSX/a.jpg")], print)

    with pytest.raises(Refused, match=r"no\.zip: no image in it; these are images"):
        validate(JobSpec(str(tmp_path / "no.zip")), None)


def test_a_folder_without_an_image_is_reported(tmp_path: Path) -> None:
    folder = folder_of({"IMG_2.txt": b"a caption", **OTHERS}, tmp_path)

    with pytest.raises(Refused, match=r"no image in it; these are images: \.avif, \.bmp"):
        dataset_files(folder)


def test_a_missing_folder_is_reported(tmp_path: Path) -> None:
    with pytest.raises(
        Refused, match=r"nowhere: there is no such file or folder; expected a folder of"
    ):
        dataset_files(tmp_path / "nowhere")


@pytest.mark.parametrize("where", ["ted", "", ".hidden"])
def test_a_folder_that_cannot_be_read_is_refused_unless_it_is_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    folder, scan = (
        folder_of(PHOTOS | {"ted/1.jpg": b"x", ".hidden/1.jpg": b"x"}, tmp_path),
        os.scandir,
    )

    def guarded(path: str) -> Iterator[os.DirEntry[str]]:
        if Path(path) == folder / where:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", guarded)
    refused = None
    try:
        validate(JobSpec(str(folder)), None)
    except Refused as error:
        refused = str(error)

    assert refused == (
        None
        if where == ".hidden"
        else f"{folder / where}: Permission denied; make it readable, or take it out of {folder}"
    )


def test_what_is_not_uploaded_is_said_by_suffix(tmp_path: Path) -> None:
    more = {"IMG_1.TIFF": b"x", "deep/IMG_2.tiff": b"x", "README": b"x"}
    folder = folder_of(PHOTOS | OTHERS | more, tmp_path)

    line, named = left_out_lines(folder)

    assert named == "  IMG_1.TIFF, README, deep/IMG_2.tiff, film.mp4, notes.docx, ted.jpg.bak"
    assert line.startswith(
        "not uploaded: 2 .tiff, 1 without a suffix, 1 .mp4, 1 .docx, 1 .bak, 3 hidden"
        " (pictures are .avif, .bmp"
    )


def test_of_a_folder_that_is_uploaded_whole_nothing_is_said(tmp_path: Path) -> None:
    assert left_out_lines(folder_of(PHOTOS, tmp_path)) == []


def test_links_to_folders_and_to_nothing_are_named(tmp_path: Path) -> None:
    folder = folder_of(PHOTOS, tmp_path / "photos")
    (folder / "more").symlink_to(folder_of(PHOTOS, tmp_path / "others"))
    (folder / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (folder / "same.jpg").symlink_to(folder / "IMG_3.webp")

    assert left_out_lines(folder) == [
        "not uploaded: gone.jpg: a link that is not followed",
        "not uploaded: more: a link that is not followed",
    ]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "what came is empty"),
        (b"\x1f\x8b of a tar.gz", "a gzip file"),
        (b"\xff\xd8\xff of a JPEG", "a single JPEG image"),
        (b"Rar!", "a RAR archive"),
        (b"PK\x03\x04 cut off", "only a part of a zip"),
    ],
)
def test_a_file_that_is_no_zip_is_refused_by_what_it_is_before_it_is_uploaded(
    content: bytes, reason: str, tmp_path: Path
) -> None:
    file = tmp_path / "photos.zip"
    file.write_bytes(content)

    with pytest.raises(Refused, match=rf"photos\.zip: not a zip file .*{reason}"):
        validate(JobSpec(str(file)), None)


def test_a_single_picture_is_no_dataset_and_its_folder_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "ted.JPG").write_bytes(b"")

    with pytest.raises(Refused, match=r"ted\.JPG: a single picture; give the folder"):
        validate(JobSpec(str(tmp_path / "ted.JPG")), None)
