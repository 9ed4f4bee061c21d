"""Optimizers, and their state as a safetensors file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import Parameter

BETAS = (0.9, 0.999)
EPS = 1e-8
WEIGHT_DECAY = 0.01
ADAM: dict[str, Any] = {"betas": BETAS, "eps": EPS, "weight_decay": WEIGHT_DECAY}


def make_optimizer(kind: str, parameters: Iterable[Parameter]) -> torch.optim.Optimizer:
    """AdamW by one of the names in :data:`services.trainer.training.recipe.Optimizer`."""
    if kind == "adamw8bit":
        from services.trainer.training.adamw8bit import (  # noqa: PLC0415 - it may be missing
            PackedAdamW8bit,
        )

        return PackedAdamW8bit(parameters, **ADAM)
    return torch.optim.AdamW(parameters, fused=kind == "adamw_fused", **ADAM)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def stepped(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> bool:
    """Do a step; False: the scaler has skipped it, because a gradient is not finite."""
    steps = 0

    def count(*_: Any) -> None:
        nonlocal steps
        steps += 1

    hook = optimizer.register_step_post_hook(count)
    try:
        scaler.step(optimizer)
    finally:
        hook.remove()
    return steps > 0


def save_state(optimizer: torch.optim.Optimizer, path: Path) -> None:
    """Write the moments as safetensors; step counts and the like go into the header as JSON."""
    state = optimizer.state_dict()
    leaves = dict(_leaves(state["state"]))
    tensors = {name: each.detach().cpu().clone() for name, each in leaves.items() if _is(each)}
    plain = {name: each for name, each in leaves.items() if not _is(each)}
    header = {"plain": plain, "groups": state["param_groups"]}
    save_file(tensors, path, {"state": msgspec.json.encode(header).decode()})


def load_state(optimizer: torch.optim.Optimizer, path: Path) -> None:
    """Restore what :func:`save_state` wrote, bit for bit.

    Raises:
        ValueError: it belongs to other weights or to another kind of optimizer.
    """
    with safe_open(path, "pt") as file:
        header = msgspec.json.decode(file.metadata()["state"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    _check(optimizer, header["groups"])
    state = _nested({**tensors, **header["plain"]})
    optimizer.load_state_dict({"state": state, "param_groups": header["groups"]})


def _check(optimizer: torch.optim.Optimizer, groups: list[dict[str, Any]]) -> None:
    ours = optimizer.state_dict()["param_groups"]
    if [(len(each["params"]), each.keys()) for each in ours] != [
        (len(each["params"]), each.keys()) for each in groups
    ]:
        raise ValueError("the optimizer's state belongs to another kind of optimizer or network")


def _is(leaf: Any) -> bool:
    return isinstance(leaf, Tensor)


def _leaves(tree: dict[Any, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, branch in tree.items():
        if isinstance(branch, dict):
            yield from _leaves(branch, f"{path}{name}/")
        else:
            yield f"{path}{name}", branch


def _nested(leaves: dict[str, Any]) -> dict[int, Any]:
    """The tree again; its first level is the number of a parameter."""
    tree: dict[Any, Any] = {}
    for path, leaf in leaves.items():
        number, *names, last = path.split("/")
        branch = tree.setdefault(int(number), {})
        for name in names:
            branch = branch.setdefault(name, {})
        branch[last] = leaf
    return tree
