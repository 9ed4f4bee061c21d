"""How many bytes on disk a checkpoint, resume point or snapshot takes."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from services.trainer.training.state import State
from shared.request import Train
from shared.storage.manifest import copies_of_weights

HEADERS = 2**24
"""Bytes beside the tensors: names, configurations, the tokenizer, metrics."""


def checkpoint_bytes(state: State, train: Train) -> int:
    """Of a checkpoint, and the optimizers beside it if asked for."""
    return _model_bytes(state, train) + (optimizer_bytes(state) if train.save_optimizer else 0)


def last_bytes(state: State, train: Train) -> int:
    """Of the trained model: a checkpoint, and the weights of its folder where it has its own."""
    if state.loras:
        merged = _bytes_of(_whole(state), train) if train.lora_merge else 0
        return merged + checkpoint_bytes(state, train)
    others = copies_of_weights(train) - 1
    return others * _model_bytes(state, train) + checkpoint_bytes(state, train)


def _model_bytes(state: State, train: Train) -> int:
    return _bytes_of(tuple(state.loras.values()) or _whole(state), train)


def _whole(state: State) -> tuple[torch.nn.Module, ...]:
    return state.parts.unet, state.parts.vae, state.parts.text_encoder


def _bytes_of(networks: tuple[torch.nn.Module, ...], train: Train) -> int:
    size = (torch.float32 if train.save_full_precision else torch.float16).itemsize
    weights: int = sum(
        tensor.numel() * (size if tensor.is_floating_point() else tensor.itemsize)
        for network in networks
        for tensor in network.state_dict().values()
    )
    return weights + HEADERS


def snapshot_bytes(state: State) -> int:
    """Of a snapshot: trained weights in half precision."""
    weights = (each for network in state.trained.values() for each in network.parameters())
    return sum(each.numel() for each in weights) * torch.float16.itemsize + HEADERS


def resume_point_bytes(state: State) -> int:
    """Of a resume point: trained weights, their moving averages, the optimizers' moments."""
    weights = sum(_bytes(network.state_dict().values()) for network in state.trained.values())
    averages = sum(_bytes(each.state_dict().values()) for each in state.averages.values())
    return weights + averages + optimizer_bytes(state) + HEADERS


def optimizer_bytes(state: State) -> int:
    """Of the optimizers' moments."""
    return sum(
        _bytes(leaf for leaf in moments.values() if isinstance(leaf, Tensor))
        for optimizer in state.optimizers.values()
        for moments in optimizer.state.values()
    )


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
