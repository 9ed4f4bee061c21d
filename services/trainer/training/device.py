"""What this machine can do, found out by trying."""

from __future__ import annotations

from collections.abc import Callable

import torch

from services.trainer.training.optimizer import make_optimizer
from services.trainer.training.recipe import Device

CANNOT = (ImportError, ValueError, NotImplementedError, RuntimeError, AttributeError, OSError)
"""What an installed library raises that does not work on this device."""


def this_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def probe(device: torch.device) -> Device:
    """Find out what :func:`.recipe.choose` needs to know."""
    on_cuda = device.type == "cuda"
    return Device(
        kind="cuda" if on_cuda else "cpu",
        name=device_name(device),
        bf16=on_cuda and torch.cuda.is_bf16_supported(including_emulation=False),
        xformers=on_cuda and works(lambda: _attend(device)),
        bitsandbytes=works(lambda: _optimize("adamw8bit", device)),
        fused=works(lambda: _optimize("adamw_fused", device)),
    )


def works(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except CANNOT:
        return False
    return True


def _attend(device: torch.device) -> None:
    """One real call: xformers imports well on machines where it cannot run."""
    from xformers.ops import memory_efficient_attention  # noqa: PLC0415 - it may be missing

    query = torch.ones(1, 8, 1, 16, device=device, dtype=torch.float16, requires_grad=True)
    memory_efficient_attention(query, query, query).sum().backward()


def _optimize(kind: str, device: torch.device) -> None:
    weights = torch.nn.Parameter(torch.ones(64, 64, device=device))
    weights.grad = torch.ones_like(weights)
    make_optimizer(kind, [weights]).step()
