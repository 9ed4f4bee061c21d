"""Learning rates, steps, accumulation from the request; precision and optimizer by device.

A *step* is one batch forward and backward; an *update* is one step of the optimizer.
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec
from msgspec import Struct

from shared import request
from shared.dataset.card_memory import USUAL_RANK
from shared.dataset.optimizers import IN_8_BITS, chosen_optimizer, usual_lr
from shared.request import LrScheduler, Train

A_LORA = f"a LoRA (lora_rank {USUAL_RANK})"
"""What takes less memory than any training of whole networks."""
DEFAULT_RESOLUTION = 512
SCALE_LR_POWER = 0.55
DECAY_BEYOND_END = 1.5
WARMUP_SHARE = 50
POLYNOMIAL_FLOOR = 1e-7
"""The learning rate at which polynomial decay ends."""


class Recipe(Struct, frozen=True, kw_only=True):
    """What of a run follows from the request and the dataset alone."""

    lr: float
    """The peak learning rate."""
    text_encoder_lr: float | None = None
    """The text encoder's own peak; None: the same."""
    lr_scheduler: LrScheduler
    warmup_steps: int
    decay_steps: int
    total_steps: int

    def lr_factor(self, step: int) -> float:
        """What the peak is multiplied by at a step (0, 1, ...); 0 to 1."""
        if self.lr_scheduler == "constant":
            return 1.0
        if step < self.warmup_steps:
            return step / self.warmup_steps
        if step >= self.decay_steps:  # also where the warm-up outlasts the decay
            return self._decayed(1.0)
        return self._decayed((step - self.warmup_steps) / (self.decay_steps - self.warmup_steps))

    def _decayed(self, done: float) -> float:
        """The factor after a share of the decay, 0 to 1; it stays at the floor."""
        match self.lr_scheduler:
            case "linear":
                return 1.0 - done
            case "cosine":
                return 0.5 * (1.0 + math.cos(math.pi * done))
            case "polynomial":
                floor = min(POLYNOMIAL_FLOOR / self.lr, 1.0)
                return floor + (1.0 - floor) * (1.0 - done)
            case "constant":
                return 1.0

    def lr_at(self, step: int) -> float:
        """The learning rate at a step; of a text encoder with its own, the UNet's."""
        return self.lr * self.lr_factor(step)

    def lrs_at(self, step: int) -> dict[str, float]:
        """The learning rate of each network at a step: one schedule, from two peaks."""
        own = self.lr if self.text_encoder_lr is None else self.text_encoder_lr
        return {
            "unet": self.lr_at(step),
            "text_encoder": msgspec.structs.replace(self, lr=own).lr_at(step),
        }


def recipe_for(train: Train, *, steps_per_epoch: int, total_steps: int) -> Recipe:
    """Fill in what the request leaves open.

    ``steps_per_epoch`` is the first epoch's; ``total_steps`` those of all epochs together.
    """
    decay = train.lr_decay_steps or int(steps_per_epoch * train.max_epochs * DECAY_BEYOND_END)
    warmup = train.lr_warmup_steps
    return Recipe(
        lr=peak_lr(train, train.lr),
        text_encoder_lr=peak_lr(train, train.text_encoder_lr) if train.text_encoder_lr else None,
        lr_scheduler=train.lr_scheduler,
        warmup_steps=decay // WARMUP_SHARE if warmup is None else warmup,
        decay_steps=decay,
        total_steps=total_steps,
    )


def peak_lr(train: Train, requested: float | None) -> float:
    """The requested learning rate or the default, scaled by images per update with ``scale_lr``."""
    lr = usual_lr(train) if requested is None else requested
    return lr * (train.batch_size * train.grad_accum) ** SCALE_LR_POWER if train.scale_lr else lr


def accumulation_groups(steps: int, size: int) -> list[range]:
    """The steps of one epoch, by the update that they share; the last group may be short."""
    return [range(start, min(start + size, steps)) for start in range(0, steps, size)]


# --- Choices by device ------------------------------------------------------------------------

Precision = Literal["fp32", "fp16", "bf16"]
Attention = Literal["sdpa", "xformers"]
ChosenOptimizer = request.Optimizer | Literal["adamw_fused"]


class Device(Struct, frozen=True, kw_only=True):
    """What this machine can do, each found out by one real try."""

    kind: Literal["cpu", "cuda"]
    name: str = "cpu"
    bf16: bool = False
    xformers: bool = False
    bitsandbytes: bool = False
    fused: bool = False
    unusable: tuple[str, ...] = ()
    """Libraries that are installed and cannot be used here, each with the reason, in words."""


class Choices(Struct, frozen=True, kw_only=True):
    """How a run computes; reported with the result."""

    precision: Precision
    optimizer: ChosenOptimizer
    attention: Attention


def choose(train: Train, device: Device) -> Choices:
    """The best that the device can do of what the request allows."""
    return Choices(
        precision=_precision(train, device),
        optimizer=_optimizer(train, device),
        attention="xformers" if device.xformers and not train.disable_xformers else "sdpa",
    )


def _precision(train: Train, device: Device) -> Precision:
    if device.kind == "cpu" or not train.amp:
        return "fp32"
    return "bf16" if device.bf16 else "fp16"


def _optimizer(train: Train, device: Device) -> ChosenOptimizer:
    chosen = chosen_optimizer(train, has_8bit=device.bitsandbytes)
    return "adamw_fused" if chosen == "adamw" and device.fused else chosen


def to_need_less_memory(train: Train) -> str | None:
    """Settings of the request to change after running out of memory; None: none is left.

    Half the batch with twice the accumulation trains alike; checkpointing costs time only.
    """
    changes = []
    if train.batch_size > 1:
        half = math.ceil(train.batch_size / 2)
        accumulate = math.ceil(train.grad_accum * train.batch_size / half)
        changes.append(f"batch_size {half} with grad_accum {accumulate}")
    if not train.gradient_checkpointing:
        changes.append("gradient_checkpointing true")
    if not changes:
        return None
    if (smaller := IN_8_BITS.get(chosen_optimizer(train))) is not None:
        changes.append(f"optimizer {smaller}" if train.optimizer else "useadam8bit true")
    if not train.amp:
        changes.append("amp true")
    if train.resolution > DEFAULT_RESOLUTION:
        changes.append(f"resolution {DEFAULT_RESOLUTION}")
    if train.lora_rank is None:
        changes.append(f"or {A_LORA}")
    return ", ".join(changes)
