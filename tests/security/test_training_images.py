"""The trainer sees of an image file what the fetcher saw when it accepted it, and nothing else."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from services.fetcher.parsing.datasets.image_check import inspect
from services.trainer.training.batches import read_pixels
from shared.dataset.buckets import Box, Size
from shared.dataset.pixels import as_trained, open_image
from shared.dataset.plan import Augmentation
from tests.support.corpora.images import ODD


@pytest.mark.parametrize("name", list(ODD))
def test_training_sees_an_odd_image_exactly_as_it_was_accepted(name: str, tmp_path: Path) -> None:
    """A WebP that is a Photo CD too would be another picture to Pillow, if it were asked freely."""
    file, make, size = ODD[name]
    path = tmp_path / file
    path.write_bytes(make())
    augment = Augmentation(crop=Box(0, 0, *size), caption="", flip=False)

    with warnings.catch_warnings(action="ignore"):
        assert inspect(path).size == size
        with open_image(path) as image:
            accepted = torch.from_numpy(np.array(as_trained(image))).permute(2, 0, 1)
        trained = read_pixels(path, augment, Size(*size))

    assert torch.equal(((trained + 1) * 127.5).round().byte(), accepted)
