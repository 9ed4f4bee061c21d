"""When the training saves and validates."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from services.trainer.order import SECONDS_PER_MINUTE, TrainingOrder
from services.trainer.training.callbacks import Callbacks, Clock
from services.trainer.training.ema import ema_weights
from services.trainer.training.progress import ProgressReporter
from services.trainer.training.saving import disk_space, resume
from services.trainer.training.saving.checkpoint import save_checkpoint
from services.trainer.training.saving.metrics import Metrics
from services.trainer.training.state import Position, State
from services.trainer.training.validation import Validator
from shared.disk import require_room
from shared.errors import Interrupted
from shared.request import Train


class CheckpointSchedule:
    """Saves checkpoints and resume points, and validates, when their time has come."""

    def __init__(
        self,
        state: State,
        order: TrainingOrder,
        callbacks: Callbacks,
        *,
        records: Metrics,
        reporter: ProgressReporter,
        validator: Validator,
        clock: Clock,
    ) -> None:
        self._state = state
        self._order = order
        self._callbacks = callbacks
        self._records = records
        self._reporter = reporter
        self._validator = validator
        self._clock = clock
        self._checkpoint_at = self._resume_point_at = clock()
        self._kept = state.position
        self._done = 0

    def keep_in_time(self) -> None:
        """Save what is due or wished for; an interval begins when the last save did."""
        now = self._clock()
        minutes = self._order.train.ckpt_every_n_minutes
        waited = minutes and now - self._checkpoint_at > minutes * SECONDS_PER_MINUTE
        command = self._callbacks.command("save") > self._done
        if waited or command or ends_a_saved_epoch(self._state.position, self._order.train):
            self._checkpoint_at = now
            self._checkpoint()
        if now - self._resume_point_at > self._order.resume_every:
            self._resume_point_at = now
            self._resume_point()

    def validate_when_due(self) -> None:
        """Measure the loss on the images held out, if there are any and it is their turn."""
        if self._validator.is_due:
            self._validate()

    def keep_and_stop(self) -> None:
        """Save a resume point, unless nothing was done since the last one, and end the run.

        Raises:
            Interrupted: always.
        """
        if self._state.position != self._kept:
            self._resume_point()
        raise Interrupted(f"stopped after step {self._state.position.steps}")

    def end_early(self) -> None:
        """Tell and measure what the last step would, and warn that it was not reached."""
        self._reporter.tell_end()
        self._validation_loss()
        reached = f"{self._state.position.steps} of {self._reporter.steps}"
        self._state.warnings.append(f"stopped on request after step {reached}")

    def _checkpoint(self) -> None:
        self._state.losses.recent()  # nothing is saved of a training that has diverged
        self._done = self._callbacks.command("save")
        loss = self._validation_loss()
        self._callbacks.phase("saving a checkpoint")
        needed = disk_space.checkpoint_bytes(self._state, self._order.train)
        require_room(Path(self._order.out), needed, "save a checkpoint")
        with ema_weights(self._state.averages):
            path = save_checkpoint(self._state, self._order)
        self._say("checkpoint", path, loss, command=self._done)

    def _validation_loss(self) -> float | None:
        """Of the weights as they are, so that checkpoints can be compared."""
        if self._validator.here is None and self._order.train.validation:
            self._validate()
        return self._validator.here

    def _validate(self) -> None:
        keepalive = partial(self._callbacks.phase, "measuring the validation loss")
        self._reporter.tell_validation(self._validator.measure(keepalive))
        self._callbacks.phase("training")

    def _resume_point(self) -> None:
        self._state.losses.recent()
        self._callbacks.phase("saving a resume point")
        folder = Path(self._order.out) / "resume" / str(self._state.position.steps)
        require_room(
            folder.parent, disk_space.resume_point_bytes(self._state), "save a resume point"
        )
        resume.save(self._state, folder, self._records)
        self._kept = self._state.position
        self._say("resume_point", folder)

    def _say(
        self, kind: str, path: Path, validation_loss: float | None = None, *, command: int = 0
    ) -> None:
        position = self._state.position
        self._callbacks.saved(
            kind, path, position.steps, position.epoch, validation_loss, command=command
        )
        self._callbacks.phase("training")


def ends_a_saved_epoch(position: Position, train: Train) -> bool:
    """Whether ``save_every_n_epochs`` asks for a checkpoint here; the last one comes anyway."""
    every = train.save_every_n_epochs
    at_end = position.step_in_epoch == 0 and position.epoch < train.max_epochs
    return every is not None and at_end and position.epoch % every == 0
