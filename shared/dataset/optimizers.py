"""What the optimizers that a request may name learn at, and what they keep for each weight.

Adam's rate is the endpoint's default, and for a LoRA that of other trainers. Lion's is a fifth:
Chen et al. 2023 advise three to ten times less than Adam's, with as much more weight decay. Prodigy
(Mishchenko and Defazio 2023) finds the rate itself and multiplies it by ``lr``. Adafactor (Shazeer
and Stern 2018) takes ``lr`` as a share of a tensor's own size: these give steps like AdamW's where
the weights are about 0.02. The schedule-free AdamW (Defazio et al. 2024) takes Adam's.
"""

from __future__ import annotations

from typing import NamedTuple

from shared.request import Optimizer, Train


class Habits(NamedTuple):
    """What is usual with an optimizer."""

    lr: float
    lora_lr: float
    state_bytes: float
    """For each weight that is trained."""


ADAM = Habits(2e-6, 1e-4, 8.0)
HABITS: dict[Optimizer, Habits] = {
    "adamw": ADAM,
    # In 8 bits with two scales in fp32 for each 256 weights; Lion has one moment.
    "adamw8bit": ADAM._replace(state_bytes=2.03125),
    "lion": Habits(4e-7, 2e-5, 4.0),
    "lion8bit": Habits(4e-7, 2e-5, 1.015625),
    "prodigy": Habits(1.0, 1.0, 16.0),
    "adafactor": Habits(1e-4, 5e-3, 0.125),
    "schedule_free": ADAM,
}
IN_32_BITS: dict[Optimizer, Optimizer] = {"adamw8bit": "adamw", "lion8bit": "lion"}
"""What takes their place where bitsandbytes does not work."""
IN_8_BITS: dict[Optimizer, Optimizer] = {whole: small for small, whole in IN_32_BITS.items()}
"""What trains alike with less memory."""
FAR = 30.0
"""A rate that is so many times higher or lower than the usual one is most likely meant for another
optimizer."""


def chosen_optimizer(train: Train, *, has_8bit: bool = True) -> Optimizer:
    """The one that a request trains with on a machine that has 8-bit optimizers, or has not."""
    named: Optimizer = train.optimizer or ("adamw8bit" if train.useadam8bit else "adamw")
    return named if has_8bit else IN_32_BITS.get(named, named)


def usual_lr(train: Train) -> float:
    """The peak learning rate where the request names none."""
    habits = HABITS[chosen_optimizer(train)]
    return habits.lr if train.lora_rank is None else habits.lora_lr


def state_bytes(train: Train, *, has_8bit: bool = True) -> float:
    """What the optimizer keeps for each weight that is trained."""
    return HABITS[chosen_optimizer(train, has_8bit=has_8bit)].state_bytes
