"""Checkpoints: the model as the user gets it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from services.trainer.order import TrainingOrder
from services.trainer.training.callbacks import Callbacks
from services.trainer.training.saving import disk_space
from services.trainer.training.saving.resume import save_optimizers
from services.trainer.training.state import State, weights_to_save
from shared.diffusion.lora_file import export_lora
from shared.diffusion.saving import save_beside_lora, save_configurations, save_folder
from shared.diffusion.single_file import export
from shared.disk import require_room
from shared.storage.manifest import copies_of_weights


def save_checkpoint(
    state: State,
    order: TrainingOrder,
    callbacks: Callbacks,
    *,
    validation_loss: float | None,
    command: int,
) -> None:
    """Write an intermediate checkpoint: one file, and the optimizers beside it if asked for.

    ``command`` is the number of the newest ``save`` command that this carries out.

    Raises:
        Refused: a loss is not a finite number: nothing is saved of a run that has diverged.
        Full: the disk has no room for it.
    """
    state.losses.recent()
    callbacks.phase("saving a checkpoint")
    needed = disk_space.checkpoint_bytes(state, order.train)
    require_room(Path(order.out), needed, "save a checkpoint")
    with weights_to_save(state):
        path = _single_file(state, order, _name(state, order))
        if order.train.save_optimizer:
            save_optimizers(state, path.with_suffix(".optimizer"))
    steps, epoch = state.position.steps, state.position.epoch
    callbacks.saved("checkpoint", path, steps, epoch, validation_loss, command=command)
    callbacks.phase("training")


class TrainedModel(NamedTuple):
    """What a training leaves."""

    checkpoint: Path
    """The ``last-`` single file."""
    folder: Path
    """Its diffusers folder."""
    merged: Path | None
    """The base model's single file with the LoRA in its weights, if it is asked for."""


def save_trained_model(state: State, order: TrainingOrder) -> TrainedModel:
    """Write the result; afterwards the networks are not to be trained any more.

    The folder of a ``.safetensors`` file has no weights: it loads with the file in it; that of a
    LoRA has only what differs from the base model's. The
    optimizers go into the folder if asked for, so that a job which starts from this model finds
    them.

    Raises:
        Full: the disk has no room for it.
    """
    needed = disk_space.last_bytes(state, order.train)
    require_room(Path(order.out), needed, "save the trained model")
    folder = Path(order.out) / "model"
    with weights_to_save(state):
        path = _single_file(state, order, f"last-{_name(state, order)}")
        if state.loras:
            save_beside_lora(state.parts, folder, order.train.lora_shape)
        elif copies_of_weights(order.train) == 1:
            save_configurations(state.parts, folder, path, dtype=_dtype(order))
        else:
            save_folder(state.parts, folder, dtype=_dtype(order))
        if order.train.save_optimizer:
            save_optimizers(state, folder)
        merged = _merged(state, order) if state.loras and order.train.lora_merge else None
    return TrainedModel(path, folder, merged)


def _merged(state: State, order: TrainingOrder) -> Path:
    name = f"last-{_name(state, order)}-merged"
    for lora in state.loras.values():
        lora.merge()
    path = Path(order.out) / "checkpoints" / f"{name}.safetensors"
    export(state.parts, path, dtype=_dtype(order), metadata=_titled(name, order))
    return path


def _titled(name: str, order: TrainingOrder) -> dict[str, str]:
    side = order.train.resolution
    return {"modelspec.title": name, "modelspec.resolution": f"{side}x{side}"}


def _name(state: State, order: TrainingOrder) -> str:
    """``job-ep03-gs00042``: epochs and steps done."""
    return f"{order.job}-ep{state.position.epoch:02}-gs{state.position.steps:05}"


def _single_file(state: State, order: TrainingOrder, name: str) -> Path:
    path = Path(order.out) / "checkpoints" / f"{name}.{order.train.checkpoint_format}"
    path.parent.mkdir(parents=True, exist_ok=True)
    header = _titled(name, order)
    if (shape := order.train.lora_shape) is None:
        export(state.parts, path, dtype=_dtype(order), metadata=header)
    else:
        header |= _kohya_facts(state, name)
        export_lora(
            state.loras, state.parts, path, dtype=_dtype(order), shape=shape, metadata=header
        )
    return path


def _kohya_facts(state: State, name: str) -> dict[str, str]:
    """What kohya's header tells of the training, for the programs that show it."""
    return {
        "ss_output_name": name,
        "ss_epoch": str(state.position.epoch),
        "ss_steps": str(state.position.steps),
    }


def _dtype(order: TrainingOrder) -> torch.dtype:
    return torch.float32 if order.train.save_full_precision else torch.float16
