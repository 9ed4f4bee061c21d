"""What this machine can do, found out by trying."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from time import perf_counter

import torch

from services.trainer.training.optimizer import make_optimizer
from services.trainer.training.recipe import Device
from shared.diffusion.device import device_name
from shared.diffusion.memory import is_out_of_memory

CANNOT = (ImportError, ValueError, NotImplementedError, RuntimeError, AttributeError, OSError)
"""What an installed library raises that does not work on this device."""
PRECISIONS = (torch.float32, torch.float16, torch.bfloat16)
HEAD_DIMS = (40, 80, 160)
"""Channels of an attention head in Stable Diffusion 1.5's UNet."""
TEST_SIDES = {"cuda": 4096, "cpu": 512}
"""Of the matrices that test a device: large enough to keep it busy, done in milliseconds."""
TEST_ROUNDS = 4
"""The first also loads what the others need."""


def probe(device: torch.device) -> Device:
    """Find out what :func:`.recipe.choose` needs to know.

    Raises:
        torch.OutOfMemoryError, RuntimeError: memory ran out, so that nothing was found out.
    """
    on_cuda = device.type == "cuda"
    bf16 = on_cuda and torch.cuda.is_bf16_supported(including_emulation=False)
    return Device(
        kind="cuda" if on_cuda else "cpu",
        name=device_name(device),
        bf16=bf16,
        xformers=on_cuda and works(lambda: _attend(device, bf16=bf16), device),
        bitsandbytes=works(lambda: _optimize("adamw8bit", device), device),
        fused=works(lambda: _optimize("adamw_fused", device), device),
    )


def teraflops(device: torch.device) -> float:
    """How fast it multiplies matrices in the precision of a training, at best; 0: it cannot."""
    try:
        return max(_teraflops(device) for _ in range(TEST_ROUNDS))
    except CANNOT:  # the card is full or unusable: the job will say so
        return 0.0


def _teraflops(device: torch.device) -> float:
    side = TEST_SIDES[device.type]
    kind = torch.float16 if device.type == "cuda" else torch.float32
    matrix = torch.ones(side, side, dtype=kind, device=device)
    _wait_for(matrix)
    began = perf_counter()
    _wait_for(matrix @ matrix)
    return 2 * side**3 / (perf_counter() - began) / 1e12


def _wait_for(matrix: torch.Tensor) -> None:
    """A card computes asynchronously: wait until it has this."""
    matrix[0, 0].item()


def works(attempt: Callable[[], object], device: torch.device) -> bool:
    """Whether an attempt succeeds, its work on the device included.

    Raises:
        torch.OutOfMemoryError, RuntimeError: memory ran out: it might work.
    """
    try:
        attempt()
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # a kernel's error shows when it is waited for
    except CANNOT as error:
        if is_out_of_memory(error):
            raise
        return False
    return True


def _attend(device: torch.device, *, bf16: bool) -> None:
    """All that is asked of xformers: it imports well on machines where it cannot run."""
    from xformers.ops import memory_efficient_attention  # noqa: PLC0415 - it may be missing

    for dtype, channels in product(PRECISIONS, HEAD_DIMS):
        if dtype is torch.bfloat16 and not bf16:
            continue
        query = torch.ones(1, 8, 1, channels, device=device, dtype=dtype, requires_grad=True)
        memory_efficient_attention(query, query, query).sum().backward()


def _optimize(kind: str, device: torch.device) -> None:
    """Two large tensors and two small: as many as are updated together."""
    weights = [
        torch.nn.Parameter(torch.ones(*shape, device=device))
        for shape in ((64, 64), (64, 64), (64,), (64,))
    ]
    for each in weights:
        each.grad = torch.ones_like(each)
    make_optimizer(kind, weights).step()
