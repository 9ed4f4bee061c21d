"""The trainer reads images as the fetcher has seen them."""

from pathlib import Path

from PIL import Image

from services.fetcher.parsing.datasets.image_check import inspect
from services.trainer.training.batches import read_pixels
from shared.dataset.buckets import Box, Size
from shared.dataset.pixels import fingerprint
from shared.dataset.plan import Augmentation


def test_the_trainer_reads_what_the_fetcher_has_seen(tmp_path: Path) -> None:
    Image.new("RGBA", (64, 64), (0, 0, 0, 0)).save(tmp_path / "a.png")
    whole = Augmentation(caption="", flip=False, crop=Box(0, 0, 64, 64))

    assert inspect(tmp_path / "a.png").fingerprint == fingerprint(
        Image.new("RGB", (64, 64), "white")
    )
    assert bool((read_pixels(tmp_path / "a.png", whole, Size(64, 64)) == 1.0).all())
