"""Backup and restore of either database and of a store; the drill is in tests/faults."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from everydream.maintenance import database_copy
from everydream.maintenance.backup import back_up, restore
from everydream.maintenance.migration import upgrade
from everydream.maintenance.parts import PARTS
from services.gateway.database.connection import Database
from services.gateway.database.jobs import SqlJobStore
from shared.adapters.folder import FolderStore
from shared.adapters.stores import open_store
from shared.errors import Refused
from shared.service_process import closing
from shared.settings import Settings, from_environment
from tests.contract.test_job_store import job
from tests.support.servers.postgres import PostgreSQL

OBJECTS = {"jobs/one/training/1/last.safetensors": b"weights" * 1000, "uploads/two/0-a": b""}


@pytest.fixture(params=["sqlite", "postgresql"])
def urls(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    """Of a database, and of an empty one elsewhere."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/here/jobs.db", f"sqlite:///{tmp_path}/there/jobs.db"
    server: PostgreSQL = request.getfixturevalue("postgres")
    return server.url(), server.url()


@pytest.fixture
def places(urls: tuple[str, str], tmp_path: Path) -> tuple[Settings, Settings]:
    """The deployment, and a place where nothing is yet."""
    here, there = (settings_of(url, tmp_path / name) for url, name in zip(urls, "ab", strict=True))
    return here, there


def settings_of(url: str, home: Path) -> Settings:
    return from_environment({"EVERYDREAM_HOME": str(home), "EVERYDREAM_DATABASE_URL": url})


async def fill(settings: Settings) -> None:
    await upgrade(settings)
    async with closing(SqlJobStore.open(settings.database_url)) as jobs:
        assert await jobs.insert(job("one"), [])
    store = open_store(settings, key="")
    for key, data in OBJECTS.items():
        await store.put(key, data)


async def test_what_was_there_is_there_again_in_another_place(
    places: tuple[Settings, Settings], tmp_path: Path
) -> None:
    here, there = places
    await fill(here)

    done = await back_up(here, tmp_path / "backup", PARTS)
    async with closing(SqlJobStore.open(here.database_url)) as jobs:
        assert await jobs.insert(job("later"), [])
    assert await restore(there, tmp_path / "backup", PARTS) == done

    async with closing(SqlJobStore.open(there.database_url)) as jobs:
        assert [*await jobs.newest()] == [job("one")]
    async with closing(Database.open(there.database_url)) as database:
        assert not (await database.schema()).lacking
    store = open_store(there, key="")
    assert {found.key: await store.get(found.key) async for found in store.list("")} == OBJECTS
    assert done["store"] == {"objects": 2, "bytes": 7000}
    left = {path.name for path in (tmp_path / "backup").iterdir()}
    assert left in ({"database.sqlite", "store"}, {"database.dump", "store"})
    assert stat.S_IMODE((tmp_path / "backup").stat().st_mode) == 0o700


async def test_nothing_is_written_over(places: tuple[Settings, Settings], tmp_path: Path) -> None:
    here, there = places
    await fill(here)
    (tmp_path / "backup").mkdir(mode=0o755)
    await back_up(here, tmp_path / "backup", PARTS)

    for each in (tmp_path / "backup").iterdir():
        assert not stat.S_IMODE(each.stat().st_mode) & 0o077  # nor read by others
    with pytest.raises(Refused, match="is there already"):
        await back_up(here, tmp_path / "backup", PARTS)
    with pytest.raises(Refused, match="a database that is not empty"):
        await restore(here, tmp_path / "backup", PARTS)
    with pytest.raises(Refused, match="a store that is not empty"):
        await restore(here, tmp_path / "backup", ("store",))
    with pytest.raises(Refused, match="no backup of the database"):
        await restore(there, tmp_path / "nowhere", PARTS)


async def test_what_a_row_names_is_there_though_it_is_new_or_deleted_once_the_rows_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = settings_of(f"sqlite:///{tmp_path}/jobs.db", tmp_path / "home")
    await fill(here)
    store, copy_out = open_store(here, key=""), database_copy.copy_out

    async def copy_while_jobs_run(url: str, file: Path) -> None:
        await store.put("jobs/two/new", b"new")
        await store.put("jobs/two/changed", b"before")
        await copy_out(url, file)
        await store.put("jobs/two/changed", b"later!")
        await store.delete("jobs/one/")

    monkeypatch.setattr(database_copy, "copy_out", copy_while_jobs_run)
    await store.put("jobs/two/changed", b"first")
    await back_up(here, tmp_path / "backup", PARTS)

    copy = FolderStore(tmp_path / "backup" / "store", public_url="", key="")
    kept = {found.key: await copy.get(found.key) async for found in copy.list("")}
    assert kept == OBJECTS | {"jobs/two/new": b"new", "jobs/two/changed": b"later!"}


async def test_an_object_that_is_deleted_before_it_is_copied_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = settings_of(f"sqlite:///{tmp_path}/jobs.db", tmp_path / "home")
    await fill(here)
    download = FolderStore.download

    async def delete_first(store: FolderStore, key: str, path: Path) -> None:
        if key.startswith("uploads/"):
            await store.delete(key)
        await download(store, key, path)

    monkeypatch.setattr(FolderStore, "download", delete_first)
    done = await back_up(here, tmp_path / "backup", PARTS)

    assert done["store"] == {"objects": 1, "bytes": 7000}
    assert not (tmp_path / "backup" / "store" / "uploads").exists()


async def test_a_store_that_was_copied_is_brought_up_to_date(tmp_path: Path) -> None:
    here = settings_of(f"sqlite:///{tmp_path}/jobs.db", tmp_path / "home")
    await fill(here)
    await back_up(here, tmp_path / "backup", ("store",))
    await open_store(here, key="").put("later", b"one more")

    assert await back_up(here, tmp_path / "backup", ("store",)) == {
        "store": {"objects": 3, "bytes": 7008}
    }


async def test_a_failure_of_the_databases_own_tool_is_told(
    tmp_path: Path, postgres: PostgreSQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = settings_of(postgres.url() + "_not_there", tmp_path / "home")

    with pytest.raises(Refused, match=r"pg_dump failed: .*_not_there. does not exist"):
        await back_up(here, tmp_path / "backup", ("database",))
    assert not [*(tmp_path / "backup").iterdir()]

    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Refused, match="pg_dump is missing: install PostgreSQL's client programs"):
        await back_up(here, tmp_path / "backup", ("database",))
