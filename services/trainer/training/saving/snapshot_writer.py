"""Snapshots: the trained weights in fp16, from which an inferencer draws a row of samples.

A network of which a snapshot has no file is the base model's. Of a LoRA it is all there is.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from services.trainer.order import SNAPSHOTS, TrainingOrder
from services.trainer.training.callbacks import Callbacks
from services.trainer.training.saving import disk_space
from services.trainer.training.state import State, weights_to_save
from shared.diffusion.lora_file import lora_tensors
from shared.diffusion.weights import save_weights
from shared.disk import free_bytes
from shared.storage.manifest import LORA

MAX_WAITING = 2
"""Snapshots that may wait to be drawn; no other is written meanwhile."""
MAX_NAMED = 20
"""Skipped steps that the warning names: a record to the parent is bounded."""
SKIPPED = "no samples, because two earlier rows were not drawn yet, at steps: "
NO_ROOM = "no samples, because the disk had no room for them beside the trained model, at steps: "
NOTHING_TO_DRAW = "no samples could be drawn: there are neither prompts nor captions"


class SnapshotWriter:
    """Writes a snapshot at step 0, every ``sample_every`` steps, and on a ``sample`` command.

    While :data:`MAX_WAITING` wait to be drawn, or the disk is too full, one that is due is skipped,
    with a warning; a command waits. The parent empties a snapshot's folder once it is stored, and
    removes it once its row is drawn.
    """

    def __init__(self, state: State, order: TrainingOrder, callbacks: Callbacks) -> None:
        self._state = state
        self._train = order.train
        self._every = order.sample_every
        self._drawn = order.sampled
        self._callbacks = callbacks
        self._command = 0
        self._folder = Path(order.out) / SNAPSHOTS

    def due_step(self, steps: int) -> int | None:
        """The step to save a snapshot under, before the next ``steps``, which share one update.

        The weights stay the same until that update: a row that is due at any of these steps is
        taken now; of several, which would be equal, the first. None: nothing is due.
        """
        commanded = self._callbacks.command("sample") > self._command
        if self._every is None:
            if commanded and NOTHING_TO_DRAW not in self._state.warnings:
                self._state.warnings.append(NOTHING_TO_DRAW)
            return None
        done = self._state.position.steps
        due = -(-done // self._every) * self._every
        if due < done + steps and not self._is_known(due):
            if obstacle := self._obstacle():
                self._warn_of_skipped(obstacle, due)
                return None
            return due
        return done if commanded and not self._is_known(done) and not self._obstacle() else None

    def save(self, step: int) -> None:
        """Write a snapshot, which carries out every ``sample`` command so far.

        Before the first step it has no file.

        Raises:
            Refused: a loss is not a finite number: nothing is saved of a run that has diverged.
        """
        self._state.losses.recent()
        self._command = self._callbacks.command("sample")
        folder = self._folder / str(step)
        if self._is_base:
            folder.mkdir(parents=True)
        else:
            with weights_to_save(self._state):
                save_snapshot(self._state, folder)
        epoch = self._state.position.epoch
        self._callbacks.saved("snapshot", folder, step, epoch, command=self._command)

    @property
    def _is_base(self) -> bool:
        """Whether the networks are still the base model's, which an inferencer rounds as well."""
        return self._state.position.steps == 0 and not self._state.loras

    def _is_known(self, step: int) -> bool:
        """Whether this row was drawn in an earlier attempt, or its snapshot waits to be."""
        return step in self._drawn or (self._folder / str(step)).exists()

    def _obstacle(self) -> str | None:
        """Why no snapshot is written now, as the warning says it; None: one may be."""
        self._folder.mkdir(parents=True, exist_ok=True)
        if len(list(self._folder.iterdir())) >= MAX_WAITING:
            return SKIPPED
        snapshot = disk_space.snapshot_bytes(self._state)
        needed = snapshot + disk_space.last_bytes(self._state, self._train)
        return NO_ROOM if not self._is_base and free_bytes(self._folder) < needed else None

    def _warn_of_skipped(self, obstacle: str, step: int) -> None:
        """One warning names all steps skipped for a reason, each once, also after a resume."""
        warnings = self._state.warnings
        warning = next((each for each in warnings if each.startswith(obstacle)), None)
        if warning is None:
            warnings.append(f"{obstacle}{step}")
            return
        named = warning.removeprefix(obstacle).split(", ")
        if str(step) not in named and len(named) <= MAX_NAMED:
            addition = str(step) if len(named) < MAX_NAMED else "and more"
            warnings[warnings.index(warning)] = f"{warning}, {addition}"


def save_snapshot(state: State, folder: Path) -> None:
    """Write what is trained as it is now: whole networks, or the LoRA."""
    if not state.loras:
        save_weights(state.trained, folder)
        return
    folder.mkdir(parents=True)
    save_file(lora_tensors(state.loras, torch.float16), folder / LORA)
