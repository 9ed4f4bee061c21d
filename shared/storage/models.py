"""Models in the store that jobs start from, each content once."""

from __future__ import annotations

import re

from msgspec.structs import replace

from shared.errors import NotFound
from shared.ports import ObjectStore
from shared.storage.folders import key_of, read_manifest
from shared.storage.manifest import OPTIMIZER, FileEntry, FolderManifest

MODELS = "cache/"
"""Below it also lies what trainers measure."""
MODEL = re.compile(rf"{MODELS}[0-9a-f]{{64}}(?=/)")
"""The prefix of a model's folder, at the beginning of its objects' keys."""
USE = "used"
"""An object beside the folder's; the time when it was written is that of the last use."""


def stored_model(address: str) -> str:
    """The prefix of a model's folder; ``address`` is the sha256 (hex) of its content."""
    return f"{MODELS}{address}"


async def note_use(store: ObjectStore, prefix: str) -> None:
    """Note that a model is about to be used, so that it is not deleted for a while."""
    await store.put(f"{prefix}/{USE}", b"")


async def is_whole(store: ObjectStore, prefix: str) -> bool:
    """Whether a model is there with all its files, of which a gateway may have deleted some."""
    try:
        files = (await read_manifest(store, prefix)).files
    except NotFound:
        return False
    found = {each.key: each.bytes async for each in store.list(f"{prefix}/")}
    return all(found.get(f"{prefix}/{file.name}") == file.bytes for file in files)


async def shared_files(store: ObjectStore, prefix: str) -> list[FileEntry]:
    """A stored model's files, with their keys, for a folder that shares them.

    Without its optimizers' states: what is trained from that folder is something else.
    """
    files = (await read_manifest(store, prefix)).files
    return [
        replace(file, key=key_of(prefix, file))
        for file in files
        if not file.name.startswith(OPTIMIZER)
    ]


def base_of(lora: FolderManifest) -> str:
    """The prefix of the model that a LoRA's model shares files with.

    It is one below :data:`MODELS`, or one that a job has trained. Empty: it shares none.
    """
    for file in lora.files:
        if file.key and file.key.endswith(f"/{file.name}"):
            return file.key.removesuffix(f"/{file.name}")
    return ""
