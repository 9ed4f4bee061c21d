"""What the report needs of a base model that is in the store already."""

from __future__ import annotations

from pathlib import Path

from services.fetcher.model_files import WEIGHTS
from shared.ports import ObjectStore
from shared.storage.folders import read_manifest

FP16_BYTES = 2
"""Per parameter."""


async def stored_parameters(store: ObjectStore, prefix: str) -> dict[str, int]:
    """The same for a diffusers folder in the store, from file sizes, assuming half precision.

    Our trainer saves models so; for a full-precision model the result is twice too high.
    """
    files = (await read_manifest(store, prefix)).files
    return {
        part: sum(one.bytes for one in files if one.name.startswith(name)) // FP16_BYTES
        for part, name in WEIGHTS.items()
    }


async def fetch_tokenizer(store: ObjectStore, prefix: str, folder: Path) -> None:
    """Download a stored model's ``tokenizer/`` into a folder."""
    for file in (await read_manifest(store, prefix)).files:
        if file.name.startswith("tokenizer/"):
            await store.download(f"{prefix}/{file.name}", folder / file.name)
