"""Optimizers, and their state as a safetensors file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from lion_pytorch import Lion
from prodigyopt import Prodigy
from safetensors import safe_open
from safetensors.torch import save_file
from schedulefree import AdamWScheduleFree
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from services.trainer.training.recipe import ChosenOptimizer

BETAS = (0.9, 0.999)
EPS = 1e-8
WEIGHT_DECAY = 0.01
ADAM: dict[str, Any] = {"betas": BETAS, "eps": EPS, "weight_decay": WEIGHT_DECAY}
LION: dict[str, Any] = {"betas": (0.9, 0.99), "weight_decay": 5 * WEIGHT_DECAY}
"""Its authors' betas, and as much more weight decay as its rate is lower than Adam's."""
PRODIGY: dict[str, Any] = {
    "lr": 1.0, "weight_decay": WEIGHT_DECAY, "use_bias_correction": True, "safeguard_warmup": True
}  # fmt: skip
"""As its authors advise for diffusion models."""
OF_THE_FIRST_STEP = {"d_denom", "d_hat"}
"""What Prodigy's groups get with it."""


def make_optimizer(kind: ChosenOptimizer, parameters: Iterable[Parameter]) -> Optimizer:
    """The optimizer of this name; those of 8 bits need bitsandbytes."""
    optimizer: Optimizer
    match kind:
        case "adamw8bit" | "lion8bit":
            optimizer = _in_8_bits(kind, parameters)
        case "lion":
            optimizer = Lion(parameters, **LION)
        case "prodigy":
            optimizer = Prodigy(parameters, **PRODIGY)
        case "adafactor":
            optimizer = torch.optim.Adafactor(parameters)
        case "schedule_free":
            free = AdamWScheduleFree(parameters, **ADAM)
            free.train()
            optimizer = free
        case "adamw" | "adamw_fused":
            optimizer = torch.optim.AdamW(parameters, fused=kind == "adamw_fused", **ADAM)
    return optimizer


def _in_8_bits(kind: Literal["adamw8bit", "lion8bit"], parameters: Iterable[Parameter]) -> Any:
    from bitsandbytes.optim.lion import Lion8bit  # noqa: PLC0415 - it may be missing

    from services.trainer.training.adamw8bit import PackedAdamW8bit  # noqa: PLC0415

    if kind == "lion8bit":
        return Lion8bit(parameters, **LION)  # type: ignore[no-untyped-call]
    return PackedAdamW8bit(parameters, **ADAM)


@contextmanager
def saved_weights(optimizers: Iterable[Optimizer]) -> Iterator[None]:
    """Within the block the weights are those to draw with: a schedule-free optimizer averages."""
    averaging = [each for each in optimizers if isinstance(each, AdamWScheduleFree)]
    # Its own way back rounds: how often was saved would be seen in the weights. A card may lack
    # room for a copy.
    weights = [weight for each in averaging for weight in _weights_of(each)]
    trained = [weight.detach().to("cpu", copy=True) for weight in weights]
    for each in averaging:
        each.eval()
    try:
        yield
    finally:
        for each in averaging:
            each.train()
        for weight, before in zip(weights, trained, strict=True):
            weight.data.copy_(before)


def _weights_of(optimizer: Optimizer) -> Iterator[Parameter]:
    for group in optimizer.param_groups:
        yield from group["params"]


def set_lr(optimizer: Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def stepped(optimizer: Optimizer, scaler: torch.amp.GradScaler) -> bool:
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


def save_state(optimizer: Optimizer, path: Path) -> None:
    """Write the moments as safetensors; step counts and the like go into the header as JSON."""
    state = optimizer.state_dict()
    leaves = dict(_leaves(state["state"]))
    tensors = {name: each.detach().cpu().clone() for name, each in leaves.items() if _is(each)}
    plain = {name: each for name, each in leaves.items() if not _is(each)}
    header = {"plain": plain, "groups": state["param_groups"]}
    save_file(tensors, path, {"state": json.dumps(header)})  # Prodigy has an infinite number


def load_state(optimizer: Optimizer, path: Path) -> None:
    """Restore what :func:`save_state` wrote, bit for bit.

    Where it was written among :func:`saved_weights`, the weights here are those, too.

    Raises:
        ValueError: it belongs to other weights or to another kind of optimizer.
    """
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["state"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    _check(optimizer, header["groups"])
    state = _nested({**tensors, **header["plain"]})
    optimizer.load_state_dict({"state": state, "param_groups": header["groups"]})
    if isinstance(optimizer, AdamWScheduleFree):
        optimizer.train()


def _check(optimizer: Optimizer, groups: list[dict[str, Any]]) -> None:
    ours = optimizer.state_dict()["param_groups"]
    if len(ours) != len(groups) or any(
        len(own["params"]) != len(other["params"]) or own.keys() != other.keys() - OF_THE_FIRST_STEP
        for own, other in zip(ours, groups, strict=True)
    ):
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
