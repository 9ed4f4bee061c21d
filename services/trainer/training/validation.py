"""The loss on held-out images, always at the same noise, timesteps and crops."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from services.trainer.order import Measured, TrainingOrder, Validated
from services.trainer.training.batches import BatchLoader
from services.trainer.training.callbacks import Callbacks
from services.trainer.training.latents import LatentCache
from services.trainer.training.loss import DiffusionLoss
from services.trainer.training.progress import ProgressReporter
from services.trainer.training.state import State, finite, weights_to_save
from shared.dataset.manifest import Picture
from shared.dataset.plan import Batch, EpochConfig, seed_of
from shared.dataset.validation import held_out_config, plan_held_out
from shared.diffusion.noise import seeded
from shared.request import Validation


class Validator:
    """Measures the weights that would be saved now, reports the loss, and notes it in the state."""

    def __init__(
        self,
        state: State,
        order: TrainingOrder,
        callbacks: Callbacks,
        objective: DiffusionLoss,
        *,
        latents: LatentCache,
        reporter: ProgressReporter,
        held_out: Sequence[Picture],
    ) -> None:
        self._state = state
        self._asked_for = order.train.validation is not None
        self._validation = order.train.validation or Validation()
        self._epochs = order.train.max_epochs
        self._callbacks = callbacks
        self._objective = objective
        self._reporter = reporter
        self._pictures = held_out
        own = EpochConfig.of(order.train, seed=order.seed)
        config = held_out_config(own, self._validation)
        self._batches = plan_held_out(held_out, config)
        self._loader = BatchLoader(Path(order.dataset), held_out, config, latents)

    @property
    def is_due(self) -> bool:
        """Before training, after every n epochs, and at the end; not twice at one step."""
        position = self._state.position
        between = position.step_in_epoch == 0 and (
            position.epoch % self._validation.every_n_epochs == 0 or position.epoch == self._epochs
        )
        return bool(self._pictures) and between and self._measured_here is None

    def loss_here(self) -> float | None:
        """The loss at this step, measured unless it is known; None: no image is held out.

        Raises:
            Refused: as :meth:`measure`.
        """
        if self._measured_here is None and self._asked_for:
            self.measure()
        return self._measured_here

    def measure(self) -> None:
        """Measure the mean squared error over all held-out images, at plain noise.

        Raises:
            Refused: a loss is not a finite number, or an image cannot be read.
        """
        position = self._state.position
        self._state.losses.recent()  # a diverged run is reported at the step where it diverged
        with torch.no_grad(), weights_to_save(self._state), _evaluating(self._state):
            errors = torch.cat([self._errors(batch) for batch in self._batches])
        loss = finite(position.steps, float(errors.mean()))
        self._state.measured.append(Measured(step=position.steps, epoch=position.epoch, loss=loss))
        self._reporter.report_validation(loss)
        self._callbacks.phase("training")

    @property
    def _measured_here(self) -> float | None:
        measured = self._state.measured
        is_here = measured and measured[-1].step == self._state.position.steps
        return measured[-1].loss if is_here else None

    def summary(self) -> Validated | None:
        """All measurements in short; None where no image is held out."""
        measured = self._state.measured
        if not measured:
            return None
        return Validated(
            images=len(self._pictures),
            before=measured[0],
            best=min(measured, key=lambda each: each.loss),
            last=measured[-1],
        )

    def _errors(self, batch: Batch) -> Tensor:
        self._callbacks.phase("measuring the validation loss")  # before each batch: it is slow
        generator = seeded(seed_of(self._validation.seed, batch.first, "validation"))
        make_inputs = partial(self._objective.plain_inputs, generator=generator)
        return self._objective.plain_errors(self._loader.load(batch, 0, make_inputs))


@contextmanager
def _evaluating(state: State) -> Iterator[None]:
    """Within the block the networks are in evaluation mode."""
    networks = (state.parts.unet, state.parts.text_encoder)
    before = [network.training for network in networks]
    for network in networks:
        network.eval()
    try:
        yield
    finally:
        for network, training in zip(networks, before, strict=True):
            network.train(training)
