"""A folder of photos becomes a zip of its images and captions."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

from everydream.photos import as_zip
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


def test_a_zip_has_the_images_and_their_captions_and_nothing_else(tmp_path: Path) -> None:
    with (
        as_zip(folder_of(PHOTOS | OTHERS, tmp_path)) as archive,
        zipfile.ZipFile(archive) as zipped,
    ):
        found = {name: zipped.read(name) for name in zipped.namelist()}

    assert found == PHOTOS
    assert list(found) == sorted(found, key=lambda name: Path(name).parts)
    assert not archive.exists()


def test_the_same_photos_make_the_same_zip_wherever_and_whenever(tmp_path: Path) -> None:
    first = folder_of(PHOTOS, tmp_path / "first")
    second = folder_of(dict(reversed(PHOTOS.items())), tmp_path / "second")
    os.utime(second / "IMG_3.webp", (1, 1))

    with as_zip(first) as one, as_zip(second) as other:
        assert one.read_bytes() == other.read_bytes()


def test_a_zip_is_taken_as_it_is_and_stays(tmp_path: Path) -> None:
    archive = tmp_path / "photos.zip"
    archive.write_bytes(b"whatever it is")

    with as_zip(archive) as same:
        assert same == archive
    assert archive.exists()


def test_a_folder_without_an_image_is_reported(tmp_path: Path) -> None:
    folder = folder_of({"IMG_2.txt": b"a caption", **OTHERS}, tmp_path)

    with (
        pytest.raises(Refused, match=r"no image in it; these are images: \.bmp, \.jfif"),
        as_zip(folder),
    ):
        pass


def test_a_missing_folder_is_reported(tmp_path: Path) -> None:
    with (
        pytest.raises(Refused, match=r"nowhere: expected a folder of images, a zip, or a URL"),
        as_zip(tmp_path / "nowhere"),
    ):
        pass
