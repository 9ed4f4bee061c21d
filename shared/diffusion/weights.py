"""Weights of one network as one file under its own names: written, and exchanged in place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from shared.diffusion.saving import cast


def save_weights(
    networks: Mapping[str, torch.nn.Module], folder: Path, *, dtype: torch.dtype = torch.float16
) -> None:
    """Write ``unet.safetensors`` and ``text_encoder.safetensors``, or the one that is given."""
    folder.mkdir(parents=True)
    for name, network in networks.items():
        save_file(cast(network, dtype), folder / f"{name}.safetensors")


def misfit(network: torch.nn.Module, file: Path) -> str | None:
    """Why :func:`exchange` cannot read this file into this network; None: it can."""
    try:
        with safe_open(file, "pt") as opened:
            names = _names(opened)
            found = {own: tuple(opened.get_slice(name).get_shape()) for own, name in names.items()}
    except (OSError, SafetensorError) as error:
        return str(error)
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    for name in sorted({*wanted, *found}):
        if wanted.get(name) != found.get(name):
            return f"{name} is {_shown(found.get(name))}, expected {_shown(wanted.get(name))}"
    return None


@torch.no_grad()
def exchange(network: torch.nn.Module, file: Path, dtype: torch.dtype) -> None:
    """Read a file that fits into a network's own tensors, rounded to ``dtype`` on the way.

    One tensor at a time comes from the file's pages, so that little memory is taken besides.
    """
    with safe_open(file, "pt") as opened:
        names = _names(opened)
        for own, tensor in network.state_dict().items():
            tensor.copy_(opened.get_tensor(names[own]).to(dtype))


def _names(opened: Any) -> dict[str, str]:
    """A file's tensors by the names that today's modules have for them."""
    # Older text encoders are one level deeper, and have the numbers 0 to 76 among their weights.
    every = (name for name in opened.keys() if not name.endswith(".position_ids"))  # noqa: SIM118
    return {name.removeprefix("text_model."): name for name in every}


def _shown(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else " x ".join(map(str, shape)) or "a number"
