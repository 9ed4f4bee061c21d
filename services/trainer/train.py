"""Fine-tune Stable Diffusion: the whole run, from the base model to the last checkpoint.

A *step* is one batch forward and backward, an *update* one step of the optimizers. Every random
draw is a function of (seed, epoch, position), so a resumed run equals an uninterrupted one; on a
CPU, bit for bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from msgspec.structs import replace
from torch import Tensor

from services.trainer import resume
from services.trainer.batches import Latents, Loaded, Reader
from services.trainer.checkpoint import save_checkpoint, save_last
from services.trainer.device import probe, this_device
from services.trainer.optimizer import set_lr
from services.trainer.order import SECONDS_PER_MINUTE, Outcome, TrainingOrder
from services.trainer.recipe import Choices, Recipe, accumulation_groups, choose, recipe_for
from services.trainer.samples import Sampler
from services.trainer.state import Position, State, prepare
from shared.dataset.manifest import Manifest
from shared.dataset.plan import Batch, Course, plan_epoch, seed_of, steps_per_epoch, total_steps
from shared.diffusion.loading import load
from shared.diffusion.noise import add_noise, cumulative_alphas, seeded, target
from shared.diffusion.text import encode, tokenize
from shared.errors import Interrupted

PROGRESS_SECONDS = 0.5
"""The least time between two reports: reading the loss waits for the device."""
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

Clock = Callable[[], float]


class Listener(Protocol):
    """Who is told how training goes, and may ask for an early end."""

    def phase(self, name: str) -> None:
        """Something slow begins."""

    def progress(self, numbers: dict[str, Any]) -> None:
        """step, steps, epoch, epochs, loss, lr, images_per_second, eta_seconds."""

    def saved(self, kind: str, path: Path, step: int, epoch: int) -> None:
        """A ``checkpoint`` file, ``resume_point`` or ``snapshot`` folder is complete on disk."""

    def should_stop(self) -> bool:
        """Whether to save a resume point and end; asked before every step."""


def train(order: TrainingOrder, listener: Listener, *, clock: Clock = time.monotonic) -> Outcome:
    """Carry out an order.

    Raises:
        Refused: the base model, an image or the loss is not fit to train with; says which.
        Passing: the resume point cannot be read.
        Interrupted: the listener asked to stop; what was done is in a resume point, said before.
    """
    request = order.train
    device = this_device()
    choices = choose(request, probe(device))

    listener.phase("reading the dataset")
    pictures = Manifest.read(Path(order.dataset)).pictures
    course = course_of(order)
    recipe = recipe_for(
        request,
        steps_per_epoch=steps_per_epoch(pictures, course),
        total_steps=total_steps(pictures, course),
    )

    listener.phase("loading the base model")
    state = prepare(load(Path(order.base)), request, choices, device)
    if order.resume:
        resume.load(state, Path(order.resume))
    else:  # a base model that is an earlier job's brings its optimizers along
        resume.restore_optimizers(state, Path(order.base))

    latents = Latents(state.parts.vae)
    reader = Reader(Path(order.dataset), pictures, course, latents)
    objective = Objective(state, order, choices, latents)
    keeper = Keeper(state, order, listener, clock)
    teller = Teller(state, recipe, order, listener, clock)
    sampler = Sampler(state, order, listener.saved)

    listener.phase("training")
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
            update(state, lr=recipe.lr_at(last_step), clip=request.clip_grad_norm)
            state.losses.add(losses, first_step=state.position.steps + 1)
            state.position = after(state.position, batches, group)
            keeper.keep_in_time()

    return finish(state, order, choices, listener)


def course_of(order: TrainingOrder) -> Course:
    """What the request asks of its epochs, for the plan."""
    request = order.train
    rated = request.rated_dataset_target_dropout_percent if request.rated_dataset else None
    return Course(
        resolution=request.resolution,
        batch_size=request.batch_size,
        seed=order.seed,
        epochs=request.max_epochs,
        rated_percent=rated,
        cond_dropout=request.cond_dropout,
        flip_p=request.flip_p,
        shuffle_tags=request.shuffle_tags,
    )


class Objective:
    """What the networks are trained to do: to tell the noise in a noisy latent (Ho et al. 2020)."""

    def __init__(
        self, state: State, order: TrainingOrder, choices: Choices, latents: Latents
    ) -> None:
        self._parts = state.parts
        self._seed = order.seed
        self._clip_skip = order.train.clip_skip
        self._precision = PRECISIONS[choices.precision]
        self._latents = latents
        self._alphas = cumulative_alphas(state.parts.scheduler_config)

    def loss(self, loaded: Loaded, epoch: int) -> Tensor:
        """The batch's mean squared error, less for a batch that repeats had to fill; a scalar."""
        parts, device = self._parts, self._parts.unet.device
        generator = seeded(seed_of(self._seed, epoch, loaded.batch.first, "noise"))

        latents = self._latents.sample(loaded, generator)  # (B, 4, H/8, W/8)
        noise = torch.randn(latents.shape, generator=generator).to(device)
        timesteps = torch.randint(len(self._alphas), latents.shape[:1], generator=generator)  # (B,)
        alphas = self._alphas[timesteps].to(device)
        noisy = add_noise(latents, noise, alphas)
        wanted = target(parts.prediction_type, latents, noise, alphas)

        with torch.autocast(device.type, self._precision, enabled=self._precision != torch.float32):
            ids = tokenize(parts.tokenizer, loaded.captions)  # (B, 77)
            hidden = encode(parts.text_encoder, ids, self._clip_skip)  # (B, 77, C)
            predicted = parts.unet(noisy, timesteps.to(device), hidden).sample

        errors = F.mse_loss(predicted.float(), wanted, reduction="none").mean(dim=(1, 2, 3))  # (B,)
        return (errors * loaded.loss_scales.to(device)).mean() * loaded.batch.loss_factor


