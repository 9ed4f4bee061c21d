"""A model's files: identify each network's weights, and load them into an existing network."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from shared.diffusion.loading import Parts, load, load_scheduler_config
from shared.diffusion.noise import prediction_type
from shared.diffusion.single_file import load_in_place as load_of_one
from shared.diffusion.weights import load_in_place, mismatch
from shared.errors import Refused
from shared.storage.manifest import LORA, SINGLE_FILE, known_sha256

NETWORKS = ("unet", "vae", "text_encoder")
IRRELEVANT = ("_", "architectures", "dtype", "torch_dtype", "transformers_version")
"""Prefixes of the configuration keys that do not change a network's architecture."""

Fingerprint = tuple[str, ...]
"""Identifies a network's weights: its files' sha256, or else path, inode, size and time."""


class ModelFiles:
    """A model's folder, and possibly a snapshot whose networks replace the folder's."""

    def __init__(self, folder: Path, snapshot: Path | None, dtype: torch.dtype) -> None:
        """``dtype`` is what weights are rounded to while loading."""
        self._folder = folder
        self._snapshot = snapshot
        self._dtype = dtype

    @cached_property
    def base(self) -> Parts:
        """The folder's model without the snapshot, loaded by the stock loaders.

        Raises:
            Refused: it cannot be loaded.
        """
        return load(self._folder, self._dtype)

    @cached_property
    def architecture_hash(self) -> str:
        """sha256 (hex) of the networks' configurations and the tokenizer.

        Where it is the same, one model's weights fit into another's networks.

        Raises:
            Refused: a configuration is not JSON.
        """
        digest = hashlib.sha256()
        for name in NETWORKS:
            for file in self._folder.glob(f"{name}/config.json"):
                digest.update(_relevant_configuration(file, name).encode())
        for file in sorted(self._folder.glob("tokenizer/*")):
            digest.update(f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
        return digest.hexdigest()

    def count_parameters(self) -> int:
        """Of all networks, by the headers of the files.

        Raises:
            Refused: one cannot be read.
        """
        count = 0
        for file in {file for name in NETWORKS for file in self._base_files(name)}:
            try:
                with safe_open(file, "pt") as opened:
                    names = opened.keys()
                    count += sum(prod(opened.get_slice(name).get_shape()) for name in names)
            except (OSError, SafetensorError) as error:
                raise Refused(f"the base model's {file.name} cannot be read: {error}") from error
        return count

    def fingerprint(self, name: str) -> Fingerprint:
        """Of a network: the snapshot's if it has this one, else the folder's."""
        file = self._snapshot_file(name)
        return (_file_identity(file),) if file else self.base_fingerprint(name)

    def base_fingerprint(self, name: str) -> Fingerprint:
        """Of the folder's network."""
        known = known_sha256(self._folder)
        names = [file.relative_to(self._folder).as_posix() for file in self._base_files(name)]
        identities = (known.get(each) or _file_identity(self._folder / each) for each in names)
        return (*identities, str(self._dtype))

    def load_into(self, network: torch.nn.Module, name: str) -> None:
        """Load weights into a network of this architecture; an error leaves it half loaded.

        Raises:
            Refused: they do not fit, or cannot be read.
        """
        files = self._base_files(name)
        if file := self._snapshot_file(name):
            if why := mismatch(network, file):
                raise Refused(f"the snapshot's {name} cannot be loaded: {why}")
            load_in_place(network, file, self._dtype)
        elif len(files) == 1 and self._loaded_in_place(network, files[0]):
            return
        else:  # older names, or OpenCLIP in one file with all: only the stock loaders know them
            network.load_state_dict(getattr(self.base, name).state_dict())

    def _loaded_in_place(self, network: torch.nn.Module, file: Path) -> bool:
        """Whether the file has the network as it is now; if so, it is loaded."""
        if file.name == SINGLE_FILE:
            with suppress(OSError, SafetensorError):  # the stock loader says what is wrong
                return load_of_one(network, file, self._dtype)
            return False
        if mismatch(network, file):
            return False
        load_in_place(network, file, self._dtype)
        return True

    @property
    def lora(self) -> Path | None:
        """The file of the LoRA that is added: the snapshot's if it has one, else the folder's."""
        folders = [self._snapshot, self._folder] if self._snapshot else [self._folder]
        return next((each / LORA for each in folders if (each / LORA).exists()), None)

    def with_scheduler(self, parts: Parts) -> Parts:
        """The same networks with this model's scheduler and prediction type.

        Raises:
            Refused: the configuration cannot be read, or has another kind of prediction.
        """
        config = load_scheduler_config(self._folder)
        return replace(parts, scheduler_config=config, prediction_type=prediction_type(config))

    def _snapshot_file(self, name: str) -> Path | None:
        file = self._snapshot / f"{name}.safetensors" if self._snapshot else None
        return file if file and file.exists() else None

    def _base_files(self, name: str) -> list[Path]:
        single = self._folder / SINGLE_FILE
        inside = self._folder / name
        return [single] if single.exists() else sorted(inside.glob("*.safetensors"))


def _relevant_configuration(file: Path, name: str) -> str:
    try:
        entries = dict(json.loads(file.read_bytes()))
    except (ValueError, TypeError) as error:
        raise Refused(f"the base model's {name} cannot be loaded: config.json: {error}") from error
    relevant = {key: value for key, value in entries.items() if not key.startswith(IRRELEVANT)}
    return f"{name} {json.dumps(relevant, sort_keys=True)}\n"


def _file_identity(file: Path) -> str:
    """Differs from all other files', and from the same file's after a change."""
    status = file.stat()
    return f"{file} {status.st_ino} {status.st_size} {status.st_mtime_ns}"
