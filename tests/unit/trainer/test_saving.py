"""What is saved is whole or not there; and the disk is asked for room beforehand."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from services.trainer.training.recipe import Choices
from services.trainer.training.saving import disk_space
from services.trainer.training.saving.checkpoint import save_trained_model
from services.trainer.training.saving.metrics import Metrics
from services.trainer.training.saving.resume import save
from services.trainer.training.state import State, prepare
from services.trainer.training.train import update
from shared.diffusion.files import replacing
from shared.diffusion.saving import save_folder
from shared.diffusion.single_file import export
from shared.disk import require_room
from shared.errors import Passing
from tests.support.models import random_parts
from tests.support.training import train_request, training_order

CPU = Choices(precision="fp32", optimizer="adamw", attention="sdpa")


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def some_state(**fields: Any) -> State:
    """A model after one update, so that there are moments."""
    state = prepare(random_parts(), train_request(**fields), CPU, torch.device("cpu"))
    for network in state.trained.values():
        for weight in network.parameters():
            weight.grad = torch.ones_like(weight)
    update(state, lrs={"unet": 1e-3, "text_encoder": 1e-3}, clip=None)
    return state


def size_of(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


# --- Whole or not there -----------------------------------------------------------------------


def fills_the_disk(_: Any, path: Any, *__: Any, **___: Any) -> None:
    """Write some, then fail as the system does."""
    Path(path).write_bytes(b"half a")
    raise OSError(errno.ENOSPC, "No space left on device", str(path))


@pytest.mark.parametrize("before", [None, b"the one before"])
def test_a_file_whose_writing_fails_is_not_there_and_the_one_before_it_stays(
    tmp_path: Path, before: bytes | None
) -> None:
    path = tmp_path / "last.safetensors"
    if before:
        path.write_bytes(before)

    with pytest.raises(OSError, match="No space left"), replacing(path) as temporary:
        fills_the_disk(None, temporary)

    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == (
        {path.name: before} if before else {}
    )


SAVES: dict[str, Callable[[Path], object]] = {
    "a single file": lambda path: export(random_parts(), path),
    "a diffusers folder": lambda path: save_folder(random_parts(), path),
    "a resume point": lambda path: save(some_state(), path, Metrics(path.parent / "records")),
}


@pytest.mark.parametrize("kind", SAVES)
def test_no_half_of_a_save_looks_whole(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("single_file", "saving"):
        monkeypatch.setattr(f"shared.diffusion.{module}.save_file", fills_the_disk)
    monkeypatch.setattr("services.trainer.training.saving.resume.save_file", fills_the_disk)
    folder = tmp_path / "saves"
    folder.mkdir()

    with pytest.raises(OSError, match="No space left"):
        SAVES[kind](folder / "saved")

    assert [each.name for each in folder.iterdir() if each.name != "records"] == []


# --- Room -------------------------------------------------------------------------------------


def test_too_little_room_is_noticed_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1000, 1, 999))

    require_room(tmp_path, 999, "save a checkpoint")
    with pytest.raises(Passing) as caught:
        require_room(tmp_path / "out", 1000, "save a checkpoint")

    assert str(caught.value) == (
        f"no room on the disk to save a checkpoint: 1000 bytes are needed in"
        f" {tmp_path / 'out'}, and 999 are free"
    )


@pytest.mark.parametrize("full_precision", [False, True])
@pytest.mark.parametrize("checkpoint_format", ["safetensors", "ckpt"])
def test_a_save_takes_no_more_than_was_asked_for_and_not_much_less(
    checkpoint_format: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    full_precision: bool,
) -> None:
    """The tiny model's headers and its tokenizer are small beside the allowance for them."""
    monkeypatch.setattr(disk_space, "HEADERS", 2**18)
    state = some_state(ema_decay_rate=0.9)
    order = training_order(
        tmp_path, dataset=tmp_path, base=tmp_path, checkpoint_format=checkpoint_format,
        save_full_precision=full_precision,
    )  # fmt: skip
    train = order.train

    path, model, _ = save_trained_model(state, order)
    save(state, tmp_path / "point", Metrics(tmp_path / "records"))

    one, folder = size_of(path), size_of(model)
    needed = disk_space.checkpoint_bytes(state, train)
    assert needed - 2**18 <= one <= needed
    assert (
        disk_space.last_bytes(state, train) - 2**19
        <= one + folder
        <= disk_space.last_bytes(state, train)
    )
    needed = disk_space.resume_point_bytes(state)
    assert needed - 2**18 <= size_of(tmp_path / "point") <= needed


def test_optimizers_beside_a_checkpoint_need_room_too() -> None:
    state = some_state()

    plain = disk_space.checkpoint_bytes(state, train_request())
    beside = disk_space.checkpoint_bytes(state, train_request(save_optimizer=True))

    trained = sum(
        each.numel() for network in state.trained.values() for each in network.parameters()
    )
    assert beside - plain >= 2 * 4 * trained
