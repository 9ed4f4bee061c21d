"""The promises of every object store, checked on a folder and on a bucket."""

import asyncio
import errno
import filecmp
import hashlib
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shared.adapters import s3
from shared.adapters.folder import FolderStore
from shared.errors import NotFound, Refused
from shared.ports import ObjectStore
from shared.storage.folders import sha256_of
from shared.storage.retrying import RetryingStore
from tests.contract.stores import fetch, folder_store, names_in, s3_store

SECONDS = 60
MB = 1_000_000


@pytest.fixture(params=["folder", "patient", "s3"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ObjectStore]:
    if request.param in ("folder", "patient"):
        async with folder_store(tmp_path / "store") as folder:
            yield folder if request.param == "folder" else RetryingStore(folder, deadline=0.0)
    else:
        bucket = request.getfixturevalue("s3_bucket")
        async with s3_store(request.getfixturevalue("s3_server"), bucket) as s3_bucket:
            yield s3_bucket


@pytest.fixture
def big_file(tmp_path: Path) -> Path:
    path = tmp_path / "big"
    path.write_bytes(os.urandom(20 * MB))
    return path


async def keys_of(store: ObjectStore, prefix: str) -> list[str]:
    return [entry.key async for entry in store.list(prefix)]


# --- bytes in, bytes out


async def test_what_was_put_is_got_until_it_is_put_over(store: ObjectStore) -> None:
    await store.put("jobs/1/note.txt", b"first")
    assert await store.get("jobs/1/note.txt") == b"first"

    await store.put("jobs/1/note.txt", b"second, longer")
    assert await store.get("jobs/1/note.txt") == b"second, longer"

    await store.put("jobs/1/note.txt", b"")
    assert await store.get("jobs/1/note.txt") == b""


@pytest.mark.parametrize("key", ["a", "a b/c+d&e=f?#%41.txt", "Häuser/日本語.png", "x/.hidden"])
async def test_a_key_may_hold_any_letters(store: ObjectStore, key: str) -> None:
    await store.put(key, key.encode())

    assert await store.get(key) == key.encode()
    assert await keys_of(store, "") == [key]
    assert await fetch(await store.link(key, seconds=60)) == (200, key.encode(), "")


async def test_what_was_never_put_is_not_found(store: ObjectStore, tmp_path: Path) -> None:
    await store.put("jobs/1/a/b", b"there")

    for key in ("jobs/2", "jobs/1/a", "jobs/1/a/b/c"):
        with pytest.raises(NotFound, match=key):
            await store.get(key)
        with pytest.raises(NotFound, match=key):
            await store.download(key, tmp_path / "got" / "file")
        assert not await store.exists(key)
    assert await store.exists("jobs/1/a/b")
    assert [path for path in (tmp_path / "got").rglob("*") if path.is_file()] == []


async def test_a_big_file_goes_up_and_comes_down_whole(
    store: ObjectStore, big_file: Path, tmp_path: Path
) -> None:
    signs: list[str] = []
    await store.upload(big_file, "models/big", keepalive=lambda: signs.append("up"))
    got = tmp_path / "deep" / "below" / "got"
    await store.download("models/big", got, keepalive=lambda: signs.append("down"))

    assert filecmp.cmp(got, big_file, shallow=False)
    assert [entry.bytes async for entry in store.list("models/")] == [20 * MB]
    assert set(signs) == {"up", "down"}
    assert names_in(got.parent) == ["got"]


async def test_a_small_or_empty_file_goes_up_and_replaces_what_was_there(
    store: ObjectStore, tmp_path: Path
) -> None:
    for data in (b"small", b""):
        (tmp_path / "file").write_bytes(data)
        await store.upload(tmp_path / "file", "some/file")
        await store.download("some/file", tmp_path / "got")
        assert (tmp_path / "got").read_bytes() == data


async def test_a_file_that_never_changes_outlives_its_source_and_its_copies(
    store: ObjectStore, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"weights")
    await store.upload(tmp_path / "file", "models/one", immutable=True)
    (tmp_path / "file").unlink()
    await store.download("models/one", tmp_path / "got", immutable=True)
    (tmp_path / "got").unlink()
    assert await store.get("models/one") == b"weights"

    await store.download("models/one", tmp_path / "got", immutable=True)
    await store.put("models/one", b"others")
    assert (tmp_path / "got").read_bytes() == b"weights"
    await store.delete("models/")
    assert (tmp_path / "got").read_bytes() == b"weights"


async def test_a_missing_source_makes_no_object(store: ObjectStore, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="nowhere"):
        await store.upload(tmp_path / "nowhere", "some/file")
    assert await keys_of(store, "") == []


@pytest.mark.parametrize(
    "key", ["", "/etc/passwd", "../secret", "a/../../b", "a//b", "a/./b", "a/", "a\0b", "a\nb"]
)
async def test_a_key_that_leads_elsewhere_is_refused(
    store: ObjectStore, key: str, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Refused):
        await store.put(key, b"")
    with pytest.raises(Refused):
        await store.get(key)
    with pytest.raises(Refused):
        await store.upload(tmp_path / "file", key)
    with pytest.raises(Refused):
        await store.download(key, tmp_path / "got")
    with pytest.raises(Refused):
        await store.exists(key)
    with pytest.raises(Refused):
        await store.link(key, seconds=60)
    assert not (tmp_path / "got").exists()


# --- listing and deleting

KEYS = [
    "a",
    "jobs/1",
    "jobs/1-x/b",
    "jobs/1.txt",
    "jobs/10/a",
    "jobs/2-b",  # before the keys below 2, because - sorts before /
    "jobs/2/a",
    "jobs/2/a.b",
    "jobs/B",
]


async def test_the_list_is_in_order_of_keys_however_many_pages_it_has(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "PAGE", 3)
    for key in reversed(KEYS):
        await store.put(key, key.encode())

    assert await keys_of(store, "") == KEYS
    assert await keys_of(store, "jobs/") == KEYS[1:]
    assert await keys_of(store, "jobs/1") == ["jobs/1", "jobs/1-x/b", "jobs/1.txt", "jobs/10/a"]
    assert await keys_of(store, "jobs/2/a") == ["jobs/2/a", "jobs/2/a.b"]
    assert await keys_of(store, "nothing/here") == []


async def test_an_entry_tells_size_and_time(store: ObjectStore) -> None:
    await store.put("a/b", b"12345")
    (first,) = [entry async for entry in store.list("a/")]
    assert (first.key, first.bytes) == ("a/b", 5)
    assert first.modified == pytest.approx(time.time(), abs=120)


async def test_deleting_takes_the_prefix_and_nothing_else(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "PAGE", 2)
    for key in KEYS:
        await store.put(key, b"x")

    assert await store.delete("jobs/1") == 4
    assert await keys_of(store, "") == ["a", "jobs/2-b", "jobs/2/a", "jobs/2/a.b", "jobs/B"]
    assert await store.delete("jobs/1") == 0
    assert await store.delete("jobs/") == 4
    assert await keys_of(store, "") == ["a"]


async def test_the_whole_store_is_not_deleted_by_an_empty_prefix(store: ObjectStore) -> None:
    await store.put("a", b"x")
    with pytest.raises(Refused, match="whole store"):
        await store.delete("")
    assert await keys_of(store, "") == ["a"]


async def test_a_key_deleted_can_be_put_again(store: ObjectStore) -> None:
    await store.put("jobs/1/a", b"1")
    await store.delete("jobs/1/")
    await store.put("jobs/1/a", b"2")
    assert await store.get("jobs/1/a") == b"2"


# --- links


async def test_a_link_gives_the_object_to_anyone(store: ObjectStore, big_file: Path) -> None:
    await store.upload(big_file, "jobs/1/last.safetensors")
    status, body, _ = await fetch(await store.link("jobs/1/last.safetensors", seconds=604_800))
    assert (status, hashlib.sha256(body).hexdigest()) == (200, await sha256_of(big_file))


async def test_a_link_may_name_the_file(store: ObjectStore) -> None:
    await store.put("jobs/1/x", b"x")
    link = await store.link("jobs/1/x", seconds=60, filename="my-model.safetensors")
    status, body, disposition = await fetch(link)
    assert (status, body) == (200, b"x")
    assert disposition.startswith("attachment")
    assert "my-model.safetensors" in disposition


async def test_a_link_to_one_object_opens_no_other(store: ObjectStore) -> None:
    await store.put("jobs/1/mine", b"mine")
    await store.put("jobs/1/theirs", b"theirs")
    link = await store.link("jobs/1/mine", seconds=60)
    assert (await fetch(link))[0] == 200
    assert (await fetch(link.replace("mine", "theirs")))[0] == 403


async def test_a_link_ends_and_cannot_be_prolonged(store: ObjectStore) -> None:
    await store.put("a", b"x")
    link = await store.link("a", seconds=2)
    assert (await fetch(link))[0] == 200
    assert (await fetch(link.replace("xpires=", "xpires=9")))[0] in (400, 403)

    async with asyncio.timeout(SECONDS):
        while (await fetch(link))[0] != 403:
            pass


@pytest.mark.parametrize("seconds", [0, -1, 604_801])
async def test_a_link_lives_a_week_at_most(store: ObjectStore, seconds: int) -> None:
    with pytest.raises(ValueError, match="604800"):
        await store.link("a", seconds=seconds)


# --- atomic writes


async def test_of_several_writers_one_wins_and_readers_see_one_of_them_whole(
    store: ObjectStore,
) -> None:
    contents = {bytes([number]) * MB for number in range(6)}
    await store.put("shared", next(iter(contents)))

    async def write() -> None:
        for _ in range(3):
            await asyncio.gather(*(store.put("shared", content) for content in contents))

    seen: set[bytes] = set()
    writers = asyncio.create_task(write())
    async with asyncio.timeout(SECONDS):
        while not writers.done():
            seen.add(await store.get("shared"))
        await writers

    assert seen <= contents
    assert await store.get("shared") in contents


async def test_a_reader_sees_an_upload_when_it_is_whole(store: ObjectStore, big_file: Path) -> None:
    upload = asyncio.create_task(store.upload(big_file, "big"))
    sizes = set()
    async with asyncio.timeout(SECONDS):
        while not upload.done():
            sizes |= {entry.bytes async for entry in store.list("")}
            await asyncio.sleep(0)
        await upload
    assert sizes <= {20 * MB}
    assert await keys_of(store, "") == ["big"]


async def test_a_cancelled_upload_leaves_no_half_object(store: ObjectStore, big_file: Path) -> None:
    begun = asyncio.Event()
    await store.put("big", b"before")
    uploads = [
        asyncio.create_task(store.upload(big_file, "big", keepalive=begun.set)) for _ in range(2)
    ]
    async with asyncio.timeout(SECONDS):
        await begun.wait()
    for upload in uploads:
        upload.cancel()
    await asyncio.wait(uploads)
    assert [entry.bytes async for entry in store.list("")] in ([6], [20 * MB])


# --- dangers of folders


async def test_a_folder_never_gives_out_what_lies_outside(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    store = FolderStore(tmp_path / "store", public_url="http://x", key="k")
    (tmp_path / "store" / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "store" / "up").symlink_to(tmp_path)
    (tmp_path / "store" / "round").symlink_to("round")

    for key in ("link", "up/secret", "round"):
        with pytest.raises(NotFound):
            store.path_of(key)
        with pytest.raises(NotFound):
            await store.get(key)
    assert await keys_of(store, "") == []


async def test_a_folder_takes_no_room_for_a_file_that_never_changes(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store", public_url="http://x", key="k")
    (tmp_path / "weights").write_bytes(b"weights")
    (tmp_path / "link").symlink_to("weights")
    await store.upload(tmp_path / "link", "model", immutable=True)
    await store.download("model", tmp_path / "cached", immutable=True)
    await store.download("model", tmp_path / "own")
    await store.upload(tmp_path / "weights", "copy")

    shared = (tmp_path / "weights", store.path_of("model"), tmp_path / "cached")
    apart = (tmp_path / "own", store.path_of("copy"))
    assert len({path.stat().st_ino for path in shared}) == 1
    assert len({path.stat().st_ino for path in (*shared, *apart)}) == 3


async def test_a_folder_copies_where_the_system_makes_no_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "another file system")

    store = FolderStore(tmp_path / "store", public_url="http://x", key="k")
    (tmp_path / "file").write_bytes(b"weights")
    monkeypatch.setattr(os, "link", refuse)
    await store.upload(tmp_path / "file", "model", immutable=True)
    await store.download("model", tmp_path / "got", immutable=True)

    assert (tmp_path / "got").read_bytes() == b"weights"


async def test_a_folder_gives_no_half_written_file(tmp_path: Path) -> None:
    store = FolderStore(tmp_path, public_url="http://x", key="k")
    (tmp_path / ".incoming" / "half").write_bytes(b"half")

    assert await keys_of(store, "") == []
    with pytest.raises(Refused, match=r"\.incoming"):
        await store.get(".incoming/half")


async def test_a_folder_forgets_what_a_dead_process_left_half_written(tmp_path: Path) -> None:
    half = tmp_path / ".incoming" / "half"
    half.parent.mkdir()
    half.write_bytes(b"half")
    os.utime(half, (1, 1))
    FolderStore(tmp_path, public_url="http://x", key="k")
    assert not half.exists()


async def test_a_deletion_that_takes_an_empty_folder_trips_no_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FolderStore(tmp_path, public_url="http://x", key="k")
    taken: list[Path] = []
    make = Path.mkdir

    def make_and_lose(folder: Path, *how: int, **options: bool) -> None:
        make(folder, *how, **options)  # type: ignore[arg-type]  # as they came
        if folder.name == "1" and folder.exists() and len(taken) < 3:
            folder.rmdir()
            taken.append(folder)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", make_and_lose)
        await store.put("jobs/1/a", b"x")
    assert len(taken) == 3
    assert await store.get("jobs/1/a") == b"x"


async def test_a_folder_that_vanishes_while_it_is_looked_at_trips_no_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FolderStore(tmp_path, public_url="http://x", key="k")
    folder = tmp_path / "jobs/1"
    folder.mkdir(parents=True)
    looked = Path.is_dir

    def look_too_late(path: Path) -> bool:
        if path == folder and looked(folder) and not list(folder.iterdir()):
            folder.rmdir()
        return looked(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "is_dir", look_too_late)
        await store.put("jobs/1/a", b"x")
    assert await store.get("jobs/1/a") == b"x"


async def test_writers_and_deleters_leave_no_empty_folders(tmp_path: Path) -> None:
    store = FolderStore(tmp_path, public_url="http://x", key="k")

    async def write(number: int) -> None:
        await store.put(f"jobs/1/deep/{number}", b"x")

    async with asyncio.timeout(SECONDS):
        for _ in range(20):
            await asyncio.gather(*(write(n) for n in range(4)), store.delete("jobs/1/"))
    await store.delete("jobs/1/")
    assert names_in(tmp_path) == [".incoming"]
    assert names_in(tmp_path / ".incoming") == []


async def test_a_folder_cannot_keep_an_object_below_another(tmp_path: Path) -> None:
    store = FolderStore(tmp_path, public_url="http://x", key="k")
    await store.put("a", b"x")
    await store.put("b/c", b"x")
    with pytest.raises(Refused, match="above or below"):
        await store.put("a/b", b"x")
    with pytest.raises(Refused, match="above or below"):
        await store.put("b", b"x")
    assert await keys_of(store, "") == ["a", "b/c"]
