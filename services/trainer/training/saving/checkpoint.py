"""Checkpoints: the model as the user gets it."""

from __future__ import annotations

from pathlib import Path

import torch

from services.trainer.order import TrainingOrder
from services.trainer.training.saving.resume import save_optimizers
from services.trainer.training.state import Position, State
from shared.diffusion.saving import save_folder
from shared.diffusion.single_file import export


def name_of(job: str, position: Position) -> str:
    """``job-ep03-gs00042``: epochs and steps done."""
    return f"{job}-ep{position.epoch:02}-gs{position.steps:05}"


def save_checkpoint(state: State, order: TrainingOrder) -> Path:
    """Write an intermediate checkpoint: one file, and the optimizers beside it where asked for."""
    name = name_of(order.job, state.position)
    path = _single_file(state, order, name)
    if order.train.save_optimizer:
        save_optimizers(state, path.with_suffix(".optimizer"))
    return path


def save_last(state: State, order: TrainingOrder) -> tuple[Path, Path]:
    """Write the trained model: the ``last-`` single file, and a diffusers folder.

    The optimizers go into the folder where asked for, so that a job which starts from this model
    finds them.
    """
    path = _single_file(state, order, f"last-{name_of(order.job, state.position)}")
    folder = Path(order.out) / "model"
    save_folder(state.parts, folder, dtype=_dtype(order))
    if order.train.save_optimizer:
        save_optimizers(state, folder)
    return path, folder


def _single_file(state: State, order: TrainingOrder, name: str) -> Path:
    path = Path(order.out) / "checkpoints" / f"{name}.{order.train.checkpoint_format}"
    path.parent.mkdir(parents=True, exist_ok=True)
    export(
        state.parts,
        path,
        dtype=_dtype(order),
        metadata={
            "modelspec.title": name,
            "modelspec.resolution": f"{order.train.resolution}x{order.train.resolution}",
        },
    )
    return path


def _dtype(order: TrainingOrder) -> torch.dtype:
    return torch.float32 if order.train.save_full_precision else torch.float16
