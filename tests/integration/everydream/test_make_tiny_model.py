"""The script that creates the tiny model: the same bytes every time, and a complete model."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from everydream.drawings import named_scenes
from shared.diffusion.loading import load
from tests.end_to_end.story import TINY

SCRIPT = Path(__file__).parents[3] / "examples" / "make_tiny_model.py"
SHARE = 0.0013
"""The least of which each part of the training has a step."""
FEW_SCENES = 6
Make = Callable[[Path, float], dict[str, Any]]


@pytest.fixture(scope="module", params=["short", pytest.param("whole", marks=pytest.mark.long)])
def make(request: pytest.FixtureRequest) -> Make:
    """Shortly: with fewer named scenes, and without the measuring of what was made."""
    function: Make = runpy.run_path(str(SCRIPT))["make"]
    if request.param == "short":
        function.__globals__["named_scenes"] = partial(named_scenes, FEW_SCENES)
        function.__globals__["restoration_error"] = lambda _: 0.0
    return function


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def made(make: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "model"
    make(folder, SHARE)
    return folder


@pytest.mark.long
def test_made_twice_it_is_the_same_to_the_last_byte(make: Make, made: Path, tmp_path: Path) -> None:
    torch.manual_seed(12345)  # what was drawn before makes no difference
    make(tmp_path / "again", SHARE)
    assert contents(made) == contents(tmp_path / "again")


def test_what_is_made_has_the_shape_of_what_ships(made: Path) -> None:
    new, shipped = load(made), load(TINY)
    for name in ("unet", "vae", "text_encoder"):
        ours, theirs = getattr(new, name).state_dict(), getattr(shipped, name).state_dict()
        assert {key: each.shape for key, each in ours.items() if "embedding" not in key} == {
            key: each.shape for key, each in theirs.items() if "embedding" not in key
        }
