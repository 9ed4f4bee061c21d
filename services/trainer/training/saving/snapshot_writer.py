"""Snapshots on the way, from which rows of samples are drawn elsewhere."""

from __future__ import annotations

from pathlib import Path

from services.trainer.order import SNAPSHOTS, TrainingOrder
from services.trainer.training.callbacks import Callbacks
from services.trainer.training.ema import ema_weights
from services.trainer.training.saving import disk_space
from services.trainer.training.state import State
from shared.diffusion.weights import save_weights
from shared.disk import require_room

MOST_STANDING = 2
"""Snapshots that may wait to be drawn; while so many do, no other is written."""
MOST_NAMED = 20
"""Skipped steps that the warning names: what a child says is bounded."""
SKIPPED = "no samples, because two earlier rows were not drawn yet, at steps: "
NOTHING_TO_DRAW = "no samples could be drawn: there are neither prompts nor captions"


class SnapshotWriter:
    """Writes a snapshot at step 0 and every ``sample_every`` steps, unless too many stand.

    And when the user wants one; that wish waits until there is room.
    """

    def __init__(self, state: State, order: TrainingOrder, callbacks: Callbacks) -> None:
        self._state = state
        self._every = order.sample_every
        self._sampled = order.sampled
        self._callbacks = callbacks
        self._done = 0
        self._folder = Path(order.out) / SNAPSHOTS

    def sample_in_time(self, steps: int) -> None:
        """Ask before so many steps that end in an update: until then the weights are the same.

        A row that is due within them is taken now, under its own step; of several the first, for
        they would be equal.
        """
        is_asked_for = self._callbacks.command("sample") > self._done
        if self._every is None:
            if is_asked_for and NOTHING_TO_DRAW not in self._state.warnings:
                self._state.warnings.append(NOTHING_TO_DRAW)
            return
        done = self._state.position.steps
        due = -(-done // self._every) * self._every
        if due < done + steps and not self._is_known(due):
            self._sample_or_skip(due)
        elif is_asked_for and not self._is_known(done) and self._has_room():
            self._sample(done)

    def _is_known(self, step: int) -> bool:
        """Whether an earlier attempt has drawn this row, or its snapshot still stands."""
        return step in self._sampled or (self._folder / str(step)).exists()

    def _has_room(self) -> bool:
        self._folder.mkdir(parents=True, exist_ok=True)
        return len(list(self._folder.iterdir())) < MOST_STANDING

    def _sample_or_skip(self, step: int) -> None:
        if self._has_room():
            self._sample(step)
        else:
            self._report_skipped(step)

    def _sample(self, step: int) -> None:
        """Write a snapshot, which grants every wish so far."""
        self._state.losses.recent()  # nothing is saved of a training that has diverged
        self._done = self._callbacks.command("sample")
        folder = self._folder / str(step)
        require_room(self._folder, disk_space.snapshot_bytes(self._state), "save a snapshot")
        with ema_weights(self._state.averages):
            save_weights(self._state.trained, folder)
        epoch = self._state.position.epoch
        self._callbacks.saved("snapshot", folder, step, epoch, command=self._done)

    def _report_skipped(self, step: int) -> None:
        """In one warning, however many there are; once each, also after a resume."""
        warnings = self._state.warnings
        told = next((each for each in warnings if each.startswith(SKIPPED)), None)
        if told is None:
            warnings.append(f"{SKIPPED}{step}")
            return
        named = told.removeprefix(SKIPPED).split(", ")
        if str(step) not in named and len(named) <= MOST_NAMED:
            addition = str(step) if len(named) < MOST_NAMED else "and more"
            warnings[warnings.index(told)] = f"{told}, {addition}"
