"""On a card: what was chosen for it really trains, and its model draws there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from services.inferencer.generation.batching_pipeline import BatchingPipeline
from services.inferencer.generation.generate import generate
from services.inferencer.order import ImageRequest
from services.trainer.order import Outcome
from services.trainer.training.device import probe
from services.trainer.training.recipe import choose
from services.trainer.training.train import train
from shared.diffusion.device import this_device
from shared.diffusion.loading import load
from shared.request import Inference
from tests.support.drawing import drawn_images
from tests.support.models import make_random_model
from tests.support.training import RecordingCallbacks, make_dataset, train_request, training_order

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_random_model(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("dataset") / "data", images=3)


def trained(out: Path, base: Path, dataset: Path, **fields: Any) -> Outcome:
    return train(training_order(out, base=base, dataset=dataset, **fields), RecordingCallbacks())


@pytest.mark.parametrize(
    "commands",
    [
        {},
        {"amp": False, "useadam8bit": False},
        {"disable_xformers": True, "gradient_checkpointing": True},
        {"clip_grad_norm": 1.0, "grad_accum": 2, "ema_decay_rate": 0.9},
    ],
    ids=["default", "full precision", "sparing", "averaged"],
)
def test_what_was_chosen_for_the_card_is_what_trains(
    base: Path, dataset: Path, tmp_path: Path, commands: dict[str, Any]
) -> None:
    outcome = trained(tmp_path, base, dataset, **commands)

    chosen = choose(train_request(**commands), probe(this_device()))
    assert this_device().type == "cuda"
    assert (outcome.precision, outcome.optimizer, outcome.attention) == (
        chosen.precision, chosen.optimizer, chosen.attention
    )  # fmt: skip
    before, after = load(base), load(Path(outcome.model))
    for name in ("unet", "text_encoder"):
        old, new = getattr(before, name).state_dict(), getattr(after, name).state_dict()
        assert any(not torch.equal(old[key].half(), new[key].half()) for key in old)


def test_a_stopped_training_goes_on_from_its_resume_point(
    base: Path, dataset: Path, tmp_path: Path
) -> None:
    whole = trained(tmp_path / "whole", base, dataset, max_epochs=3)
    first = RecordingCallbacks()
    order = training_order(
        tmp_path / "first", base=base, dataset=dataset, max_epochs=1, resume_every=0.0
    )
    train(order, first)
    point = next(path for kind, path, *_ in reversed(first.saves) if kind == "resume_point")

    order = training_order(
        tmp_path / "rest", base=base, dataset=dataset, max_epochs=3, resume=point
    )
    resumed = train(order, RecordingCallbacks())

    assert (resumed.steps, resumed.images) == (whole.steps, whole.images)
    assert resumed.loss == pytest.approx(whole.loss, rel=0.05)


def test_a_model_draws_the_same_image_twice_on_the_card(base: Path) -> None:
    pipeline = BatchingPipeline.from_parts(load(base, torch.float16).to(this_device()))
    asked = Inference(prompt="a red wall", width=128, height=128, num_inference_steps=4)
    request = ImageRequest(inference=asked, seed=5)

    one, two = (
        drawn_images(generate(pipeline, [request], clip_skip=0, on_step=lambda *_: None))
        for _ in range(2)
    )

    assert np.array_equal(np.asarray(one[0]), np.asarray(two[0]))
    assert np.asarray(one[0]).std() > 0
