"""What crops that come again cost in quality: ``python -m bench crops``.

The tiny model is trained on drawn pictures with four crops of each and with a new one in each
epoch, from three seeds; the loss on pictures that are held out is compared. It takes a quarter of
an hour, and writes its table into docs/performance.md.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.pairs import run_module
from bench.training.scene import TINY, make_pictures
from tests.support.measured_page import table, today, write

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
SEEDS = (1, 2, 3)
CROPS = (4, 0)
PICTURES, EPOCHS, EVERY = 8, 300, 100
HEAD = ("seed", "crops", "before", *(f"epoch {each}" for each in range(EVERY, EPOCHS + 1, EVERY)))


def main() -> None:
    rows = []
    with TemporaryDirectory(prefix="bench-crops-") as folder:
        make_pictures(Path(folder) / "data", PICTURES)
        for seed in SEEDS:
            for crops in CROPS:
                losses = (
                    run_module("bench.crops", folder, str(seed), str(crops))
                    .splitlines()[-1]
                    .split()
                )
                rows.append((str(seed), str(crops) if crops else "endless", *losses))
                print(table(HEAD, rows[-1:]), flush=True)
    write("crops", f"{table(HEAD, rows)}\n\nMeasured on {today()}.", PAGE)


def train_once(folder: Path, seed: int, crops: int) -> list[float]:
    """The losses on held-out pictures, before the training and after every hundred epochs."""
    from services.trainer.order import TrainingOrder  # noqa: PLC0415 - torch is slow to load
    from services.trainer.training.saving.metrics import read_lines  # noqa: PLC0415
    from services.trainer.training.train import train  # noqa: PLC0415
    from shared.request import Train, Validation  # noqa: PLC0415
    from tests.support.training import RecordingCallbacks  # noqa: PLC0415

    request = Train(
        data_url="https://example.org/x.zip", resolution=256, batch_size=2, max_epochs=EPOCHS,
        lr=1e-4, useadam8bit=False, seed=seed, crops_per_image=crops, ckpt_every_n_minutes=None,
        validation=Validation(val_split_proportion=0.25, every_n_epochs=EVERY),
    )  # fmt: skip
    out = folder / f"{seed}-{crops}"
    order = TrainingOrder(
        job="bench", train=request, seed=seed, dataset=str(folder / "data"), base=str(TINY),
        out=str(out), resume_every=1e9,
    )  # fmt: skip
    lines = read_lines(Path(train(order, RecordingCallbacks()).metrics))
    return [line["validation_loss"] for line in lines if "validation_loss" in line]


def side(arguments: Sequence[str]) -> None:
    folder, seed, crops = arguments
    losses = train_once(Path(folder), int(seed), int(crops))
    print(" ".join(f"{loss:.4f}" for loss in losses))


if __name__ == "__main__":
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    side(sys.argv[1:])
