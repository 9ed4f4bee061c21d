"""When the training saves a checkpoint, and when a resume point."""

from __future__ import annotations

from services.trainer.order import SECONDS_PER_MINUTE, TrainingOrder
from services.trainer.training.callbacks import Clock
from services.trainer.training.state import Position
from shared.request import Train


class CheckpointSchedule:
    """Intervals by the clock, the ends of epochs, and the user's ``save`` commands."""

    def __init__(self, order: TrainingOrder, clock: Clock) -> None:
        self._train = order.train
        self._resume_every = order.resume_every
        self._clock = clock
        self._checkpoint_at = self._resume_point_at = clock()
        self._command = 0

    def checkpoint_is_due(self, position: Position, command: int) -> bool:
        """Whether to save a checkpoint now; if so, the next interval begins.

        ``command`` is the number of the newest ``save`` command.
        """
        now = self._clock()
        minutes = self._train.ckpt_every_n_minutes
        waited = minutes and now - self._checkpoint_at > minutes * SECONDS_PER_MINUTE
        if not (waited or command > self._command or ends_a_saved_epoch(position, self._train)):
            return False
        self._checkpoint_at, self._command = now, command
        return True

    def resume_point_is_due(self) -> bool:
        """Whether to save a resume point now; if so, the next interval begins."""
        now = self._clock()
        if now - self._resume_point_at <= self._resume_every:
            return False
        self._resume_point_at = now
        return True


def ends_a_saved_epoch(position: Position, train: Train) -> bool:
    """Whether ``save_every_n_epochs`` asks for a checkpoint here; the last one comes anyway."""
    every = train.save_every_n_epochs
    at_end = position.step_in_epoch == 0 and position.epoch < train.max_epochs
    return every is not None and at_end and position.epoch % every == 0
