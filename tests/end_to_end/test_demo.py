"""The demo, as `make demo` runs it, on a much shorter recipe."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from PIL import Image

from everydream import demo
from everydream.demo import run_demo

SHORT = {"max_epochs": 1, "lr_decay_steps": 3, "lr_warmup_steps": 1}


def test_the_demo_leaves_images_a_checkpoint_and_a_summary_of_the_newest_run_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "RECIPE", {**demo.RECIPE, **SHORT})
    monkeypatch.setattr(demo, "DRAWING", {**demo.DRAWING, "num_inference_steps": 1})
    (tmp_path / "mine.txt").write_text("not the demo's")

    assert asyncio.run(run_demo(tmp_path)) == 0
    first = json.loads((tmp_path / "summary.json").read_text())["id"]
    assert asyncio.run(run_demo(tmp_path)) == 0
    second = json.loads((tmp_path / "summary.json").read_text())["id"]

    checkpoints = [path.name for path in tmp_path.glob("*.safetensors")]
    assert checkpoints == [f"last-{second}-ep01-gs00003.safetensors"]
    assert not list(tmp_path.rglob(f"*{first}*"))
    images = sorted((tmp_path / "images").iterdir())
    assert len(images) == 8
    with Image.open(images[0]) as image:
        assert image.size == (256, 256)
    assert f"# Job {second}: COMPLETED" in (tmp_path / "summary.md").read_text()
    assert (tmp_path / "mine.txt").exists()
