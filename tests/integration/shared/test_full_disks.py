"""Disks that have no room, or fill up during a write."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from services.fetcher.download import download
from services.fetcher.parsing.datasets.archive import unpack
from shared import disk
from shared.adapters.folder import INCOMING, FolderStore
from shared.errors import Full, Passing
from shared.storage import ready
from shared.storage.folders import download_folder, upload_folder
from tests.support.gateway_world import KEY, World, world
from tests.support.in_process_parser import ignored
from tests.support.servers.web import Page, Web

MEBIBYTE = 2**20
DISK = 80 * MEBIBYTE
"""Beyond what bulk data leaves free, 16 MiB can be written."""
FITS, DOES_NOT_FIT = 4 * MEBIBYTE, 30 * MEBIBYTE
ROOT = "/v2/everydream-v1"


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A folder on a small disk of its own."""
    with mounted(tmp_path / "small", f"size={DISK}") as folder:
        yield folder


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    folder.mkdir()
    as_root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    tmpfs = ("-t", "tmpfs", "-o", f"{options},mode=0777", "tmpfs")
    subprocess.run([*as_root, "mount", *tmpfs, folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run([*as_root, "umount", "--lazy", folder], check=True)


@contextmanager
def unseen(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Checks find room, which is taken by something else just afterwards."""
    with monkeypatch.context() as patch:
        patch.setattr(disk, "free_bytes", lambda _: 10**15)
        yield


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def store_on(folder: Path) -> FolderStore:
    return FolderStore(folder / "store", public_url="http://gateway.example", key=KEY)


# --- The store


async def test_a_store_refuses_what_it_has_no_room_for_and_keeps_what_fits(small: Path) -> None:
    store = store_on(small)
    with pytest.raises(
        Full, match=rf"no room on the disk to keep 'a/b' .* {DOES_NOT_FIT + disk.SPARE}"
    ):
        await store.put("a/b", bytes(DOES_NOT_FIT))
    await store.put("a/c", bytes(FITS))
    assert files_in(small) == ["c"]


async def test_a_store_whose_disk_fills_up_in_the_middle_keeps_no_half_file(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, large = store_on(small), tmp_path / "large"
    large.write_bytes(bytes(2 * DISK))
    with unseen(monkeypatch):
        for doing in (store.put("a/b", bytes(2 * DISK)), store.upload(large, "a/b")):
            with pytest.raises(Full, match="No space left on device"):
                await doing
    assert files_in(small) == []
    assert list((small / "store" / INCOMING).iterdir()) == []
    await store.put("a/b", bytes(FITS))


async def test_a_folder_is_fetched_only_where_there_is_room_for_all_of_it(
    small: Path, tmp_path: Path
) -> None:
    store, folder = store_on(tmp_path), tmp_path / "model"
    folder.mkdir()
    for number in range(3):
        (folder / str(number)).write_bytes(bytes(DOES_NOT_FIT))
    await upload_folder(store, folder, "jobs/1/model")
    with pytest.raises(Full, match=rf"fetch 'jobs/1/model' .*: {3 * DOES_NOT_FIT} bytes"):
        await download_folder(store, "jobs/1/model", small / "model")
    assert files_in(small) == []


# --- The fetcher


@pytest.mark.parametrize("announced", [True, False])
async def test_a_download_that_does_not_fit_is_given_up(
    small: Path, web: Web, *, announced: bool
) -> None:
    url = web.serve("/large.zip", Page(bytes(DOES_NOT_FIT), announce=announced))
    with pytest.raises(Full, match="no room on the disk to download"):
        await download(url, small / "data.zip", allowed=frozenset({url.split("/")[2]}), limit=10**9)
    assert disk.free_bytes(small) >= (DISK if announced else disk.SPARE)


async def test_a_download_whose_disk_fills_up_is_passing_and_says_so(
    small: Path, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = web.serve("/large.zip", bytes(2 * DISK))
    with unseen(monkeypatch), pytest.raises(Passing, match="the disk has filled up"):
        await download(url, small / "data.zip", allowed=frozenset({url.split("/")[2]}), limit=10**9)


def archive_of(folder: Path, size: int) -> Path:
    path = folder / "data.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as zipped:
        zipped.writestr("a.png", bytes(size))
        zipped.writestr("b.png", bytes(size))
    return path


def test_an_archive_is_unpacked_only_where_all_of_it_has_room(small: Path, tmp_path: Path) -> None:
    archive = archive_of(tmp_path, DOES_NOT_FIT // 2)
    with pytest.raises(Full, match="no room on the disk to unpack the upload"):
        unpack(archive, small, shown="the upload", reading=ignored)
    assert files_in(small) == []


def test_a_disk_that_fills_up_is_no_damage_of_the_archive(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = archive_of(tmp_path, DISK)
    with unseen(monkeypatch), pytest.raises(Passing, match="the disk has filled up"):
        unpack(archive, small, shown="the upload", reading=ignored)


# --- The gateway


async def test_an_upload_without_room_gets_507_before_a_byte_is_sent(small: Path) -> None:
    async with world(small) as here:
        headers = {"Upload-Length": str(DOES_NOT_FIT), "Tus-Resumable": "1.0.0"}
        answer = await here.ask("POST", f"{ROOT}/uploads", headers=headers)
        assert (answer.status, answer.headers["Retry-After"]) == (507, "5")
        assert answer.body == {"error": "there is no room here for what was sent"}
        fits = {**headers, "Upload-Length": str(FITS)}
        assert (await here.ask("POST", f"{ROOT}/uploads", headers=fits)).status == 201


async def test_ready_says_that_the_stores_disk_has_no_room(small: Path) -> None:
    async with world(small) as here:
        lacking = await lacks_only_the_store(here)
        assert "bytes are free" in lacking["reason"]


async def test_ready_says_that_the_stores_disk_has_no_room_for_more_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ready, "NEEDED_BYTES", 0)
    with mounted(tmp_path / "few", "nr_inodes=1000") as few:
        async with world(few) as here:
            lacking = await lacks_only_the_store(here)
    assert re.search(r"room for 9\d\d more files \(inodes\); 10000 are needed", lacking["reason"])


async def lacks_only_the_store(here: World) -> dict[str, str]:
    """What is lacking once the broker has been reached."""
    while True:
        async with here.session.get(here.url("/ready")) as answer:
            lacking = (await answer.json())["lacking"]
            assert answer.status == 503
        if [each["part"] for each in lacking] == ["store"]:
            return dict(lacking[0])
        await asyncio.sleep(0.05)
