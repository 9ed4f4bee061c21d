"""Where snapshots and samples lie: what stands, and what is drawn."""

from pathlib import Path

from shared.storage.folders import upload_folder
from shared.storage.snapshots import (
    drawn_steps,
    sample_key,
    snapshot_prefix,
    snapshots_of,
    waiting_snapshots,
)
from tests.support.workers import folder_store


async def test_a_snapshot_stands_from_its_manifest_on_until_it_is_removed(tmp_path: Path) -> None:
    store = folder_store(tmp_path / "store")
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "unet.safetensors").write_bytes(b"weights")
    torn = snapshot_prefix("job", 1, step=750, epoch=3)
    await store.put(f"{torn}/unet.safetensors", b"weights")
    later = snapshot_prefix("job", 2, step=500, epoch=2)
    first = snapshot_prefix("job", 10, step=100_000, epoch=100)
    for prefix in (first, later, snapshot_prefix("job-2", 1, step=0, epoch=0)):
        await upload_folder(store, tmp_path / "weights", prefix)

    found = await waiting_snapshots(store, "job")

    assert [(each.step, each.epoch) for each in found] == [(500, 2), (100_000, 100)]
    assert [each.prefix for each in found] == [later, first]
    await store.delete(f"{later}/")
    assert [each.prefix for each in await waiting_snapshots(store, "job")] == [first]
    assert first.startswith(snapshots_of("job"))


async def test_the_steps_that_have_samples_are_known_by_their_keys(tmp_path: Path) -> None:
    store = folder_store(tmp_path)
    for step, index in ((100_000, 0), (250, 1), (250, 0)):
        await store.put(sample_key("job", step=step, index=index), b"png")

    assert await drawn_steps(store, "job") == [250, 100_000]
    assert await drawn_steps(store, "another") == []
