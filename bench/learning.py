"""Held-out loss beside a plain loop's after the same steps: ``python -m bench learning``.

Both sides train the tiny model on the demo's two drawn concepts, in batches of two at a constant
rate, with 8-bit moments; pictures have pixels to spare, so that each is cropped at random. The
product measures both, by fixed noise on the pictures held out. The table goes into
docs/performance.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from msgspec.structs import replace

from bench.crops import SIDE
from bench.held_out import draw, figures
from bench.rows import put
from bench.training.plain_loop import learn
from bench.training.scene import TINY
from services.trainer.order import Validated
from services.trainer.training.train import train
from shared.diffusion.loading import load
from shared.diffusion.saving import save_folder
from shared.request import Validation
from tests.support.training import RecordingCallbacks, training_order

SEEDS = (1, 2, 3, 4, 5)
BUDGET: Mapping[str, Any] = {
    "batch_size": 2, "max_epochs": 40, "lr": 3e-4, "lr_scheduler": "constant",
    "useadam8bit": True, "validation": Validation(val_split_proportion=0.25, every_n_epochs=1000),
}  # fmt: skip
HEAD = ("trained by", "held-out loss", "of each seed", "measured on")


def main() -> None:
    with TemporaryDirectory(prefix="bench-learning-") as folder:
        data = draw(Path(folder) / "data", SIDE)
        for way, loss in WAYS.items():
            losses = []
            for seed in SEEDS:
                with TemporaryDirectory(dir=folder) as out:
                    losses.append(loss(Path(out), data, seed))
                print(f"{way}, seed {seed}: {losses[-1]:.4f}", flush=True)
            put("learning", HEAD, (way, *figures(losses)), tuple(WAYS))


def of_the_product(out: Path, data: Path, seed: int) -> float:
    return measured(out, data, TINY, seed).last.loss


def of_the_plain_loop(out: Path, data: Path, seed: int) -> float:
    parts = load(TINY)
    learn(parts, data, training_order(out, dataset=data, base=TINY, **BUDGET).train, seed)
    save_folder(parts, out / "learnt", dtype=torch.float32)
    return measured(out, data, out / "learnt", seed, max_epochs=1).before.loss


def measured(out: Path, data: Path, base: Path, seed: int, **options: Any) -> Validated:
    """What the product's training from this base model finds on the pictures held out."""
    order = training_order(out, dataset=data, base=base, **{**BUDGET, **options})
    outcome = train(replace(order, seed=seed), RecordingCallbacks())
    if outcome.validation is None:
        raise RuntimeError("nothing was held out")
    return outcome.validation


WAYS: Mapping[str, Callable[[Path, Path, int], float]] = {
    "the product": of_the_product,
    "the plain loop": of_the_plain_loop,
}
