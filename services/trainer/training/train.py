"""Fine-tune Stable Diffusion: the whole run, from the base model to the last checkpoint.

A *step* is one batch forward and backward, an *update* one step of the optimizers. Every random
draw is a function of (seed, epoch, position), so a resumed run equals an uninterrupted one; on a
CPU, bit for bit. What the user wants of a run at work is looked at between updates, so a run that
is stopped early ends with the weights that the whole one had at that step.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from msgspec.structs import replace

from services.trainer.order import Outcome, TrainingOrder
from services.trainer.training.batches import LatentCache, PrefetchLoader
from services.trainer.training.callbacks import Callbacks, Clock
from services.trainer.training.checkpoint_schedule import CheckpointSchedule
from services.trainer.training.device import probe, this_device
from services.trainer.training.ema import ema_weights
from services.trainer.training.loss import DiffusionLoss
from services.trainer.training.optimizer import set_lr
from services.trainer.training.progress import ProgressReporter
from services.trainer.training.recipe import (
    Choices,
    Recipe,
    accumulation_groups,
    choose,
    recipe_for,
)
from services.trainer.training.saving import disk_space, resume
from services.trainer.training.saving.checkpoint import save_last
from services.trainer.training.saving.metrics import Metrics
from services.trainer.training.saving.snapshot_writer import SnapshotWriter
from services.trainer.training.state import Position, State, prepare
from services.trainer.training.validation import Validator
from shared.dataset.manifest import Manifest, Picture
from shared.dataset.plan import Batch, EpochConfig, plan_epoch, steps_per_epoch, total_steps
from shared.dataset.validation import split
from shared.diffusion.loading import Parts, load
from shared.diffusion.noise import with_zero_terminal_snr
from shared.disk import require_room


@dataclass(frozen=True)
class Run:
    """One training: what it goes through, and who has a part in it."""

    order: TrainingOrder
    choices: Choices
    state: State
    pictures: Sequence[Picture]
    """Those that are trained on."""
    epoch_config: EpochConfig
    recipe: Recipe
    loader: PrefetchLoader
    objective: DiffusionLoss
    records: Metrics
    validator: Validator
    reporter: ProgressReporter
    keeper: CheckpointSchedule
    snapshot_writer: SnapshotWriter


def train(order: TrainingOrder, callbacks: Callbacks, *, clock: Clock = time.monotonic) -> Outcome:
    """Carry out an order.

    Raises:
        Refused: the base model, an image or the loss is not fit to train with; says which.
        Passing: the resume point cannot be read, or the disk has no room for what is to be saved.
        Interrupted: the listener asked to stop; what was done is in a resume point, said before.
    """
    run = set_up(order, callbacks, clock)
    request, state = order.train, run.state

    callbacks.phase("training")
    run.keeper.validate_when_due()
    for epoch in range(state.position.epoch, request.max_epochs):
        batches = plan_epoch(run.pictures, run.epoch_config, epoch)
        done = state.position.step_in_epoch  # 0, except in the epoch that is resumed
        loaded = run.loader.read(batches[done:], epoch)

        for group in accumulation_groups(len(batches), request.grad_accum):
            if group.start < done:
                continue
            if callbacks.command("stop"):
                run.keeper.end_early()
                return finish(run, callbacks)
            run.snapshot_writer.sample_in_time(len(group))
            losses = []
            for batch in islice(loaded, len(group)):
                if callbacks.should_stop():
                    run.keeper.keep_and_stop()  # the group's gradients are lost, not its weights
                loss = run.objective.loss(batch, epoch)
                state.scaler.scale(loss / len(group)).backward()  # type: ignore[no-untyped-call]
                losses.append(loss.detach())
                run.reporter.tell(len(losses))
            last_step = state.position.steps + len(group) - 1
            update(state, lrs=run.recipe.lrs_at(last_step), clip=request.clip_grad_norm)
            state.losses.add(losses, first_step=state.position.steps + 1)
            state.position = after(state.position, batches, group)
            run.keeper.validate_when_due()
            run.keeper.keep_in_time()

    return finish(run, callbacks)


def set_up(order: TrainingOrder, callbacks: Callbacks, clock: Clock) -> Run:
    """Read what the order names, and stand where it begins or goes on."""
    device = this_device()
    choices = choose(order.train, probe(device))

    callbacks.phase("reading the dataset")
    parted = split(Manifest.read(Path(order.dataset)).pictures, order.train.validation)
    epoch_config = EpochConfig.of(order.train, seed=order.seed)
    recipe = recipe_for(
        order.train,
        steps_per_epoch=steps_per_epoch(parted.training, epoch_config),
        total_steps=total_steps(parted.training, epoch_config),
    )

    callbacks.phase("loading the base model")
    state = begin_or_resume(order, prepare(base_model(order), order.train, choices, device))

    latents = LatentCache(state.parts.vae)
    objective = DiffusionLoss(state, order, choices, latents)
    records = Metrics(Path(order.out), resumed=Path(order.resume) if order.resume else None)
    validator = Validator(state, order, objective, parted.held_out)
    reporter = ProgressReporter(state, recipe, order, callbacks, records=records, clock=clock)
    keeper = CheckpointSchedule(
        state,
        order,
        callbacks,
        records=records,
        reporter=reporter,
        validator=validator,
        clock=clock,
    )
    return Run(
        order=order,
        choices=choices,
        state=state,
        pictures=parted.training,
        epoch_config=epoch_config,
        recipe=recipe,
        loader=PrefetchLoader(Path(order.dataset), parted.training, epoch_config, latents),
        objective=objective,
        records=records,
        validator=validator,
        reporter=reporter,
        keeper=keeper,
        snapshot_writer=SnapshotWriter(state, order, callbacks),
    )


def begin_or_resume(order: TrainingOrder, state: State) -> State:
    """The state at the resume point; without one, at the beginning.

    A base model that is an earlier job's brings its optimizers along.
    """
    if order.resume:
        resume.load(state, Path(order.resume))
    else:
        resume.restore_optimizers(state, Path(order.base))
    return state


def base_model(order: TrainingOrder) -> Parts:
    """The base model, with the noise schedule that the request asks for."""
    parts = load(Path(order.base))
    if not order.train.enable_zero_terminal_snr:
        return parts
    config = with_zero_terminal_snr(parts.scheduler_config)
    return dataclasses.replace(parts, scheduler_config=config)


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


def finish(run: Run, callbacks: Callbacks) -> Outcome:
    """Write the trained model and sum the run up."""
    order, state = run.order, run.state
    loss = state.losses.mean()  # and so make sure that it is a number
    callbacks.phase("saving the trained model")
    require_room(
        Path(order.out), disk_space.last_bytes(state, order.train), "save the trained model"
    )
    with ema_weights(state.averages):
        checkpoint, model = save_last(state, order)
    return Outcome(
        checkpoint=str(checkpoint),
        model=str(model),
        metrics=str(run.records.metrics),
        tensorboard=str(run.records.draw_board(order.job)),
        seed=order.seed,
        steps=state.position.steps,
        updates=state.position.updates,
        epochs=state.position.epoch,
        images=state.position.images,
        loss=loss,
        validation=run.validator.summary(),
        precision=run.choices.precision,
        optimizer=run.choices.optimizer,
        attention=run.choices.attention,
        warnings=state.warnings,
    )
