"""Resume points: everything that training needs to go on as if nothing had happened.

They are taken just after an update, when no gradient is in flight. All random draws are functions
of the seed and the position, so no generator's state needs keeping.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct
from safetensors.torch import load_file, save_file
from torch import Tensor

from services.trainer.order import Measured
from services.trainer.training.optimizer import load_state, save_state
from services.trainer.training.saving.metrics import METRICS, Metrics
from services.trainer.training.state import Losses, Position, State
from shared.diffusion.files import replacing
from shared.errors import Passing

POSITION = "position.json"


class ResumeState(Struct, frozen=True, kw_only=True):
    """What a resume point holds besides tensors."""

    position: Position
    losses: list[float]
    scaler: dict[str, Any]
    warnings: list[str]
    measured: list[Measured] = []


def save(state: State, folder: Path, records: Metrics) -> None:
    """Write a resume point, whole or not at all: weights in fp32, optimizers, position.

    The averages of the weights go along, and what was recorded until the position.
    """
    kept = ResumeState(
        position=state.position,
        losses=state.losses.recent(),
        scaler=state.scaler.state_dict(),
        warnings=state.warnings,
        measured=state.measured,
    )
    with replacing(folder) as temporary:
        temporary.mkdir(parents=True)
        for name, network in state.trained.items():
            _save_weights(network.state_dict(), temporary / _weights(name))
            save_state(state.optimizers[name], temporary / _moments(name))
        for name, average in state.averages.items():
            _save_weights(average.state_dict(), temporary / _averages(name))
        records.keep(temporary / METRICS, until=state.position.steps)
        (temporary / POSITION).write_bytes(msgspec.json.encode(kept))


def load(state: State, folder: Path) -> None:
    """Bring networks, optimizers and position to where :func:`save` left them.

    Raises:
        Passing: the resume point is damaged or is not of this job.
    """
    try:
        kept = msgspec.json.decode((folder / POSITION).read_bytes(), type=ResumeState)
        for name, network in state.trained.items():
            network.load_state_dict(load_file(folder / _weights(name)))
        for name, average in state.averages.items():
            average.load_state_dict(load_file(folder / _averages(name)))
    except (OSError, ValueError, RuntimeError, KeyError, msgspec.DecodeError) as error:
        raise Passing(f"the resume point cannot be loaded: {error}") from error
    state.position = kept.position
    state.losses = Losses(kept.losses)
    state.warnings = kept.warnings
    state.measured = kept.measured
    if kept.scaler and state.scaler.is_enabled():
        state.scaler.load_state_dict(kept.scaler)
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
