"""A model on disk, network by network: what is in it, and how it comes into one that is loaded."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch

from shared.diffusion.loading import SINGLE_FILE, Parts, load, load_scheduler_config
from shared.diffusion.noise import prediction_type
from shared.diffusion.weights import exchange, misfit
from shared.errors import Refused
from shared.storage.manifest import known_sha256

NETWORKS = ("unet", "vae", "text_encoder")
NOTES = ("_", "architectures", "dtype", "torch_dtype", "transformers_version")
"""How a configuration's entries begin that say nothing of the geometry."""

Content = tuple[str, ...]
"""What is in a network: its files' sha256, or what else tells them from all others."""


class Source:
    """A folder's model, or a snapshot upon it."""

    def __init__(self, folder: Path, weights: Path | None, dtype: torch.dtype) -> None:
        """``dtype`` is what weights are rounded to on their way."""
        self._folder = folder
        self._weights = weights
        self._dtype = dtype

    @cached_property
    def whole(self) -> Parts:
        """The folder's own model, by the stock loaders.

        Raises:
            Refused: it cannot be loaded.
        """
        return load(self._folder, self._dtype)

    @cached_property
    def geometry(self) -> str:
        """sha256 (hex) of what two models must share for one to take the other's weights.

        Raises:
            Refused: a configuration is not JSON.
        """
        digest = hashlib.sha256()
        for name in NETWORKS:
            for file in self._folder.glob(f"{name}/config.json"):
                digest.update(_configuration(file, name).encode())
        for file in sorted(self._folder.glob("tokenizer/*")):
            digest.update(f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
        return digest.hexdigest()

    def content(self, name: str) -> Content:
        """Of a network, the snapshot's if it is in there."""
        snapshot = self._snapshot(name)
        return (_identity(snapshot),) if snapshot else self.own_content(name)

    def own_content(self, name: str) -> Content:
        """Of the folder's own network."""
        known = known_sha256(self._folder)
        files = self._files(name)
        names = [file.relative_to(self._folder).as_posix() for file in files]
        told = (known.get(each) or _identity(self._folder / each) for each in names)
        return (*told, str(self._dtype))

    def copy_into(self, network: torch.nn.Module, name: str) -> None:
        """Bring these weights into a network of this geometry; after an error it is a mixture.

        Raises:
            Refused: they are not of this geometry, or cannot be read.
        """
        files = self._files(name)
        if snapshot := self._snapshot(name):
            if why := misfit(network, snapshot):
                raise Refused(f"the snapshot's {name} cannot be loaded: {why}")
            exchange(network, snapshot, self._dtype)
        elif len(files) == 1 and not misfit(network, files[0]):
            exchange(network, files[0], self._dtype)
        else:  # under older names, or all networks in one file: the stock loaders know them
            network.load_state_dict(getattr(self.whole, name).state_dict())

    def described(self, parts: Parts) -> Parts:
        """The same networks with this model's scheduler.

        Raises:
            Refused: it cannot be read, or is for another kind of prediction.
        """
        config = load_scheduler_config(self._folder)
        return replace(parts, scheduler_config=config, prediction_type=prediction_type(config))

    def _snapshot(self, name: str) -> Path | None:
        file = self._weights / f"{name}.safetensors" if self._weights else None
        return file if file and file.exists() else None

    def _files(self, name: str) -> list[Path]:
        single = self._folder / SINGLE_FILE
        inside = self._folder / name
        return [single] if single.exists() else sorted(inside.glob("*.safetensors"))


def _configuration(file: Path, name: str) -> str:
    try:
        entries = dict(json.loads(file.read_bytes()))
    except (ValueError, TypeError) as error:
        raise Refused(f"the base model's {name} cannot be loaded: config.json: {error}") from error
    telling = {key: each for key, each in entries.items() if not key.startswith(NOTES)}
    return f"{name} {json.dumps(telling, sort_keys=True)}\n"


def _identity(file: Path) -> str:
    """What tells this file from all others and from itself at another time."""
    status = file.stat()
    return f"{file} {status.st_ino} {status.st_size} {status.st_mtime_ns}"
