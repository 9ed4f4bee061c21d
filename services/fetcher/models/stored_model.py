"""What the report needs of a base model that is in the store already."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import msgspec

from services.fetcher.model_files import WEIGHTS
from shared.ports import ObjectStore
from shared.request import LoraShape
from shared.storage.folders import key_of, read_manifest
from shared.storage.manifest import LORA_SHAPE, PARAMETERS, FolderManifest

FP16_BYTES = 2
"""Per parameter."""


class StagedModel(NamedTuple):
    """A model in the store."""

    prefix: str
    """Of its diffusers folder."""
    bytes: int = 0
    """Of the folder, if the request named the model by a URL or a hub id."""
    warnings: tuple[str, ...] = ()
    lora: LoraShape | None = None
    """Of the LoRA that it comes with, the first if there are several."""
    loras: int = 0
    """How many there are."""
    lora_base: str = ""
    """Prefix of the model that this is for; empty: there is none."""
    links: Path | None = None
    """A folder here with links to its files; None: it was in the store already."""


async def stored_parameters(store: ObjectStore, prefix: str) -> dict[str, int]:
    """The same for a diffusers folder in the store, as it says itself.

    A folder that does not has been saved before its weights were kept once: then by the sizes of
    its files, taken for half precision, which is twice too high for a model in full precision.
    """
    files = (await read_manifest(store, prefix)).files
    if any(one.name == PARAMETERS for one in files):
        return msgspec.json.decode(await store.get(f"{prefix}/{PARAMETERS}"), type=dict[str, int])
    return {
        part: sum(one.bytes for one in files if one.name.startswith(name)) // FP16_BYTES
        for part, name in WEIGHTS.items()
    }


async def fetch_tokenizer(store: ObjectStore, prefix: str, folder: Path) -> None:
    """Download a stored model's ``tokenizer/`` into a folder."""
    for file in (await read_manifest(store, prefix)).files:
        if file.name.startswith("tokenizer/"):
            await store.download(key_of(prefix, file), folder / file.name)


async def stored_lora(store: ObjectStore, prefix: str) -> LoraShape:
    """The shape of a stored model's LoRA."""
    return msgspec.json.decode(await store.get(f"{prefix}/{LORA_SHAPE}"), type=LoraShape)


async def lacks_files(store: ObjectStore, prefix: str, model: FolderManifest) -> bool:
    """Whether any of a stored model's files is gone."""
    return not all([await store.exists(key_of(prefix, one)) for one in model.files])
