"""The script that makes the tiny model: the same bytes every time, and a whole model."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from shared.diffusion.loading import load
from tests.end_to_end.story import TINY

SCRIPT = Path(__file__).parents[2] / "examples" / "make_tiny_model.py"
SHARE = 0.002
Make = Callable[[Path, float], dict[str, Any]]


@pytest.fixture(scope="module")
def make() -> Make:
    function: Make = runpy.run_path(str(SCRIPT))["make"]
    return function


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_made_twice_it_is_the_same_to_the_last_byte(make: Make, tmp_path: Path) -> None:
    make(tmp_path / "one", SHARE)
    torch.manual_seed(12345)  # whatever was drawn before makes no difference
    make(tmp_path / "two", SHARE)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_what_is_made_has_the_shape_of_what_ships(make: Make, tmp_path: Path) -> None:
    make(tmp_path / "model", SHARE)
    made, shipped = load(tmp_path / "model"), load(TINY)
    for name in ("unet", "vae", "text_encoder"):
        ours, theirs = getattr(made, name).state_dict(), getattr(shipped, name).state_dict()
        assert {key: each.shape for key, each in ours.items() if "embedding" not in key} == {
            key: each.shape for key, each in theirs.items() if "embedding" not in key
        }
