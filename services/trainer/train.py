"""Fine-tune Stable Diffusion: the whole run, from the base model to the last checkpoint.

A *step* is one batch forward and backward, an *update* one step of the optimizers. Every random
draw is a function of (seed, epoch, position), so a resumed run equals an uninterrupted one; on a
CPU, bit for bit.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from msgspec.structs import replace

from services.trainer import disk, resume
from services.trainer.average import averaged
from services.trainer.batches import Latents, Reader
from services.trainer.checkpoint import save_checkpoint, save_last
from services.trainer.device import probe, this_device
from services.trainer.objective import Objective
from services.trainer.optimizer import set_lr
from services.trainer.order import SECONDS_PER_MINUTE, Outcome, TrainingOrder
from services.trainer.recipe import Choices, Recipe, accumulation_groups, choose, recipe_for
from services.trainer.records import Records
from services.trainer.samples import Sampler
from services.trainer.state import Position, State, prepare
from services.trainer.validation import Validator
from shared.dataset.manifest import Manifest
from shared.dataset.plan import Batch, Course, plan_epoch, steps_per_epoch, total_steps
from shared.dataset.validation import split
from shared.diffusion.loading import Parts, load
from shared.diffusion.noise import with_zero_terminal_snr
from shared.errors import Interrupted
from shared.request import Train

PROGRESS_SECONDS = 0.5
"""The least time between two reports: reading the loss waits for the device."""
RECORDED = ("step", "epoch", "loss", "lr", "text_encoder_lr", "images_per_second")
"""What of a report goes into the metrics; the rest is for those who wait."""

Clock = Callable[[], float]


class Listener(Protocol):
    """Who is told how training goes, and may ask for an early end."""

    def phase(self, name: str) -> None:
        """Something slow begins."""

    def progress(self, numbers: dict[str, Any]) -> None:
        """step, steps, epoch, epochs, loss, lr, images_per_second, eta_seconds.

        Or, of a validation: step, epoch, validation_loss.
        """

    def saved(
        self, kind: str, path: Path, step: int, epoch: int, validation_loss: float | None = None
    ) -> None:
        """A ``checkpoint`` file, ``resume_point`` or ``snapshot`` folder is complete on disk."""

    def should_stop(self) -> bool:
        """Whether to save a resume point and end; asked before every step."""


def train(order: TrainingOrder, listener: Listener, *, clock: Clock = time.monotonic) -> Outcome:
    """Carry out an order.

    Raises:
        Refused: the base model, an image or the loss is not fit to train with; says which.
        Passing: the resume point cannot be read, or the disk has no room for what is to be saved.
        Interrupted: the listener asked to stop; what was done is in a resume point, said before.
    """
    request = order.train
    device = this_device()
    choices = choose(request, probe(device))

    listener.phase("reading the dataset")
    parted = split(Manifest.read(Path(order.dataset)).pictures, request.validation)
    pictures = parted.training
    course = course_of(order)
    recipe = recipe_for(
        request,
        steps_per_epoch=steps_per_epoch(pictures, course),
        total_steps=total_steps(pictures, course),
    )

    listener.phase("loading the base model")
    state = prepare(base_model(order), request, choices, device)
    if order.resume:
        resume.load(state, Path(order.resume))
    else:  # a base model that is an earlier job's brings its optimizers along
        resume.restore_optimizers(state, Path(order.base))

    latents = Latents(state.parts.vae)
    reader = Reader(Path(order.dataset), pictures, course, latents)
    objective = Objective(state, order, choices, latents)
    records = Records(Path(order.out), resumed=Path(order.resume) if order.resume else None)
    teller = Teller(state, recipe, order, listener, records=records, clock=clock)
    validator = Validator(state, order, objective, parted.held_out)
    keeper = Keeper(
        state, order, listener, records=records, teller=teller, validator=validator, clock=clock
    )
    sampler = Sampler(state, order, listener.saved)

    listener.phase("training")
    keeper.validate_when_due()
    for epoch in range(state.position.epoch, request.max_epochs):
        batches = plan_epoch(pictures, course, epoch)
        done = state.position.step_in_epoch  # 0, except in the epoch that is resumed
        loaded = reader.read(batches[done:], epoch)

        for group in accumulation_groups(len(batches), request.grad_accum):
            if group.start < done:
                continue
            sampler.sample_in_time(len(group))
            losses = []
            for batch in islice(loaded, len(group)):
                if listener.should_stop():
                    keeper.keep_and_stop()  # the group's gradients are lost, not its weights
                loss = objective.loss(batch, epoch)
                state.scaler.scale(loss / len(group)).backward()  # type: ignore[no-untyped-call]
                losses.append(loss.detach())
                teller.tell(len(losses))
            last_step = state.position.steps + len(group) - 1
            update(state, lrs=recipe.lrs_at(last_step), clip=request.clip_grad_norm)
            state.losses.add(losses, first_step=state.position.steps + 1)
            state.position = after(state.position, batches, group)
            keeper.validate_when_due()
            keeper.keep_in_time()

    return finish(state, order, choices, listener, records=records, validator=validator)


def base_model(order: TrainingOrder) -> Parts:
    """The base model, with the noise schedule that the request asks for."""
    parts = load(Path(order.base))
    if not order.train.enable_zero_terminal_snr:
        return parts
    config = with_zero_terminal_snr(parts.scheduler_config)
    return dataclasses.replace(parts, scheduler_config=config)


def course_of(order: TrainingOrder) -> Course:
    """What the request asks of its epochs, for the plan."""
    return Course.of(order.train, seed=order.seed)


def update(state: State, *, lrs: dict[str, float], clip: float | None) -> None:
    """One step of the optimizers: unscale, clip each network by itself, step, forget gradients.

    ``lrs`` are the learning rates by network. The averages of the weights follow.
    """
    for name, optimizer in state.optimizers.items():
        set_lr(optimizer, lrs[name])
        state.scaler.unscale_(optimizer)
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(state.trained[name].parameters(), clip)
        state.scaler.step(optimizer)
        optimizer.zero_grad(set_to_none=True)
    state.scaler.update()
    for average in state.averages.values():
        average.follow()


def after(position: Position, batches: list[Batch], group: range) -> Position:
    """The position once a group of an epoch's batches is done."""
    done = replace(
        position,
        step_in_epoch=group.stop,
        steps=position.steps + len(group),
        updates=position.updates + 1,
        images=position.images + sum(batches[step].real for step in group),
    )
    is_last = group.stop == len(batches)
    return replace(done, epoch=position.epoch + 1, step_in_epoch=0) if is_last else done


