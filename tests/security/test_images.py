"""Hostile images: skipped by name and with the reason, cheaply; training sees none of them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from services.fetcher.parsing.datasets.archive import unpack
from services.fetcher.parsing.datasets.check import check_images
from services.fetcher.parsing.datasets.checked import CheckedDataset
from shared.errors import Refused
from tests.security.bounds import within_bounds, written
from tests.support.corpora.archives import Entry, archive
from tests.support.corpora.images import BAD, NAMES, ODD, saved
from tests.support.in_process_parser import ignored

SHOWN = "https://example.com/data.zip"
MEMORY = 256 << 20
"""Bytes: 16 MiB of a PNG's texts are taken, and Pillow has some of them twice for a while."""


@pytest.fixture(autouse=True)
def as_in_a_service() -> Iterator[None]:
    """A warning is no error there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def checked(tmp_path: Path, files: dict[str, bytes]) -> CheckedDataset:
    """What the fetcher accepts of a zip of these."""
    entries = [Entry(name=name.encode(), packed=content) for name, content in files.items()]
    (tmp_path / "data.zip").write_bytes(archive(entries))
    folder = tmp_path / "dataset"
    folder.mkdir()
    with within_bounds(memory=MEMORY):
        found = unpack(tmp_path / "data.zip", folder, shown=SHOWN, reading=ignored)
        return check_images(
            found,
            folder,
            shown=SHOWN,
            pixels=10**9,
            reading=ignored,
            checked=lambda _done, _of: None,
        )


@pytest.mark.parametrize("name", list(BAD))
def test_a_bad_image_is_skipped_by_name_whatever_its_suffix(name: str, tmp_path: Path) -> None:
    content, reason = BAD[name].make(), BAD[name].reason

    found = checked(tmp_path, {"good.png": saved("PNG"), **dict.fromkeys(NAMES, content)})

    assert [picture.name for picture in found.pictures] == ["good.png"]
    assert [skipped.file for skipped in found.skipped] == [*NAMES]
    assert all(reason in skipped.reason and skipped.reason for skipped in found.skipped)
    assert set(written(tmp_path / "dataset")) == {"000000.png"}


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_an_image_cut_off_in_its_first_half_is_skipped(kind: str, tmp_path: Path) -> None:
    whole = saved(kind)
    cuts = range(0, len(whole) // 2, max(len(whole) // 40, 1))

    found = checked(
        tmp_path, {"good.png": saved("PNG"), **{f"{cut}.png": whole[:cut] for cut in cuts}}
    )

    assert [picture.name for picture in found.pictures] == ["good.png"]
    assert len(found.skipped) == len(cuts)


def test_none_left_is_fatal_and_says_which_and_why(tmp_path: Path) -> None:
    with pytest.raises(Refused) as refused:
        checked(tmp_path, {name: BAD["a PDF"].make() for name in NAMES})

    text = str(refused.value)
    assert text.startswith(f"{SHOWN}: no usable image in the archive")
    assert "bad.png: not a JPEG, PNG, BMP, WebP, HEIC or AVIF image" in text
    assert written(tmp_path / "dataset") == {}


@pytest.mark.parametrize("name", list(ODD))
def test_an_odd_image_is_taken_upright(name: str, tmp_path: Path) -> None:
    file, make, size = ODD[name]

    (picture,) = (checked(tmp_path, {file: make()})).pictures

    assert (picture.width, picture.height) == size


def test_no_image_starts_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow would call Ghostscript for PostScript; here one lies in wait to leave a trace."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("gs", "gswin64c", "djpeg", "xv", "display"):
        (programs / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/canary\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    files = {f"{number}.{suffix}": BAD[name].make()
             for number, name in enumerate(("PostScript", "PostScript with a preview", "a PDF"))
             for suffix in ("png", "jpg")}  # fmt: skip

    found = checked(tmp_path, {"good.png": saved("PNG"), **files})

    assert len(found.skipped) == len(files)
    assert not (tmp_path / "canary").exists()
