"""Fine-tune Stable Diffusion: the whole run, from the base model to the last checkpoint.

A *step* is one batch forward and backward, an *update* one step of the optimizers. All randomness
is a function of (seed, epoch, position), so a resumed run equals an uninterrupted one; on a CPU,
bit for bit. Commands are looked at between updates, so a run that the user stops early ends with
the weights that the whole run had at that step.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from msgspec.structs import replace

from services.trainer.order import Outcome, TrainingOrder
from services.trainer.training.batches import BatchLoader
from services.trainer.training.callbacks import Callbacks, Clock
from services.trainer.training.device import probe
from services.trainer.training.latents import LatentCache
from services.trainer.training.loss import DiffusionLoss
from services.trainer.training.optimizer import set_lr, stepped
from services.trainer.training.progress import ProgressReporter
from services.trainer.training.recipe import (
    Choices,
    Recipe,
    accumulation_groups,
    choose,
    recipe_for,
)
from services.trainer.training.room import find_room
from services.trainer.training.saving import resume
from services.trainer.training.saving.checkpoint import save_checkpoint, save_trained_model
from services.trainer.training.saving.checkpoint_schedule import CheckpointSchedule
from services.trainer.training.saving.metrics import Metrics
from services.trainer.training.saving.resume import save_resume_point
from services.trainer.training.saving.snapshot_writer import SnapshotWriter
from services.trainer.training.state import Position, State, prepare, trained_networks
from services.trainer.training.validation import Validator
from shared.dataset.manifest import Manifest, Picture
from shared.dataset.plan import (
    Batch,
    EpochConfig,
    plan_epoch,
    seed_of,
    steps_per_epoch,
    total_steps,
)
from shared.dataset.validation import split
from shared.diffusion.device import this_device
from shared.diffusion.loading import Parts, load
from shared.diffusion.lora import Lora, fresh_lora
from shared.diffusion.lora_file import attach
from shared.diffusion.noise import seeded, with_zero_terminal_snr
from shared.errors import Interrupted
from shared.storage.manifest import LORA


@dataclass(frozen=True)
class Run:
    """A run's components."""

    choices: Choices
    state: State
    pictures: Sequence[Picture]
    """Those that are trained on."""
    epoch_config: EpochConfig
    recipe: Recipe
    loader: BatchLoader
    objective: DiffusionLoss
    metrics: Metrics
    reporter: ProgressReporter
    validator: Validator
    snapshots: SnapshotWriter
    schedule: CheckpointSchedule


def train(  # noqa: C901 - the loop is read in one piece
    order: TrainingOrder, callbacks: Callbacks, *, clock: Clock = time.monotonic
) -> Outcome:
    """Carry out an order.

    Raises:
        Refused: the base model, an image or the loss cannot be trained with; says which.
        Passing: the resume point cannot be read, or the disk has no room for what is to be saved.
        Interrupted: ``callbacks`` asked to stop; a resume point holds what was done.
    """
    run = set_up(order, callbacks, clock)
    request, state = order.train, run.state
    resumable = state.position  # a run that begins at 0 needs no resume point for it

    callbacks.phase("training")
    if run.validator.is_due:
        run.validator.measure()

    for epoch in range(state.position.epoch, request.max_epochs):
        batches = plan_epoch(run.pictures, run.epoch_config, epoch)
        done = state.position.step_in_epoch  # 0, except in the epoch that is resumed
        make_inputs = partial(run.objective.inputs, epoch=epoch)
        loaded = run.loader.ahead(batches[done:], epoch, make_inputs)

        for group in accumulation_groups(len(batches), request.grad_accum):
            if group.start < done:
                continue
            if callbacks.command("stop"):
                return finish_early(run, order, callbacks)
            if (step := run.snapshots.due_step(len(group))) is not None:
                run.snapshots.save(step)

            # One update: the gradients of a group of batches.
            losses = []
            for batch in islice(loaded, len(group)):
                if callbacks.should_stop():  # this group's gradients are lost, no weights are
                    if state.position != resumable:
                        save_resume_point(state, order, callbacks, run.metrics)
                    raise Interrupted(f"stopped after step {state.position.steps}")
                loss = run.objective.loss(batch)
                state.scaler.scale(loss / len(group)).backward()  # type: ignore[no-untyped-call]
                losses.append(loss.detach())
                run.reporter.report_step(len(losses))
            last_step = state.position.steps + len(group) - 1
            complete = update(state, lrs=run.recipe.lrs_at(last_step), clip=request.clip_grad_norm)
            state.losses.add(losses, first_step=state.position.steps + 1)
            state.position = after(state.position, batches, group, skipped=not complete)

            if run.validator.is_due:
                run.validator.measure()
            command = callbacks.command("save")
            if run.schedule.checkpoint_is_due(state.position, command):
                loss_here = run.validator.loss_here()
                save_checkpoint(state, order, callbacks, validation_loss=loss_here, command=command)
            if run.schedule.resume_point_is_due():
                save_resume_point(state, order, callbacks, run.metrics)
                resumable = state.position

    return finish(run, order, callbacks)


