"""Backup and restore of a deployment: its database and its store, in a folder.

The database comes first: what its rows name was in the store before they named it, so a store
that is copied after it has all of it, but for what is deleted meanwhile. A part is there under
its own name only once it is whole.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal
from uuid import uuid4

from everydream.maintenance import database_copy
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

Part = Literal["database", "store"]
PARTS: tuple[Part, ...] = ("database", "store")
STORE = "store"
UNFINISHED = "unfinished-"
"""Begins the name of what is not whole yet."""
AT_ONCE = 4
"""Objects that are copied at a time."""


async def back_up(settings: Settings, folder: Path, parts: Sequence[Part]) -> dict[str, Any]:
    """Copy database and store, or one of them, into a folder, while they are used.

    Returns what was copied: by part its ``bytes``, of the store also its ``objects``.

    Raises:
        Refused: the folder has such a part already, or the database's own tool fails.
        Unavailable: database, store or disk do not answer or have no room.
    """
    copies = _copies(settings, folder)
    for part in parts:
        if copies[part].exists():
            raise Refused(f"{copies[part]} is there already; give each backup a folder of its own")
    await in_thread(folder.mkdir, mode=0o700, parents=True, exist_ok=True)
    done: dict[str, Any] = {}
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
            done["store"] = await _copy_objects(_folder_store(copies["store"]), store, folder)
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
        copy.replace(file)
    return _size_of(file)


async def _back_up_store(settings: Settings, folder: Path) -> dict[str, Any]:
    unfinished = folder.with_name(f"{UNFINISHED}{uuid4()}")
    try:
        async with closing(_store_of(settings)) as store:
            done = await _copy_objects(store, _folder_store(unfinished), folder.parent)
        unfinished.replace(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return done


async def _copy_objects(source: ObjectStore, target: ObjectStore, folder: Path) -> dict[str, int]:
    """Copy all objects by way of a folder on a disk with room for a few of them."""
    with TemporaryDirectory(prefix=UNFINISHED, dir=folder) as passing:

        async def copy(found: StoredObject) -> int:
            """How many bytes; -1: it was deleted meanwhile."""
            file = Path(passing) / str(uuid4())
            try:
                await source.download(found.key, file)
                await target.upload(file, found.key, immutable=True)
                return file.stat().st_size
            except NotFound:
                return -1
            finally:
                file.unlink(missing_ok=True)

        every = [found async for found in source.list("")]
        sizes = [size for size in await gather_limited(copy, every, limit=AT_ONCE) if size >= 0]
    return {"objects": len(sizes), "bytes": sum(sizes)}


def _store_of(settings: Settings) -> ObjectStore:
    """It signs no links, and so needs no key; a new place may not have it yet."""
    return open_store(settings, key="")


def _folder_store(folder: Path) -> FolderStore:
    """One that nobody gets links to."""
    return FolderStore(folder, public_url="", key="")