def update(state: State, *, lr: float, clip: float | None) -> None:
    """One step of the optimizers: unscale, clip each network by itself, step, forget gradients."""
    for name, optimizer in state.optimizers.items():
        set_lr(optimizer, lr)
        state.scaler.unscale_(optimizer)
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(state.trained[name].parameters(), clip)
        state.scaler.step(optimizer)
        optimizer.zero_grad(set_to_none=True)
    state.scaler.update()


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


def finish(state: State, order: TrainingOrder, choices: Choices, listener: Listener) -> Outcome:
    """Write the trained model and sum the run up."""
    loss = state.losses.mean()  # and so make sure that it is a number
    listener.phase("saving the trained model")
    checkpoint, model = save_last(state, order)
    return Outcome(
        checkpoint=str(checkpoint),
        model=str(model),
        seed=order.seed,
        steps=state.position.steps,
        updates=state.position.updates,
        epochs=state.position.epoch,
        images=state.position.images,
        loss=loss,
        precision=choices.precision,
        optimizer=choices.optimizer,
        attention=choices.attention,
        warnings=state.warnings,
    )


class Keeper:
    """Saves checkpoints and resume points when their time has come."""

    def __init__(
        self, state: State, order: TrainingOrder, listener: Listener, clock: Clock
    ) -> None:
        self._state = state
        self._order = order
        self._listener = listener
        self._clock = clock
        self._checkpoint_at = self._resume_point_at = clock()
        self._kept = state.position

    def keep_in_time(self) -> None:
        """Save what is due; an interval runs from the moment at which the last save began."""
        now = self._clock()
        minutes = self._order.train.ckpt_every_n_minutes
        if minutes and now - self._checkpoint_at > minutes * SECONDS_PER_MINUTE:
            self._checkpoint_at = now
            self._checkpoint()
        if now - self._resume_point_at > self._order.resume_every:
            self._resume_point_at = now
            self._resume_point()

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
        self._listener.phase("saving a checkpoint")
        self._say("checkpoint", save_checkpoint(self._state, self._order))

    def _resume_point(self) -> None:
        self._state.losses.recent()
        self._listener.phase("saving a resume point")
        folder = Path(self._order.out) / "resume" / str(self._state.position.steps)
        resume.save(self._state, folder)
        self._kept = self._state.position
        self._say("resume_point", folder)

    def _say(self, kind: str, path: Path) -> None:
        position = self._state.position
        self._listener.saved(kind, path, position.steps, position.epoch)
        self._listener.phase("training")


class Teller:
    """Reports progress, not too often."""

    def __init__(
        self,
        state: State,
        recipe: Recipe,
        order: TrainingOrder,
        listener: Listener,
        clock: Clock,
    ) -> None:
        self._state = state
        self._recipe = recipe
        self._order = order
        self._listener = listener
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
            self._listener.progress(self._numbers(step, now))

    def _numbers(self, step: int, now: float) -> dict[str, Any]:
        steps_per_second = (step - self._began) / max(now - self._began_at, 1e-9)
        return {
            "step": step,
            "steps": self._recipe.total_steps,
            "epoch": self._state.position.epoch,
            "epochs": self._order.train.max_epochs,
            "loss": self._state.losses.mean(),
            "lr": self._recipe.lr_at(step - 1),
            "images_per_second": round(steps_per_second * self._order.train.batch_size, 3),
            "eta_seconds": round((self._recipe.total_steps - step) / steps_per_second),
        }
