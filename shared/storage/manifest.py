"""The manifest of a stored folder: each file's name, size and sha256."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
from msgspec import Struct

from shared.request import Train

MANIFEST = ".folder.sha256.json"
"""Datasets and models may have a ``manifest.json`` of their own, but no file of this name."""
SINGLE_FILE = "single_file.safetensors"
"""Where a model's folder has this file, all weights are in it, in the original layout."""
LORA = "lora.safetensors"
"""Where a model's folder has this file, it is added to the networks, which are the base model's."""
LORA_SHAPE = "lora.json"
"""Beside :data:`LORA`: its rank, its alpha and its rank of convolutions."""
OPTIMIZER = "optimizer_"
"""How the names of the files begin that ``save_optimizer`` asks for."""
PARAMETERS = "parameters.json"
"""In a trained model's folder: how many parameters each network has."""


class FileEntry(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One file of a folder; ``name`` is relative and uses ``/``."""

    name: str
    bytes: int
    sha256: str
    key: str | None = None
    """Where it lies in the store; None: below the folder's prefix, under its name."""


class FolderManifest(Struct, frozen=True, kw_only=True):
    """Every file of a folder, in order of names."""

    files: tuple[FileEntry, ...]

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    @property
    def address(self) -> str:
        """sha256 (hex) over all names and contents: equal folders have equal addresses."""
        lines = (f"{file.sha256}  {file.name}\n" for file in self.files)
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def known_sha256(folder: Path) -> dict[str, str]:
    """sha256 (hex) by name of a cached folder's files; empty for any other folder."""
    try:
        manifest = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=FolderManifest)
    except FileNotFoundError:
        return {}
    return {file.name: file.sha256 for file in manifest.files}


def copies_of_weights(train: Train) -> int:
    """How often a finished model's weights are kept, those of its base included.

    A LoRA's are only with ``lora_merge``.
    A ``.safetensors`` checkpoint serves its folder, too; beside a ``.ckpt`` there is a folder with
    the same weights, because a pickle is never loaded from the store.
    """
    if train.lora_shape:
        return 1 if train.lora_merge else 0
    return 1 if train.checkpoint_format == "safetensors" else 2
