"""The demo, as `make demo` runs it, on a much shorter recipe and with warm children."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from PIL import Image

import services.inferencer.work
import services.trainer.work
from everydream import demo
from everydream.demo import run_demo
from everydream.results import path_of

SHORT = {"max_epochs": 1, "lr_decay_steps": 3, "lr_warmup_steps": 1}
EARLIER = [
    {"kind": "checkpoint", "name": "last-earlier-ep01-gs00003.safetensors"},
    {"kind": "image", "name": "0000.png"},
    {"kind": "image", "name": "0008.png"},
    {"kind": "sample", "name": "sample-gs00250-000.png"},
]


def leave_an_earlier_demo(output: Path) -> list[Path]:
    """What a run that is over has left; the files that today's makes no more of."""
    paths = [path_of(artifact, output) for artifact in EARLIER]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_text("from the earlier demo")
    (output / "summary.json").write_text(json.dumps({"output": {"artifacts": EARLIER}}))
    return paths


@pytest.mark.usefixtures("warm_children")
def test_the_demo_leaves_images_a_checkpoint_and_a_summary_of_the_newest_run_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services.trainer.work, "CHILD", "tests.support.warm.trainer")
    monkeypatch.setattr(services.inferencer.work, "CHILD", "tests.support.warm.inferencer")
    monkeypatch.setattr(demo, "RECIPE", {**demo.RECIPE, **SHORT})
    monkeypatch.setattr(demo, "DRAWING", {**demo.DRAWING, "num_inference_steps": 1})
    monkeypatch.setattr("services.inferencer.sample_rows.STEPS", 1)
    (tmp_path / "mine.txt").write_text("not the demo's")
    checkpoint, image, *others = leave_an_earlier_demo(tmp_path)

    assert asyncio.run(run_demo(tmp_path)) == 0

    job = json.loads((tmp_path / "summary.json").read_text())["id"]
    checkpoints = [path.name for path in tmp_path.glob("*.safetensors")]
    assert checkpoints == [f"last-{job}-ep01-gs00003.safetensors"]
    assert not [path for path in (checkpoint, *others) if path.exists()]
    images = sorted((tmp_path / "images").iterdir())
    assert images[0] == image
    assert len(images) == 8
    with Image.open(image) as drawn:
        assert drawn.size == (256, 256)
    assert f"# Job {job}: COMPLETED" in (tmp_path / "summary.md").read_text()
    assert (tmp_path / "mine.txt").exists()
