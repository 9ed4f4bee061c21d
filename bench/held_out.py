"""Held-out loss of a LoRA beside the whole model's: ``python -m bench held_out``.

The tiny model learns the demo's two drawn concepts, by the demo's recipe; some pictures are held
out, and their loss with fixed noise is measured at the end. The table goes into docs/models.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

from msgspec.structs import replace
from PIL import Image

from bench.training.scene import TINY
from everydream import drawings
from everydream.demo import RECIPE
from services.trainer.order import Validated
from services.trainer.training.train import train
from shared.dataset.manifest import Manifest, Picture
from shared.request import Validation
from tests.support.measured_page import DOCS, table, today, write
from tests.support.training import RecordingCallbacks, training_order

SEEDS = (1, 2, 3)
EACH = 8
"""Pictures of each concept."""
SHARE = 0.25
"""Of the pictures, held out."""
HELD_OUT = Validation(val_split_proportion=SHARE, every_n_epochs=1000)
WAYS: Mapping[str, Mapping[str, Any]] = {
    "the whole model, `lr` 1e-3": {},
    "LoRA, rank 16, `lr` 1e-3": {"lora_rank": 16},
    "LoRA, rank 64 and convolutions, `lr` 3e-3": {
        "lora_rank": 64, "lora_conv_rank": 64, "lr": 3e-3,
    },
}  # fmt: skip


def main() -> None:
    with TemporaryDirectory(prefix="bench-held-out-") as folder:
        data = draw(Path(folder) / "data")
        rows = [
            (way, *figures([loss(Path(folder), data, seed, options) for seed in SEEDS]))
            for way, options in WAYS.items()
        ]
    text = table(("training", "held-out loss", "of each seed", "measured on"), rows)
    print(text)
    write("held-out loss", text, DOCS / "models.md")


def draw(folder: Path, side: int = 256) -> Path:
    """The concepts' pictures as the fetcher stages them; ``side`` in pixels."""
    drawings.draw_dataset(folder, EACH, side)
    pictures = []
    for file in sorted(folder.glob("*.png")):
        beside = file.with_suffix(".txt")
        caption = beside.read_text() if beside.exists() else file.stem.rpartition("_")[0]
        with Image.open(file) as image:
            width, height = image.size
        pictures.append(Picture(file=file.name, caption=caption, width=width, height=height))
    Manifest(pictures=tuple(pictures)).write(folder)
    return folder


def loss(folder: Path, data: Path, seed: int, options: Mapping[str, Any]) -> float:
    """Of the pictures held out, at the end of one training by the demo's recipe."""
    with TemporaryDirectory(dir=folder) as out:
        recipe = {**RECIPE, "cond_dropout": 0.04, **options}
        found = validated(Path(out), data, TINY, seed, recipe).last.loss
    print(f"{options} seed {seed}: {found:.4f}", flush=True)
    return found


def validated(
    out: Path, data: Path, base: Path, seed: int, options: Mapping[str, Any]
) -> Validated:
    """What a training finds on the pictures held out, before its first step and after its last."""
    order = training_order(out, dataset=data, base=base, validation=HELD_OUT, **options)
    outcome = train(replace(order, seed=seed), RecordingCallbacks())
    if outcome.validation is None:
        raise RuntimeError("nothing was held out")
    return outcome.validation


def figures(losses: list[float]) -> tuple[str, str, str]:
    return f"{mean(losses):.4f}", " / ".join(f"{each:.4f}" for each in losses), today()
