"""A folder of photos becomes a zip of its images and captions."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

from everydream.job_spec import JobSpec
from everydream.photos import as_zip, left_out_lines, write_zip
from everydream.submission import validate
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


def test_a_zip_has_the_images_and_their_captions_and_nothing_else(tmp_path: Path) -> None:
    with (
        as_zip(folder_of(PHOTOS | OTHERS, tmp_path)) as made,
        zipfile.ZipFile(made) as zipped,
    ):
        found = {name: zipped.read(name) for name in zipped.namelist()}

    assert found == PHOTOS
    assert list(found) == sorted(found, key=lambda name: Path(name).parts)
    assert not made.exists()


def test_the_same_photos_make_the_same_zip_wherever_and_whenever(tmp_path: Path) -> None:
    first = folder_of(PHOTOS, tmp_path / "first")
    second = folder_of(dict(reversed(PHOTOS.items())), tmp_path / "second")
    os.utime(second / "IMG_3.webp", (1, 1))

    with as_zip(first) as one, as_zip(second) as other:
        assert one.read_bytes() == other.read_bytes()


def test_a_zip_is_taken_as_it_is_and_stays(tmp_path: Path) -> None:
    there = tmp_path / "photos.zip"
    there.write_bytes(b"whatever it is")

    with as_zip(there) as same:
        assert same == there
    assert there.exists()


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
        write_zip(tmp_path / "photos.zip", data, names)
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
    write_zip(tmp_path / "no.zip", tmp_path, [Path("a.txt"), Path("__MACOSX/a.jpg")])

    with pytest.raises(Refused, match=r"no\.zip: no image in it; these are images"):
        validate(JobSpec(str(tmp_path / "no.zip")), None)


def test_a_folder_without_an_image_is_reported(tmp_path: Path) -> None:
    folder = folder_of({"IMG_2.txt": b"a caption", **OTHERS}, tmp_path)

    with (
        pytest.raises(Refused, match=r"no image in it; these are images: \.avif, \.bmp"),
        as_zip(folder),
    ):
        pass


def test_a_missing_folder_is_reported(tmp_path: Path) -> None:
    with (
        pytest.raises(Refused, match=r"nowhere: expected a folder of images, a zip, a URL, or the"),
        as_zip(tmp_path / "nowhere"),
    ):
        pass


def test_what_is_not_uploaded_is_said_by_suffix(tmp_path: Path) -> None:
    more = {"IMG_1.TIFF": b"x", "deep/IMG_2.tiff": b"x", "README": b"x"}
    folder = folder_of(PHOTOS | OTHERS | more, tmp_path)

    (line,) = left_out_lines(folder)

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


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b of a tar.gz", b"\xff\xd8\xff of a JPEG"])
def test_a_file_that_is_no_zip_is_refused_before_it_is_uploaded(
    content: bytes, tmp_path: Path
) -> None:
    file = tmp_path / "photos.zip"
    file.write_bytes(content)

    with pytest.raises(Refused, match=r"photos\.zip: expected a folder of images, a zip"):
        validate(JobSpec(str(file)), None)
