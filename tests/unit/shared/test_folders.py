"""Folders in a store: stored with a manifest, checked when downloaded, cached locally."""

import asyncio
import hashlib
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import pytest

from shared import disk
from shared.adapters.folder import FolderStore
from shared.errors import Full, NotFound, Refused, Unavailable
from shared.ports import ObjectStore
from shared.storage import cache
from shared.storage.cache import cached_folder
from shared.storage.folders import (
    content_address,
    download_folder,
    folder_exists,
    read_manifest,
    sha256_of,
    upload_folder,
)
from shared.storage.manifest import MANIFEST, FileEntry, known_sha256

CONTENT = {
    "model_index.json": b"{}",
    "manifest.json": b'["the dataset\'s own"]',
    "unet/config.json": b'{"a": 1}',
    "unet/weights.safetensors": bytes(range(256)) * 1000,
    "empty": b"",
}


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store", public_url="http://x", key="k")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return filled(tmp_path / "model", CONTENT)


def filled(folder: Path, content: dict[str, bytes]) -> Path:
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def content_of(folder: Path) -> dict[str, bytes]:
    """Without the manifest, which a cached folder has beside its own files."""
    beside = (MANIFEST, cache.TIMES)
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in beside)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


# --- up and down


async def test_a_folder_comes_back_as_it_went(
    store: FolderStore, model: Path, tmp_path: Path
) -> None:
    sent = await upload_folder(store, model, "jobs/1/model")
    got = await download_folder(store, "jobs/1/model", tmp_path / "got")

    assert content_of(tmp_path / "got") == CONTENT
    assert sent == got == await read_manifest(store, "jobs/1/model/")
    assert sent.bytes == sum(len(data) for data in CONTENT.values())


async def test_the_manifest_names_every_file_with_its_size_and_hash(
    store: FolderStore, model: Path
) -> None:
    manifest = await upload_folder(store, model, "m")
    told = {file.name: (file.bytes, file.sha256) for file in manifest.files}
    assert told == {
        name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in CONTENT.items()
    }
    assert [file.name for file in manifest.files] == sorted(CONTENT)


async def test_a_file_that_is_in_the_store_already_comes_with_the_folder(
    store: FolderStore, model: Path, tmp_path: Path
) -> None:
    await store.put("elsewhere/last.safetensors", b"weights")
    there = FileEntry(
        name="unet/all.safetensors", bytes=7, sha256=hashlib.sha256(b"weights").hexdigest(),
        key="elsewhere/last.safetensors",
    )  # fmt: skip

    manifest = await upload_folder(store, model, "models/sd", stored=[there])
    await download_folder(store, "models/sd", tmp_path / "got")

    assert content_of(tmp_path / "got") == {**CONTENT, "unet/all.safetensors": b"weights"}
    assert manifest.bytes == 7 + sum(map(len, CONTENT.values()))
    assert not await store.exists("models/sd/unet/all.safetensors")

    await store.delete("elsewhere/")
    with pytest.raises(Unavailable, match=r"'elsewhere/last\.safetensors' is in a manifest"):
        await download_folder(store, "models/sd", tmp_path / "again")


