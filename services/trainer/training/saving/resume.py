"""Resume points: everything that training needs to go on as if nothing had happened.

They are saved just after an update, when no gradient is in flight. All randomness is a function of
the seed and the position, so no generator's state is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct
from safetensors.torch import load_file, save_file
from torch import Tensor

from services.trainer.order import METRICS, Measured, TrainingOrder
from services.trainer.training.callbacks import Callbacks
from services.trainer.training.optimizer import load_state, save_state
from services.trainer.training.saving import disk_space
from services.trainer.training.saving.metrics import Metrics
from services.trainer.training.state import Losses, Position, State
from shared.diffusion.files import replacing
from shared.disk import require_room
from shared.errors import Passing

POSITION = "position.json"


class ResumeState(Struct, frozen=True, kw_only=True):
    """A resume point besides its tensors: ``position.json``."""

    position: Position
    losses: list[float]
    scaler: dict[str, Any]
    warnings: list[str]
    measured: list[Measured] = []
    crops_per_image: int = 0


def save_resume_point(
    state: State, order: TrainingOrder, callbacks: Callbacks, metrics: Metrics
) -> None:
    """Write a resume point of the position, and report it.

    Raises:
        Refused: a loss is not a finite number: nothing is saved of a run that has diverged.
        Full: the disk has no room for it.
    """
    state.losses.recent()
    callbacks.phase("saving a resume point")
    steps, epoch = state.position.steps, state.position.epoch
    folder = Path(order.out) / "resume" / str(steps)
    require_room(folder.parent, disk_space.resume_point_bytes(state), "save a resume point")
    save(state, folder, metrics)
    callbacks.saved("resume_point", folder, steps, epoch)
    callbacks.phase("training")


def save(state: State, folder: Path, metrics: Metrics) -> None:
    """Write a resume point, whole or not at all.

    It holds weights in fp32 and their moving averages, optimizers, position, and the metrics so
    far.
    """
    resume_state = ResumeState(
        position=state.position,
        losses=state.losses.recent(),
        scaler=state.scaler.state_dict(),
        warnings=state.warnings,
        measured=state.measured,
        crops_per_image=state.crops_per_image,
    )
    with replacing(folder) as temporary:
        temporary.mkdir(parents=True)
        for name, network in state.trained.items():
            _save_weights(network.state_dict(), temporary / _weights(name))
            save_state(state.optimizers[name], temporary / _moments(name))
        for name, average in state.averages.items():
            _save_weights(average.state_dict(), temporary / _averages(name))
        metrics.copy(temporary / METRICS, until=state.position.steps)
        (temporary / POSITION).write_bytes(msgspec.json.encode(resume_state))


def load(state: State, folder: Path) -> None:
    """Bring networks, optimizers and position to where :func:`save` left them.

    Raises:
        Passing: the resume point is damaged or is not of this job.
    """
    try:
        loaded = msgspec.json.decode((folder / POSITION).read_bytes(), type=ResumeState)
        for name, network in state.trained.items():
            network.load_state_dict(load_file(folder / _weights(name)))
        for name, average in state.averages.items():
            average.load_state_dict(load_file(folder / _averages(name)))
    except (OSError, ValueError, RuntimeError, KeyError, msgspec.DecodeError) as error:
        raise Passing(f"the resume point cannot be loaded: {error}") from error
    state.position = loaded.position
    state.losses = Losses(loaded.losses)
    state.warnings = loaded.warnings
    state.measured = loaded.measured
    state.crops_per_image = loaded.crops_per_image
    if loaded.scaler and state.scaler.is_enabled():
        state.scaler.load_state_dict(loaded.scaler)
    restore_optimizers(state, folder)


def restore_optimizers(state: State, folder: Path) -> None:
    """Load the optimizers' moments; one that does not fit starts afresh, with a warning."""
    for name, optimizer in state.optimizers.items():
        if not (file := folder / _moments(name)).exists():
            continue
        try:
            load_state(optimizer, file)
        except (ValueError, KeyError, RuntimeError) as error:
            state.warnings.append(f"the {name}'s optimizer starts afresh: {error}")


def save_optimizers(state: State, folder: Path) -> list[Path]:
    """Write the optimizers' moments into a folder; the files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, optimizer in state.optimizers.items():
        with replacing(folder / _moments(name)) as temporary:
            save_state(optimizer, temporary)
    return [folder / _moments(name) for name in state.optimizers]


def _save_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    save_file({name: each.contiguous() for name, each in weights.items()}, path)


def _weights(name: str) -> str:
    return f"{name}.safetensors"


def _averages(name: str) -> str:
    return f"average_{name}.safetensors"


def _moments(name: str) -> str:
    return f"optimizer_{name}.safetensors"
