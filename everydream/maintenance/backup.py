"""Backup and restore of a deployment: its database and its store, in a folder.

The store is copied, then the database, then what is new in the store. What rows name was in the
store before they named it, so the second time finds what the first has not; and what is deleted
once a row no longer needs it, a resume point or a staged dataset, the first time has copied.
A part is there under its own name only once it is whole.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

from everydream.maintenance import database_copy
from everydream.maintenance.parts import PARTS, Part
from everydream.terminal.words import size
from services.gateway.database.connection import Database
from shared.adapters.folder import FolderStore
from shared.adapters.stores import open_store
from shared.concurrency import gather_limited, in_thread
from shared.errors import NotFound, Refused
from shared.ports import ObjectStore, StoredObject
from shared.service_process import closing
from shared.settings import Settings
from shared.words import counted

STORE = "store"
UNFINISHED = "unfinished-"
"""Begins the name of what is not whole yet."""
CLOCKS_SECONDS = 60.0
"""By which the store's clock may differ from ours."""
AT_ONCE = 4
"""Objects that are copied at a time."""


async def back_up(settings: Settings, folder: Path, parts: Sequence[Part]) -> dict[str, Any]:
    """Copy database and store, or one of them, into a folder, while they are used.

    A store that is there already is brought up to date. Returns what is there at the end: by part
    its ``bytes``, of the store also its ``objects``.

    Raises:
        Refused: the folder has a database already, or the database's own tool fails.
        Unavailable: database, store or disk do not answer or have no room.
    """
    copies = _copies(settings, folder)
    if "database" in parts and copies["database"].exists():
        raise Refused(f"{copies['database']} is there already; give each backup its own folder")
    await in_thread(folder.mkdir, mode=0o700, parents=True, exist_ok=True)
    done: dict[str, Any] = {}
    if "store" in parts:
        await _back_up_store(settings, copies["store"])
    if "database" in parts:
        done["database"] = await _back_up_database(settings, copies["database"])
    if "store" in parts:
        done["store"] = await _back_up_store(settings, copies["store"])
    return done


async def restore(settings: Settings, folder: Path, parts: Sequence[Part]) -> dict[str, Any]:
    """Fill an empty database and an empty store from a folder; no service may run.

    Raises:
        Refused: the folder has no such part, the database or the store is not empty, or the
            database's own tool fails.
        Unavailable: database, store or disk do not answer or have no room.
    """
    copies = _copies(settings, folder)
    for part in parts:
        if not copies[part].exists():
            raise Refused(f"there is no backup of the {part} at {copies[part]}")
    done: dict[str, Any] = {}
    if "database" in parts:
        async with closing(Database.open(settings.database_url)) as database:
            if (await database.schema()).current:
                raise Refused("EVERYDREAM_DATABASE_URL names a database that is not empty")
    if "store" in parts:
        async with closing(_store_of(settings)) as store:
            async for found in store.list(""):
                raise Refused(f"EVERYDREAM_STORE_URL names a store that is not empty: {found.key}")
            await _copy_objects(_folder_store(copies["store"]), store, folder)
        done["store"] = await _contents(_folder_store(copies["store"]))
    if "database" in parts:
        await database_copy.copy_back(settings.database_url, copies["database"])
        done["database"] = _size_of(copies["database"])
    return done


def _copies(settings: Settings, folder: Path) -> Mapping[Part, Path]:
    """Where each part is, or will be."""
    name = database_copy.name_for(settings.database_url)
    return {"database": folder / name, "store": folder / STORE}


def _size_of(file: Path) -> dict[str, int]:
    return {"bytes": file.stat().st_size}


def lines(done: dict[str, Any], folder: Path) -> list[str]:
    """What people read."""
    found = [f"{part}: {size(done[part]['bytes'])}" for part in PARTS if part in done]
    if "store" in done:
        found[-1] += f" in {counted(done['store']['objects'], 'object')}"
    return [f"{folder}", *(f"  {line}" for line in found)]


async def _back_up_database(settings: Settings, file: Path) -> dict[str, Any]:
    with TemporaryDirectory(prefix=UNFINISHED, dir=file.parent) as unfinished:
        copy = Path(unfinished) / file.name
        await database_copy.copy_out(settings.database_url, copy)
        copy.chmod(0o600)  # in a folder that was there, others may read
        copy.replace(file)
    return _size_of(file)


async def _back_up_store(settings: Settings, folder: Path) -> dict[str, int]:
    """Copy what the folder lacks; a new folder is there once all is."""
    unfinished = _unfinished(folder)
    await in_thread(unfinished.mkdir, mode=0o700, exist_ok=True)
    try:
        async with closing(_store_of(settings)) as store:
            await _copy_objects(store, _folder_store(unfinished), folder.parent)
        unfinished.replace(folder)
    finally:
        if unfinished != folder:
            shutil.rmtree(unfinished, ignore_errors=True)
    return await _contents(_folder_store(folder))


def _unfinished(folder: Path) -> Path:
    """Where to copy to: the folder itself, if it is whole already."""
    return folder if folder.exists() else folder.with_name(f"{UNFINISHED}{uuid4()}")


async def _copy_objects(source: ObjectStore, target: ObjectStore, folder: Path) -> None:
    """Copy what the target lacks, by way of a folder on a disk with room for a few objects."""
    there = {found.key: found async for found in target.list("")}
    every = [found async for found in source.list("")]
    with TemporaryDirectory(prefix=UNFINISHED, dir=folder) as passing:

        async def copy(found: StoredObject) -> None:
            file = Path(passing) / str(uuid4())
            try:
                await source.download(found.key, file)
                await target.upload(file, found.key, immutable=True)
            except NotFound:
                pass  # it was deleted meanwhile
            finally:
                file.unlink(missing_ok=True)

        lacking = (found for found in every if _is_newer(found, there.get(found.key)))
        await gather_limited(copy, lacking, limit=AT_ONCE)


def _is_newer(found: StoredObject, copy: StoredObject | None) -> bool:
    """Whether it is not what was copied, or may not be."""
    return (
        copy is None or found.bytes != copy.bytes or found.modified > copy.modified - CLOCKS_SECONDS
    )


async def _contents(store: ObjectStore) -> dict[str, int]:
    sizes = [found.bytes async for found in store.list("")]
    return {"objects": len(sizes), "bytes": sum(sizes)}


def _store_of(settings: Settings) -> ObjectStore:
    """It signs no links, and so needs no key; a new place may not have it yet."""
    return open_store(settings, key="")


def _folder_store(folder: Path) -> FolderStore:
    """One that nobody gets links to."""
    return FolderStore(folder, public_url="", key="")
