"""Recognize errors that mean out of memory, and tell what other processes hold."""

from __future__ import annotations

from typing import NamedTuple

import torch

WORTH_TELLING = 1 << 30
"""Bytes; a process on a card has some hundred megabytes that torch does not count."""
OUT_OF_MEMORY = (
    "can't allocate memory",  # the CPU's allocator
    "out of memory",  # the driver, when another process fills the card
    "ALLOC_FAILED",  # cuBLAS, cuDNN, cuSOLVER
    "CUBLAS_STATUS_NOT_INITIALIZED",  # its workspace does not fit any more
    "CUDNN_STATUS_NOT_INITIALIZED",
)
"""Texts of errors that have no type of their own."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the GPU or the machine ran out of memory, by the error's type or its text."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY)


class CardMemory(NamedTuple):
    """Bytes of a card's memory."""

    available: int
    """What is free, and what this process has and does not use."""
    others: int
    """What other processes have, this one's CUDA context included."""
    total: int


def card_memory(device: torch.device) -> CardMemory | None:
    """What the driver says now; None: the device is no card."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    ours, used = torch.cuda.memory_reserved(device), torch.cuda.memory_allocated(device)
    return CardMemory(free + ours - used, total - free - ours, total)


def held_memory(device: torch.device) -> int:
    """Bytes of the card that torch holds in this process; 0: the device is no card."""
    return torch.cuda.memory_reserved(device) if device.type == "cuda" else 0


def held_by_others() -> str:
    """How much of this card others hold, to be added to a reason; empty if it is little."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return ""
    free, total = torch.cuda.mem_get_info()
    others = total - free - torch.cuda.memory_reserved()
    if others < WORTH_TELLING:
        return ""
    return f"; other processes have {others / 2**30:.1f} of the card's {total / 2**30:.1f} GiB"