def finish(
    state: State,
    order: TrainingOrder,
    choices: Choices,
    listener: Listener,
    *,
    records: Records,
    validator: Validator,
) -> Outcome:
    """Write the trained model and sum the run up."""
    loss = state.losses.mean()  # and so make sure that it is a number
    listener.phase("saving the trained model")
    disk.require_room(Path(order.out), disk.last_bytes(state, order.train), "the trained model")
    with averaged(state.averages):
        checkpoint, model = save_last(state, order)
    return Outcome(
        checkpoint=str(checkpoint),
        model=str(model),
        metrics=str(records.metrics),
        tensorboard=str(records.draw_board(order.job)),
        seed=order.seed,
        steps=state.position.steps,
        updates=state.position.updates,
        epochs=state.position.epoch,
        images=state.position.images,
        loss=loss,
        validation=validator.summary(),
        precision=choices.precision,
        optimizer=choices.optimizer,
        attention=choices.attention,
        warnings=state.warnings,
    )


class Keeper:
    """Saves checkpoints and resume points, and validates, when their time has come."""

    def __init__(
        self,
        state: State,
        order: TrainingOrder,
        listener: Listener,
        *,
        records: Records,
        teller: Teller,
        validator: Validator,
        clock: Clock,
    ) -> None:
        self._state = state
        self._order = order
        self._listener = listener
        self._records = records
        self._teller = teller
        self._validator = validator
        self._clock = clock
        self._checkpoint_at = self._resume_point_at = clock()
        self._kept = state.position

    def keep_in_time(self) -> None:
        """Save what is due; an interval runs from the moment at which the last save began."""
        now = self._clock()
        minutes = self._order.train.ckpt_every_n_minutes
        waited = minutes and now - self._checkpoint_at > minutes * SECONDS_PER_MINUTE
        if waited or ends_a_saved_epoch(self._state.position, self._order.train):
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

    def _checkpoint(self) -> None:
        self._state.losses.recent()  # nothing is saved of a training that has diverged
        loss = self._validation_loss()
        self._listener.phase("saving a checkpoint")
        needed = disk.checkpoint_bytes(self._state, self._order.train)
        disk.require_room(Path(self._order.out), needed, "a checkpoint")
        with averaged(self._state.averages):
            path = save_checkpoint(self._state, self._order)
        self._say("checkpoint", path, loss)

    def _validation_loss(self) -> float | None:
        """Of the weights as they are, so that checkpoints can be compared."""
        if self._validator.here is None and self._order.train.validation:
            self._validate()
        return self._validator.here

    def _validate(self) -> None:
        heard = partial(self._listener.phase, "measuring the validation loss")
        self._teller.tell_validation(self._validator.measure(heard))
        self._listener.phase("training")

    def _resume_point(self) -> None:
        self._state.losses.recent()
        self._listener.phase("saving a resume point")
        folder = Path(self._order.out) / "resume" / str(self._state.position.steps)
        disk.require_room(folder.parent, disk.resume_point_bytes(self._state), "a resume point")
        resume.save(self._state, folder, self._records)
        self._kept = self._state.position
        self._say("resume_point", folder)

    def _say(self, kind: str, path: Path, validation_loss: float | None = None) -> None:
        position = self._state.position
        self._listener.saved(kind, path, position.steps, position.epoch, validation_loss)
        self._listener.phase("training")


