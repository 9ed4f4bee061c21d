"""Save a network's weights as one file under its own names, and load such a file in place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from shared.diffusion.saving import cpu_weights


def save_weights(
    networks: Mapping[str, torch.nn.Module], folder: Path, *, dtype: torch.dtype = torch.float16
) -> None:
    """Write a file for each network: ``unet.safetensors``, ``text_encoder.safetensors``."""
    folder.mkdir(parents=True)
    for name, network in networks.items():
        save_file(cpu_weights(network, dtype), folder / f"{name}.safetensors")


def mismatch(network: torch.nn.Module, file: Path) -> str | None:
    """Why :func:`load_in_place` cannot load this file into this network; None: it can."""
    try:
        with safe_open(file, "pt") as opened:
            names = _current_names(opened)
            found = {own: tuple(opened.get_slice(name).get_shape()) for own, name in names.items()}
    except (OSError, SafetensorError) as error:
        return str(error)
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    for name in sorted({*expected, *found}):
        if expected.get(name) != found.get(name):
            return f"{name} is {_shown(found.get(name))}, expected {_shown(expected.get(name))}"
    return None


@torch.no_grad()
def load_in_place(network: torch.nn.Module, file: Path, dtype: torch.dtype) -> None:
    """Copy a file's weights into a network's tensors, rounded to ``dtype``; the file must match.

    It copies one tensor at a time from the memory-mapped file, to need little additional memory.
    """
    with safe_open(file, "pt") as opened:
        names = _current_names(opened)
        for own, tensor in network.state_dict().items():
            tensor.copy_(opened.get_tensor(names[own]).to(dtype))


def _current_names(opened: Any) -> dict[str, str]:
    """The names of a file's tensors, by their names in today's modules."""
    # Older text encoders are one level deeper, and have the numbers 0 to 76 among their weights.
    every = (name for name in opened.keys() if not name.endswith(".position_ids"))  # noqa: SIM118
    return {name.removeprefix("text_model."): name for name in every}


def _shown(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else " x ".join(map(str, shape)) or "a number"
