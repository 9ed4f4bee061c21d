"""What a card of a known capability should choose, by NVIDIA's and xformers' own tables."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

from services.trainer.training.recipe import Attention, ChosenOptimizer, Precision
from shared.request import Train

BF16_FROM = (8, 0)
XFORMERS_UP_TO = (9, 0)
"""Beyond it xformers 0.0.35 has no attention in fp32, which diffusers tries first."""
XFORMERS_TORCH = "2.10."


class Expected(NamedTuple):
    """As the outcome of a training says it."""

    precision: Precision
    optimizer: ChosenOptimizer
    attention: Attention


def expected_of(
    capability: tuple[int, int], train: Train, *, xformers: bool, bf16: bool = True
) -> Expected:
    """The choices of a training.

    Args:
        capability: the card's.
        train: the request.
        xformers: whether it is installed with the torch that it is built for.
        bf16: False: it is forced off.
    """
    half: Precision = "bf16" if bf16 and capability >= BF16_FROM else "fp16"
    is_used = xformers and capability <= XFORMERS_UP_TO and not train.disable_xformers
    return Expected(
        precision=half if train.amp else "fp32",
        optimizer="adamw8bit" if train.useadam8bit else "adamw_fused",
        attention="xformers" if is_used else "sdpa",
    )


def has_xformers() -> bool:
    """Whether xformers is installed, beside the torch that it is built for."""
    try:
        version("xformers")
    except PackageNotFoundError:
        return False
    return version("torch").startswith(XFORMERS_TORCH)