async def test_an_empty_folder_is_a_folder(store: FolderStore, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    await upload_folder(store, tmp_path / "none", "m")
    await download_folder(store, "m", tmp_path / "got")
    assert await folder_exists(store, "m")
    assert content_of(tmp_path / "got") == {}


async def test_a_folder_of_links_is_stored_with_what_they_lead_to(
    store: FolderStore, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "weights").symlink_to(model / "unet" / "weights.safetensors")
    await upload_folder(store, tmp_path / "links", "m")
    await download_folder(store, "m", tmp_path / "got")
    assert content_of(tmp_path / "got") == {"weights": CONTENT["unet/weights.safetensors"]}


async def test_every_file_is_a_sign_of_life(
    store: FolderStore, model: Path, tmp_path: Path
) -> None:
    up, down = [], []
    await upload_folder(store, model, "m", keepalive=lambda: up.append(1))
    await download_folder(store, "m", tmp_path / "got", keepalive=lambda: down.append(1))
    assert len(up) >= len(CONTENT)
    assert len(down) >= len(CONTENT)


async def test_a_file_of_the_manifests_name_is_not_taken(
    store: FolderStore, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="own"):
        await upload_folder(store, filled(tmp_path / "odd", {MANIFEST: b"{}"}), "m")


async def test_what_is_no_folder_is_not_taken(store: FolderStore, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a folder"):
        await upload_folder(store, tmp_path / "nowhere", "m")


# --- without its manifest it does not exist


class Failing(FolderStore):
    """A store that becomes unavailable during an upload."""

    left = 3

    async def upload(self, path: Path, key: str, **options: Any) -> None:
        self.left -= 1
        if self.left < 0:
            raise Unavailable("gone")
        await super().upload(path, key, **options)


async def test_a_folder_half_stored_does_not_exist(model: Path, tmp_path: Path) -> None:
    store = Failing(tmp_path / "store", public_url="http://x", key="k")
    with pytest.raises(Unavailable, match="gone"):
        await upload_folder(store, model, "m")

    assert [entry.key async for entry in store.list("m/")] != []
    assert not await folder_exists(store, "m")
    with pytest.raises(NotFound, match="'m'"):
        await download_folder(store, "m", tmp_path / "got")


async def test_the_manifest_is_the_last_to_be_written(model: Path, tmp_path: Path) -> None:
    stored_before: list[str] = []

    class Looking(FolderStore):
        async def put(self, key: str, data: bytes) -> None:
            stored_before.extend([entry.key async for entry in self.list("")])
            await super().put(key, data)

    await upload_folder(Looking(tmp_path / "s", public_url="http://x", key="k"), model, "m")
    assert stored_before == [f"m/{name}" for name in sorted(CONTENT)]


@pytest.mark.parametrize("data", [b"", b"x" * 256_000, b"longer" * 100_000])
async def test_a_torn_file_is_noticed(
    store: FolderStore, model: Path, tmp_path: Path, data: bytes
) -> None:
    await upload_folder(store, model, "m")
    await store.put("m/unet/weights.safetensors", data)
    with pytest.raises(Unavailable, match=r"weights\.safetensors.*damaged"):
        await download_folder(store, "m", tmp_path / "got")


async def test_a_missing_file_is_noticed(store: FolderStore, model: Path, tmp_path: Path) -> None:
    await upload_folder(store, model, "m")
    await store.delete("m/empty")
    with pytest.raises(Unavailable, match=r"m/empty.*missing"):
        await download_folder(store, "m", tmp_path / "got")


async def test_a_damaged_manifest_is_noticed(store: FolderStore, tmp_path: Path) -> None:
    await store.put(f"m/{MANIFEST}", b'{"files": [')
    with pytest.raises(Unavailable, match="damaged"):
        await download_folder(store, "m", tmp_path / "got")


async def test_a_manifest_cannot_write_outside_the_folder(
    store: FolderStore, tmp_path: Path
) -> None:
    for name in ("../evil", "/tmp/evil"):  # noqa: S108 - nothing is written there
        files = f'{{"files": [{{"name": "{name}", "bytes": 0, "sha256": ""}}]}}'
        await store.put(f"m/{MANIFEST}", files.encode())
        with pytest.raises(Refused):
            await download_folder(store, "m", tmp_path / "got")


# --- addresses


async def test_equal_folders_have_equal_addresses_and_others_do_not(tmp_path: Path) -> None:
    same = [await content_address(filled(tmp_path / name, CONTENT)) for name in ("a", "b")]
    assert same[0] == same[1]

    renamed = {("other" if name == "empty" else name): data for name, data in CONTENT.items()}
    changed = CONTENT | {"empty": b"x"}
    others = [await content_address(filled(tmp_path / str(i), c)) for i, c in
              enumerate((renamed, changed, CONTENT | {"more": b""}))]  # fmt: skip
    assert len({same[0], *others}) == 4


async def test_a_files_sha256_is_sha256(model: Path) -> None:
    assert await sha256_of(model / "manifest.json") == (
        hashlib.sha256(CONTENT["manifest.json"]).hexdigest()
    )


# --- the local cache


async def test_a_cached_folder_is_fetched_once(
    store: FolderStore, model: Path, tmp_path: Path
) -> None:
    await upload_folder(store, model, "m")
    first = await cached_folder(store, "m", tmp_path / "cache")
    await store.delete("m/")

    assert await cached_folder(store, "m", tmp_path / "cache") == first
    assert content_of(first) == CONTENT


async def test_a_cached_folder_gives_the_sha256_of_its_files_and_others_give_none(
    store: FolderStore, model: Path, tmp_path: Path
) -> None:
    await upload_folder(store, model, "m")

    known = known_sha256(await cached_folder(store, "m", tmp_path / "cache"))

    assert known == {name: hashlib.sha256(data).hexdigest() for name, data in CONTENT.items()}
    assert known_sha256(model) == {}


async def test_different_folders_do_not_mix_in_the_cache(
    store: FolderStore, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        await upload_folder(store, filled(tmp_path / name, {"file": name.encode()}), name)
    cached = [await cached_folder(store, name, tmp_path / "cache") for name in ("a", "b")]
    assert [content_of(folder) for folder in cached] == [{"file": b"a"}, {"file": b"b"}]


async def test_a_fetch_that_fails_leaves_nothing_in_the_cache(
    store: FolderStore, model: Path, tmp_path: Path
) -> None:
    await upload_folder(store, model, "m")
    await store.put("m/empty", b"torn")
    for _ in range(2):
        with pytest.raises(Unavailable, match="damaged"):
            await cached_folder(store, "m", tmp_path / "cache")
    with pytest.raises(NotFound):
        await cached_folder(store, "nothing", tmp_path / "cache")

    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".lock"]


async def test_tasks_that_want_the_same_folder_all_get_it_whole(
    store: FolderStore, model: Path, tmp_path: Path
) -> None:
    await upload_folder(store, model, "m")
    wanted = (cached_folder(store, "m", tmp_path / "cache") for _ in range(5))
    (folder,) = set(await asyncio.gather(*wanted))
    assert content_of(folder) == CONTENT
    assert sorted(path.name for path in folder.parent.iterdir()) == [".lock", folder.name]


def fetch_in_a_process(root: Path) -> dict[str, bytes]:
    store = FolderStore(root / "store", public_url="http://x", key="k")
    return content_of(asyncio.run(cached_folder(store, "m", root / "cache")))


async def test_processes_that_want_the_same_folder_all_get_it_whole(
    store: FolderStore, model: Path, tmp_path: Path
) -> None:
    await upload_folder(store, model, "m")
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        got = await asyncio.to_thread(pool.map, fetch_in_a_process, [tmp_path] * 3, 1)
    assert got == [CONTENT] * 3


async def cache_three(store: ObjectStore, tmp_path: Path, max_bytes: int) -> list[Path]:
    """Three folders of 1000 bytes, last used two hours ago in the order a, b, c."""
    for name in ("a", "b", "c"):
        await upload_folder(store, filled(tmp_path / name, {"file": name.encode() * 1000}), name)
    cached = []
    for age, name in enumerate(("a", "b", "c")):
        folder = await cached_folder(store, name, tmp_path / "cache", max_bytes=max_bytes)
        os.utime(folder, (0, time.time() - 7200 + age))
        cached.append(folder)
    return cached


async def test_the_folders_used_least_recently_leave_a_full_cache(
    store: FolderStore, tmp_path: Path
) -> None:
    a, b, c = await cache_three(store, tmp_path, 3500)
    assert await cached_folder(store, "a", tmp_path / "cache", max_bytes=3500) == a

    await upload_folder(store, filled(tmp_path / "d", {"file": b"d" * 1000}), "d")
    d = await cached_folder(store, "d", tmp_path / "cache", max_bytes=3500)
    assert [folder.exists() for folder in (a, b, c, d)] == [True, False, True, True]
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == sorted(
        [".lock", a.name, c.name, d.name]
    )


async def test_a_folder_that_somebody_may_be_reading_stays_in_a_full_cache(
    store: FolderStore, tmp_path: Path
) -> None:
    cached = await cache_three(store, tmp_path, 10_000)
    for folder in cached:
        os.utime(folder, (0, time.time() - disk.KEPT_SECONDS + 60))

    await upload_folder(store, filled(tmp_path / "d", {"file": b"d" * 1000}), "d")
    await cached_folder(store, "d", tmp_path / "cache", max_bytes=10)
    assert all(folder.exists() for folder in cached)


async def test_a_full_disk_takes_the_room_of_folders_that_nobody_uses(
    store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = await cache_three(store, tmp_path, 10_000)
    await upload_folder(store, filled(tmp_path / "d", {"file": b"d" * 1000}), "d")

    def free_bytes(_: Path) -> int:
        return 0 if any(folder.exists() for folder in cached) else 10_000

    monkeypatch.setattr(disk, "free_bytes", free_bytes)
    d = await cached_folder(store, "d", tmp_path / "cache", max_bytes=10_000)

    assert [folder.exists() for folder in (*cached, d)] == [False, False, False, True]
    monkeypatch.setattr(disk, "free_bytes", lambda _: 0)
    with pytest.raises(Full):
        await cached_folder(store, "a", tmp_path / "cache", max_bytes=10_000)
    assert d.exists(), "somebody may be reading it"


async def test_what_a_dead_process_left_in_the_cache_is_removed(
    store: FolderStore, model: Path, tmp_path: Path
) -> None:
    half = filled(tmp_path / "cache" / ".half", {"file": b"half"})
    fresh = filled(tmp_path / "cache" / ".fresh", {"file": b"somebody is still at it"})
    os.utime(half, (1, 1))
    await upload_folder(store, model, "m")
    await cached_folder(store, "m", tmp_path / "cache")
    assert (half.exists(), fresh.exists()) == (False, True)