def set_up(order: TrainingOrder, callbacks: Callbacks, clock: Clock) -> Run:
    """Load the dataset and the model, and build the run, at its beginning or its resume point."""
    device = this_device()
    abilities = probe(device)
    choices = choose(order.train, abilities)

    callbacks.phase("reading the dataset")
    pictures = split(Manifest.read(Path(order.dataset)).pictures, order.train.validation)
    epoch_config = EpochConfig.of(order.train, seed=order.seed)
    recipe = recipe_for(
        order.train,
        steps_per_epoch=steps_per_epoch(pictures.training, epoch_config),
        total_steps=total_steps(pictures.training, epoch_config),
    )

    callbacks.phase("loading the base model")
    parts = base_model(order)
    warnings = find_room(parts, order.train, device, callbacks, has_8bit=abilities.bitsandbytes)
    loras = loras_for(parts, order)
    state = begin_or_resume(order, prepare(parts, order.train, choices, device, loras=loras))
    state.warnings += [each for each in warnings if each not in state.warnings]
    epoch_config = replace(epoch_config, crops_per_image=state.crops_per_image)

    latents = LatentCache(state.parts.vae, Path(order.out))
    objective = DiffusionLoss(state, order, choices, latents)
    metrics = Metrics(Path(order.out), resumed=Path(order.resume) if order.resume else None)
    reporter = ProgressReporter(state, recipe, order, callbacks, metrics=metrics, clock=clock)
    return Run(
        choices=choices,
        state=state,
        pictures=pictures.training,
        epoch_config=epoch_config,
        recipe=recipe,
        loader=BatchLoader(Path(order.dataset), pictures.training, epoch_config, latents),
        objective=objective,
        metrics=metrics,
        reporter=reporter,
        validator=Validator(
            state,
            order,
            callbacks,
            objective,
            latents=latents,
            reporter=reporter,
            held_out=pictures.held_out,
        ),
        snapshots=SnapshotWriter(state, order, callbacks),
        schedule=CheckpointSchedule(order, clock),
    )


def begin_or_resume(order: TrainingOrder, state: State) -> State:
    """The state at the resume point; without one, at the beginning.

    A base model that an earlier job trained may bring that job's optimizers along; a new LoRA has
    no use for those of whole networks.
    """
    base = Path(order.base)
    if order.resume:
        resume.load(state, Path(order.resume))
    elif bool(state.loras) == (base / LORA).exists():
        resume.restore_optimizers(state, base)
    return state


def base_model(order: TrainingOrder) -> Parts:
    """The base model, with the noise schedule that the request asks for."""
    parts = load(Path(order.base))
    if not order.train.enable_zero_terminal_snr:
        return parts
    config = with_zero_terminal_snr(parts.scheduler_config)
    return dataclasses.replace(parts, scheduler_config=config)


def loras_for(parts: Parts, order: TrainingOrder) -> dict[str, Lora]:
    """The LoRA that the base model comes with, to go on with it, or a new one, by network.

    Empty: none is asked for.

    Raises:
        Refused: the base model's LoRA does not fit it.
    """
    if (shape := order.train.lora_shape) is None:
        return {}
    file = Path(order.base) / LORA
    loras = attach(parts, file) if file.exists() else {}
    for name, network in trained_networks(parts, order.train).items():
        if name not in loras:
            generator = seeded(seed_of(order.seed, "lora", name))
            loras[name] = fresh_lora(name, network, shape, generator)
    return loras


def update(state: State, *, lrs: dict[str, float], clip: float | None) -> bool:
    """One step of the optimizers: unscale, clip each network by itself, step, clear gradients.

    ``lrs`` are the learning rates by network. The moving averages of the weights follow, but for
    those of a network whose step the scaler has skipped. Returns whether no step was skipped.
    """
    skipped = set()
    for name, optimizer in state.optimizers.items():
        set_lr(optimizer, lrs[name])
        state.scaler.unscale_(optimizer)
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(state.trained[name].parameters(), clip)
        if not stepped(optimizer, state.scaler):
            skipped.add(name)
        optimizer.zero_grad(set_to_none=True)
    state.scaler.update()
    for name, average in state.averages.items():
        if name not in skipped:
            average.follow()
    return not skipped


def after(
    position: Position, batches: list[Batch], group: range, *, skipped: bool = False
) -> Position:
    """The position once a group of an epoch's batches is done."""
    done = replace(
        position,
        step_in_epoch=group.stop,
        steps=position.steps + len(group),
        updates=position.updates + 1,
        skipped_updates=position.skipped_updates + skipped,
        images=position.images + sum(batches[step].real for step in group),
    )
    is_last = group.stop == len(batches)
    return replace(done, epoch=position.epoch + 1, step_in_epoch=0) if is_last else done


def finish_early(run: Run, order: TrainingOrder, callbacks: Callbacks) -> Outcome:
    """Report and measure as after the last step, and warn that it was not the planned last one."""
    run.reporter.report_last_step()
    run.validator.loss_here()
    reached = f"{run.state.position.steps} of {run.recipe.total_steps}"
    run.state.warnings.append(f"stopped on request after step {reached}")
    return finish(run, order, callbacks)


def finish(run: Run, order: TrainingOrder, callbacks: Callbacks) -> Outcome:
    """Save the trained model and sum the run up.

    Raises:
        Refused: a loss is not a finite number.
    """
    state = run.state
    loss = state.losses.mean()
    callbacks.phase("saving the trained model")
    saved = save_trained_model(state, order)
    return Outcome(
        checkpoint=str(saved.checkpoint),
        model=str(saved.folder),
        merged=str(saved.merged) if saved.merged else None,
        metrics=str(run.metrics.file),
        tensorboard=str(run.metrics.write_tensorboard(order.job)),
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
        skipped_updates=state.position.skipped_updates,
        warnings=state.warnings,
    )
