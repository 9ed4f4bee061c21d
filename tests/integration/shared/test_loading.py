"""Loading a model reads its weights without initializing them first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from shared.diffusion.loading import load
from shared.diffusion.saving import save_folder
from shared.diffusion.single_file import export
from shared.storage.manifest import SINGLE_FILE
from tests.support.models import random_parts

INITIALIZERS = ("kaiming_uniform_", "xavier_uniform_", "normal_", "uniform_")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "model"
    save_folder(random_parts(), folder)
    return folder


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many weights each initializer filled; on the meta device none."""
    drawn: list[int] = []

    def counting(initialize: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def call(tensor: torch.Tensor, *how: Any, **more: Any) -> torch.Tensor:
            drawn.append(0 if tensor.is_meta else tensor.numel())
            return initialize(tensor, *how, **more)

        return call

    for name in INITIALIZERS:
        monkeypatch.setattr(torch.nn.init, name, counting(getattr(torch.nn.init, name)))
    return drawn


def test_a_new_network_is_drawn_weight_by_weight(drawn: list[int]) -> None:
    torch.nn.Linear(10, 10)
    assert sum(drawn) >= 100


@pytest.mark.parametrize("kind", ["a diffusers folder", "a single file"])
def test_a_loaded_model_is_filled_from_its_file_without_drawing_weights_first(
    folder: Path, drawn: list[int], kind: str
) -> None:
    if kind == "a single file":
        export(random_parts(), folder / SINGLE_FILE)
    drawn.clear()

    parts = load(folder)

    assert sum(drawn) == 0
    assert not any(each.is_meta for each in parts.unet.parameters())
    (folder / SINGLE_FILE).unlink(missing_ok=True)
