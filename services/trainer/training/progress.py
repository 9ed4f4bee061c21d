"""Progress reports: live for ``/status``, and recorded as metrics."""

from __future__ import annotations

from typing import Any

from services.trainer.order import TrainingOrder
from services.trainer.training.callbacks import Callbacks, Clock
from services.trainer.training.recipe import Recipe
from services.trainer.training.saving.metrics import Metrics
from services.trainer.training.state import State

PROGRESS_SECONDS = 0.5
"""The least time between two reports: reading the loss waits for the device."""
RECORDED = ("step", "epoch", "loss", "lr", "text_encoder_lr", "images_per_second")
"""What of a report goes into the metrics; the rest is live only."""


class ProgressReporter:
    """Reports progress at most every :data:`PROGRESS_SECONDS`, and the last step always."""

    def __init__(
        self,
        state: State,
        recipe: Recipe,
        order: TrainingOrder,
        callbacks: Callbacks,
        *,
        metrics: Metrics,
        clock: Clock,
    ) -> None:
        self._state = state
        self._recipe = recipe
        self._order = order
        self._callbacks = callbacks
        self._metrics = metrics
        self._clock = clock
        self._reported_at: float | None = None
        self._reported_step = state.position.steps
        self._began_at, self._first_step = clock(), state.position.steps

    def report_step(self, steps_since_update: int) -> None:
        """Report the step that was just done, if the last report is old enough."""
        now = self._clock()
        step = self._state.position.steps + steps_since_update
        is_last = step == self._recipe.total_steps
        if self._reported_at is None or is_last or now - self._reported_at >= PROGRESS_SECONDS:
            self._report(step, now)

    def report_last_step(self) -> None:
        """Report the last step that was done, unless it has been."""
        if self._state.position.steps > self._reported_step:
            self._report(self._state.position.steps, self._clock())

    def _report(self, step: int, now: float) -> None:
        self._reported_at, self._reported_step = now, step
        numbers = self._numbers(step, now)
        self._callbacks.progress(numbers)
        self._metrics.add(**{name: numbers[name] for name in RECORDED if name in numbers})

    def report_validation(self, loss: float) -> None:
        """Report the loss on held-out images."""
        position = self._state.position
        self._callbacks.progress(
            {"step": position.steps, "epoch": position.epoch, "validation_loss": loss}
        )
        self._metrics.add(step=position.steps, epoch=position.epoch, validation_loss=loss)

    def _numbers(self, step: int, now: float) -> dict[str, Any]:
        steps_per_second = (step - self._first_step) / max(now - self._began_at, 1e-9)
        lrs = self._recipe.lrs_at(step - 1)
        own = {"text_encoder_lr": lrs["text_encoder"]} if self._recipe.text_encoder_lr else {}
        return {
            "step": step,
            "steps": self._recipe.total_steps,
            "epoch": self._state.position.epoch,
            "epochs": self._order.train.max_epochs,
            "loss": self._state.losses.mean(),
            "lr": lrs["unet"],
            **own,
            "images_per_second": round(steps_per_second * self._order.train.batch_size, 3),
            "eta_seconds": round((self._recipe.total_steps - step) / steps_per_second),
        }
