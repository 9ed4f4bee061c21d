"""Whether a training fits into what its card has free, found out before it begins."""

from __future__ import annotations

import time

import torch

from services.trainer.training.callbacks import Callbacks
from shared.dataset.card_memory import CONTEXT, in_gib, shortage, training_memory
from shared.diffusion.device import device_name
from shared.diffusion.loading import Parts
from shared.diffusion.memory import CardMemory, card_memory, held_by_others
from shared.errors import Interrupted, Passing
from shared.request import Train

WAIT_SECONDS = 60
"""An inferencer on the same card gives back what drawing took, once its order is done."""
ASK_EVERY_SECONDS = 2


def find_room(
    parts: Parts,
    train: Train,
    device: torch.device,
    callbacks: Callbacks,
    *,
    has_8bit: bool,
) -> list[str]:
    """Wait a while for room on the card, if others have it; returns a warning if it stays away.

    ``parts`` are not on the card yet; ``has_8bit`` as in :func:`.training_memory`.

    Raises:
        Passing: the card is too small for the weights and what each of them needs.
        Interrupted: ``callbacks`` asked to stop.
    """
    memory, parameters = card_memory(device), parts.parameters
    needed = training_memory(train, parameters, has_8bit=has_8bit)
    if memory is None or needed is None:
        return []
    name = device_name(device)
    if needed.lasting > memory.total:
        has = f"{name} has {in_gib(memory.total)}"
        raise Passing(f"{shortage(train, parameters, memory.total, has, has_8bit=has_8bit)}")
    if needed.total > _room(memory) and needed.total <= memory.total:
        memory = _wait_for(needed.total, memory, device, callbacks)
    has = f"{in_gib(_room(memory))} of {name} are free{held_by_others()}"
    lack = shortage(train, parameters, _room(memory), has, has_8bit=has_8bit)
    return [lack] if lack else []


def _room(memory: CardMemory) -> int:
    """For a training of this process, whose CUDA context is there already."""
    return memory.available + CONTEXT


def _wait_for(
    needed: int,
    memory: CardMemory,
    device: torch.device,
    callbacks: Callbacks,
) -> CardMemory:
    """What there is once there is enough, or at the end."""
    callbacks.phase("waiting for memory of the card, which other processes have")
    for _ in range(WAIT_SECONDS // ASK_EVERY_SECONDS):
        time.sleep(ASK_EVERY_SECONDS)
        if callbacks.should_stop():
            raise Interrupted("stopped while waiting for memory of the card")
        memory = card_memory(device) or memory
        if needed <= _room(memory):
            break
    callbacks.phase("loading the base model")
    return memory
