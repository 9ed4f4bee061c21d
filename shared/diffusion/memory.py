"""Recognize errors that mean: out of memory."""

from __future__ import annotations

import torch

OUT_OF_MEMORY = ("can't allocate memory", "ALLOC_FAILED")
"""Texts of the CPU's allocator and of cuBLAS, whose errors have no type of their own."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the GPU or the machine ran out of memory, by the error's type or its text."""
    types = (torch.OutOfMemoryError, MemoryError)
    return isinstance(error, types) or any(text in str(error) for text in OUT_OF_MEMORY)
