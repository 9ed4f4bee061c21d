"""What this machine can do, found out by trying."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import product
from time import perf_counter

import torch
from diffusers.models.attention_processor import Attention

from services.trainer.training.optimizer import make_optimizer
from services.trainer.training.recipe import ChosenOptimizer, Device
from shared.diffusion.device import device_name
from shared.diffusion.memory import is_out_of_memory

CANNOT = (ImportError, ValueError, NotImplementedError, RuntimeError, AttributeError, OSError)
"""What an installed library raises that does not work on this device."""
OPTIONAL = ("bitsandbytes", "xformers")
PRECISIONS = (torch.float32, torch.float16, torch.bfloat16)
HEAD_DIMS = (40, 80, 160)
"""Channels of an attention head in Stable Diffusion 1.5's UNet."""
TOKENS = 77
"""Of a caption."""
TEST_PIXELS, TEST_CHANNELS = 64, 32
WORDS = 400
"""The longest reason, in characters."""
TEST_SIDES = {"cuda": 4096, "cpu": 512}
"""Of the matrices that test a device: large enough to keep it busy, done in milliseconds."""
TEST_ROUNDS = 4
"""The first also loads what the others need."""


@cache
def probe(device: torch.device) -> Device:
    """Find out what :func:`.recipe.choose` needs to know.

    Raises:
        torch.OutOfMemoryError, RuntimeError: memory ran out, so that nothing was found out.
    """
    on_cuda = device.type == "cuda"
    bf16 = on_cuda and torch.cuda.is_bf16_supported(including_emulation=False)
    problems = {"bitsandbytes": why_not(lambda: _optimize("adamw8bit", device), device)}
    if on_cuda:
        problems["xformers"] = why_not(lambda: _attend(device, bf16=bf16), device)
    return Device(
        kind="cuda" if on_cuda else "cpu",
        name=device_name(device),
        bf16=bf16,
        xformers=on_cuda and problems["xformers"] is None,
        bitsandbytes=problems["bitsandbytes"] is None,
        fused=why_not(lambda: _optimize("adamw_fused", device), device) is None,
        unusable=tuple(f"{name} is not used: {why}" for name, why in problems.items() if why),
    )


def unusable(device: torch.device) -> tuple[str, ...]:
    """As :attr:`Device.unusable`, of a card; nothing if it has no memory to tell."""
    if device.type != "cuda":
        return ()  # it saves each child the import of what none of them lacks
    try:
        return probe(device).unusable
    except (RuntimeError, MemoryError):  # the job will say so
        return ()


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


def why_not(attempt: Callable[[], object], device: torch.device) -> str | None:
    """What an attempt fails of, its work on the device included; None: it succeeds.

    An empty text says that a library is not installed.

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
        if isinstance(error, ModuleNotFoundError) and error.name in OPTIONAL:
            return ""
        return " ".join(str(error).split())[:WORDS] or type(error).__name__
    return None


def _attend(device: torch.device, *, bf16: bool) -> None:
    """Attend as the UNet does in training, by xformers, to itself and to a caption.

    Raises:
        ImportError: its library does not load; it imports all the same.
    """
    from xformers import _cpp_lib  # noqa: PLC0415 - it may be missing

    if problem := _cpp_lib._cpp_library_load_exception:  # noqa: SLF001 - it is only logged
        raise ImportError(f"its library does not load. {problem}")
    for channels in HEAD_DIMS:
        layer = Attention(query_dim=TEST_CHANNELS, heads=2, dim_head=channels).to(device)
        layer.set_use_memory_efficient_attention_xformers(True)  # which tries it in fp32
        for dtype, tokens in product(PRECISIONS, (TEST_PIXELS, TOKENS)):
            if dtype is torch.bfloat16 and not bf16:
                continue
            pixels = torch.ones(1, TEST_PIXELS, TEST_CHANNELS, device=device)
            attended = torch.ones(1, tokens, TEST_CHANNELS, device=device)
            with torch.autocast(device.type, dtype, enabled=dtype is not torch.float32):
                layer(pixels, attended).sum().backward()


def _optimize(kind: ChosenOptimizer, device: torch.device) -> None:
    """Two large tensors and two small: as many as are updated together."""
    weights = [
        torch.nn.Parameter(torch.ones(*shape, device=device))
        for shape in ((64, 64), (64, 64), (64,), (64,))
    ]
    for each in weights:
        each.grad = torch.ones_like(each)
    make_optimizer(kind, weights).step()
