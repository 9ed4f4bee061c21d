"""The third process: takes nearly all of a card's free memory until its stdin is closed."""

from __future__ import annotations

import sys
from typing import Any

from bench.card.setting import MIB, mebibytes

LEFT = 96 * MIB
"""Less than a process needs to begin, and than an image needs."""
PIECE = 256 * MIB


def fill(device: str) -> tuple[list[Any], str]:
    """What holds the memory, and what is left of it in words."""
    if device == "cpu":
        return [], "everything: nothing was filled, as this is no card"
    import torch  # noqa: PLC0415 - slow to load

    held: list[torch.Tensor] = []
    piece = PIECE
    while piece >= MIB:
        free, _ = torch.cuda.mem_get_info(device)
        if free - LEFT < piece:
            piece //= 2
            continue
        held.append(torch.empty(piece, dtype=torch.uint8, device=device))
    return held, mebibytes(torch.cuda.mem_get_info(device)[0])


if __name__ == "__main__":
    kept, left = fill(sys.argv[1])
    print(left, flush=True)
    sys.stdin.read()
