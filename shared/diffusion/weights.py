"""Snapshots of weights: some of a model's networks, each as one file under its own names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from shared.diffusion.loading import LOAD_ERRORS, Parts
from shared.diffusion.saving import cast
from shared.errors import Refused


def save_weights(
    networks: Mapping[str, torch.nn.Module], folder: Path, *, dtype: torch.dtype = torch.float16
) -> None:
    """Write ``unet.safetensors`` and ``text_encoder.safetensors``, or the one that is given."""
    folder.mkdir(parents=True)
    for name, network in networks.items():
        save_file(cast(network, dtype), folder / f"{name}.safetensors")


def load_weights(parts: Parts, folder: Path) -> None:
    """Put the weights of a snapshot in the place of the model's own.

    Raises:
        Refused: they are not of this model.
    """
    networks: dict[str, torch.nn.Module] = {
        "unet": parts.unet,
        "text_encoder": parts.text_encoder,
    }
    for name, network in networks.items():
        file = folder / f"{name}.safetensors"
        try:
            if file.exists():
                network.load_state_dict(load_file(file))
        except LOAD_ERRORS as error:
            raise Refused(f"the snapshot's {name} cannot be loaded: {error}") from error
