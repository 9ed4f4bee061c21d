"""LoRA: a small addition to a frozen network, which alone is trained (Hu et al. 2021).

A layer that computes W x computes W x + up(down(x)) * alpha / rank. Forward hooks add it, so the
network keeps its own weights and names. A LoRA's tensors are named as in kohya's files, which
diffusers, A1111 and ComfyUI load.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from shared.errors import Refused
from shared.request import LoraShape

DOWN, UP, ALPHA = "lora_down.weight", "lora_up.weight", "alpha"
PREFIXES = {"unet": "lora_unet_", "text_encoder": "lora_te_text_model_"}
"""Of the names of each network's layers."""
ATTENTION = re.compile(r"(.*\.)?attentions\.|encoder\.layers\.")
"""The UNet's transformer blocks, and all of the text encoder's."""
CONVOLUTIONAL = re.compile(r".*\.(resnets|downsamplers|upsamplers)\.")
"""The UNet's other blocks."""


class LoraLayer(nn.Module):
    """The addition to one layer. It adds nothing yet: ``up`` is zero, ``down`` is the caller's."""

    alpha: Tensor
    lora_down: nn.Linear | nn.Conv2d
    lora_up: nn.Linear | nn.Conv2d

    def __init__(self, layer: nn.Linear | nn.Conv2d, rank: int, alpha: float) -> None:
        super().__init__()
        if isinstance(layer, nn.Linear):
            self.lora_down = nn.Linear(layer.in_features, rank, bias=False)
            self.lora_up = nn.Linear(rank, layer.out_features, bias=False)
        else:
            size, stride, padding = cast("Any", (layer.kernel_size, layer.stride, layer.padding))
            self.lora_down = nn.Conv2d(layer.in_channels, rank, size, stride, padding, bias=False)
            self.lora_up = nn.Conv2d(rank, layer.out_channels, 1, bias=False)
        nn.init.zeros_(self.lora_up.weight)
        alpha = torch.tensor(float(alpha), device="cpu").item()  # in fp32, as files keep it
        self.register_buffer("alpha", torch.tensor(alpha))
        self.scale = alpha / rank
        self.strength = 1.0

    def merged(self) -> Tensor:
        """What it adds to the layer's weights, (out, in x the kernel's size), fp32."""
        down, up = (part.weight.float().flatten(1) for part in (self.lora_down, self.lora_up))
        return up @ down * self.scale * self.strength

    def forward(self, inputs: Tensor) -> Tensor:
        """What is added to the layer's outputs for these inputs."""
        inputs = inputs.to(self.lora_down.weight.dtype)
        added: Tensor = self.lora_up(self.lora_down(inputs)) * (self.scale * self.strength)
        return added


class Lora(nn.ModuleDict):
    """The addition to one network; it is there until :meth:`remove`.

    Its parameters are what is trained. Its ``state_dict`` has the names of a kohya file.
    """

    def __init__(self, layers: Mapping[str, tuple[nn.Module, LoraLayer]]) -> None:
        """``layers`` are the network's own and what is added to each, by kohya's names."""
        super().__init__({name: added for name, (_, added) in layers.items()})
        self._layers = list(layers.values())
        self._hooks = [layer.register_forward_hook(_adding(added)) for layer, added in self._layers]

    def remove(self) -> None:
        """Leave the network as it was."""
        for hook in self._hooks:
            hook.remove()

    def weigh(self, strength: float) -> None:
        """Multiply what is added; 0: nothing is, 1: as it was trained."""
        for _, added in self._layers:
            added.strength = strength

    @torch.no_grad()
    def merge(self) -> None:
        """Add it to the network's own weights, in fp32, in place of what the hooks add."""
        self.remove()
        for layer, added in self._layers:
            weight = cast("Tensor", layer.weight)
            layer.to(torch.float32)
            weight.data = weight.data.float() + added.merged().reshape(weight.shape)


def fresh_lora(kind: str, network: nn.Module, shape: LoraShape, generator: torch.Generator) -> Lora:
    """A LoRA that changes nothing yet: ``up`` is zero, ``down`` drawn as a linear layer's weights.

    ``kind`` is ``unet`` or ``text_encoder``. It is drawn on the CPU, so that a run repeats on every
    device.
    """
    layers: dict[str, tuple[nn.Module, LoraLayer]] = {}
    for name, layer in network.named_modules():
        if (size := size_of(name, layer, shape)) is not None:
            added = LoraLayer(cast("nn.Linear", layer), *size)
            nn.init.kaiming_uniform_(added.lora_down.weight, a=5**0.5, generator=generator)
            layers[kohya_name(kind, name)] = layer, added
    return Lora(layers)


def size_of(name: str, layer: nn.Module, shape: LoraShape) -> tuple[int, float] | None:
    """Rank and alpha of what is added to a layer, by its name in its network; None: nothing is."""
    if not isinstance(layer, nn.Linear | nn.Conv2d):
        return None
    if not (ATTENTION.match(name) or (shape.conv_rank and CONVOLUTIONAL.match(name))):
        return None
    is_wide = isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1)
    rank = shape.conv_rank if is_wide else shape.rank
    return rank, shape.alpha * rank / shape.rank


def lora_of(kind: str, network: nn.Module, tensors: Mapping[str, Tensor]) -> Lora | None:
    """The LoRA that a kohya file has for this network; None: it has none.

    Raises:
        Refused: the file does not fit the network; names what differs.
    """
    ours = {name: each for name, each in tensors.items() if name.startswith(PREFIXES[kind])}
    known = {
        kohya_name(kind, name): layer
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    }
    names = {name.partition(".")[0] for name in ours}
    if strangers := sorted(names - known.keys()):
        raise Refused(
            f"the LoRA has {strangers[0]}, which the model has not: it is for another kind"
        )
    # In the network's order, as a fresh one: an optimizer's moments go by position.
    layers = {
        name: (layer, _loaded(name, layer, ours)) for name, layer in known.items() if name in names
    }
    return Lora(layers) if layers else None


def _loaded(name: str, layer: nn.Linear | nn.Conv2d, tensors: Mapping[str, Tensor]) -> LoraLayer:
    try:
        down, up = (tensors[f"{name}.{part}"] for part in (DOWN, UP))
    except KeyError as error:
        raise Refused(f"the LoRA lacks {error.args[0]}") from None
    alpha = tensors.get(f"{name}.{ALPHA}")
    added = LoraLayer(layer, len(down), len(down) if alpha is None else float(alpha))
    for part, tensor in ((added.lora_down, down), (added.lora_up, up)):
        if part.weight.shape != tensor.shape:
            found, expected = (
                " x ".join(map(str, shape)) for shape in (tensor.shape, part.weight.shape)
            )
            raise Refused(f"the LoRA's {name} is {found}, but the model needs {expected}")
        part.weight.data.copy_(tensor)
    return added


def kohya_name(kind: str, name: str) -> str:
    """A layer's name in a file, by its name in its network."""
    return PREFIXES[kind] + name.removeprefix("text_model.").replace(".", "_")


def _adding(added: LoraLayer) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    def hook(_layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        sum_of_both: Tensor = output + added(inputs[0])
        return sum_of_both.to(output.dtype)

    return hook
