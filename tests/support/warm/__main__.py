"""The command ``everydream``, but the GPU services' children are warm, and sample rows rough.

``python -m tests.support.warm service trainer``, or ``serve``. All else is the product. With
``--full-rows`` in front, sample rows take the product's number of steps; with ``--rough`` images
are small and rough, too, and trainings have a quarter of their pixels.
"""

from __future__ import annotations

import sys
from typing import Any

from msgspec.structs import replace

import services.inferencer.sample_rows
import services.inferencer.work
import services.trainer.work
from everydream.cli import main
from services.inferencer.order import ImageRequest
from services.trainer.order import TrainingOrder
from shared.request import Inference, Train

ROUGH_STEPS = 4
ROUGH_SIDE = 128


def rough_image(inference: Inference) -> ImageRequest:
    """What the product makes of an entry, but drawn in a moment, whatever its steps and size."""
    rough = replace(inference, num_inference_steps=ROUGH_STEPS)
    return ImageRequest(inference=rough, seed=7, side=ROUGH_SIDE)


def rough_training(*, train: Train, **order: Any) -> TrainingOrder:
    return TrainingOrder(train=replace(train, resolution=256), **order)


if __name__ == "__main__":
    if sys.argv[1] == "--full-rows":
        del sys.argv[1]
    else:
        services.inferencer.sample_rows.STEPS = ROUGH_STEPS
    if sys.argv[1] == "--rough":
        del sys.argv[1]
        services.inferencer.work.image_request = rough_image
        services.trainer.work.TrainingOrder = rough_training  # type: ignore[assignment, attr-defined]
    services.trainer.work.CHILD = "tests.support.warm.trainer"
    services.inferencer.work.CHILD = "tests.support.warm.inferencer"
    main()