def ends_a_saved_epoch(position: Position, train: Train) -> bool:
    """Whether ``save_every_n_epochs`` asks for a checkpoint here; the last one comes anyway."""
    every = train.save_every_n_epochs
    at_end = position.step_in_epoch == 0 and position.epoch < train.max_epochs
    return every is not None and at_end and position.epoch % every == 0


class Teller:
    """Reports progress, not too often."""

    def __init__(
        self,
        state: State,
        recipe: Recipe,
        order: TrainingOrder,
        listener: Listener,
        *,
        records: Records,
        clock: Clock,
    ) -> None:
        self._state = state
        self._recipe = recipe
        self._order = order
        self._listener = listener
        self._records = records
        self._clock = clock
        self._told_at: float | None = None
        self._began_at, self._began = clock(), state.position.steps

    def tell(self, steps_since_update: int) -> None:
        """Report the step that was just done, if the last report is old enough."""
        now = self._clock()
        step = self._state.position.steps + steps_since_update
        is_last = step == self._recipe.total_steps
        if self._told_at is None or is_last or now - self._told_at >= PROGRESS_SECONDS:
            self._told_at = now
            numbers = self._numbers(step, now)
            self._listener.progress(numbers)
            self._records.add(**{name: numbers[name] for name in RECORDED if name in numbers})

    def tell_validation(self, loss: float) -> None:
        """Report what was measured on the images held out."""
        position = self._state.position
        self._listener.progress(
            {"step": position.steps, "epoch": position.epoch, "validation_loss": loss}
        )
        self._records.add(step=position.steps, epoch=position.epoch, validation_loss=loss)

    def _numbers(self, step: int, now: float) -> dict[str, Any]:
        steps_per_second = (step - self._began) / max(now - self._began_at, 1e-9)
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
