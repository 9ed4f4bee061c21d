"""On a card: what its capability allows is what trains, with bf16 and without, and it draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.card.expected import BF16_FROM, expected_of, has_xformers
from bench.card.machine import nvidia_smi
from bench.card.setting import MIB
from services.inferencer.generation.batching_pipeline import BatchingPipeline
from services.inferencer.generation.generate import generate
from services.inferencer.generation.pipeline_cache import PipelineCache
from services.inferencer.order import ImageRequest
from services.trainer.order import Outcome
from services.trainer.training.device_facts import device_facts
from services.trainer.training.optimizer import make_optimizer
from services.trainer.training.train import train
from shared.diffusion.device import this_device
from shared.diffusion.loading import load
from shared.request import Inference
from tests.support.drawing import drawn_images
from tests.support.models import make_random_model
from tests.support.training import (
    RecordingCallbacks,
    make_dataset,
    train_request,
    training_order,
    whole_model,
)

GIB = 2**30

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_random_model(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("dataset") / "data", images=3)


def trained(out: Path, base: Path, dataset: Path, **fields: Any) -> Outcome:
    return train(training_order(out, base=base, dataset=dataset, **fields), RecordingCallbacks())


@pytest.fixture(params=["bf16", "fp16"])
def bf16(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Once as the card is, once with bf16 forced off, as on a card that has none."""
    if request.param == "bf16":
        if torch.cuda.get_device_capability() < BF16_FROM:
            pytest.skip("this card has no bf16")
        return True
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    return False


@pytest.mark.parametrize(
    "commands",
    [
        {"useadam8bit": True},
        {"amp": False},
        {"disable_xformers": True, "gradient_checkpointing": True},
        {"clip_grad_norm": 1.0, "grad_accum": 2, "ema_decay_rate": 0.9},
    ],
    ids=["default", "full precision", "sparing", "averaged"],
)
def test_what_the_cards_capability_allows_is_what_trains(
    base: Path, dataset: Path, tmp_path: Path, commands: dict[str, Any], *, bf16: bool
) -> None:
    outcome = trained(tmp_path, base, dataset, **commands)

    expected = expected_of(
        torch.cuda.get_device_capability(),
        train_request(**commands),
        xformers=has_xformers(),
        bf16=bf16,
    )
    assert this_device().type == "cuda"
    assert (outcome.precision, outcome.optimizer, outcome.attention) == expected
    before, after = load(base), load(whole_model(outcome))
    for name in ("unet", "text_encoder"):
        old, new = getattr(before, name).state_dict(), getattr(after, name).state_dict()
        assert any(not torch.equal(old[key].half(), new[key].half()) for key in old)


def test_the_moments_are_of_eight_bits() -> None:
    weights = torch.nn.Parameter(torch.ones(128, 128, device=this_device()))
    weights.grad = torch.ones_like(weights)
    optimizer = make_optimizer("adamw8bit", [weights])
    optimizer.step()
    moments = [each for each in optimizer.state[weights].values() if torch.is_tensor(each)]
    assert sum(each.dtype == torch.uint8 and each.shape == weights.shape for each in moments) == 2
    assert weights.mean().item() < 1


def test_the_drivers_facts_about_memory_are_told() -> None:
    facts = device_facts()
    assert facts["problem"] is None
    assert facts["memory_bytes"] > 4 * GIB
    assert 0 < facts["free_bytes"] <= facts["memory_bytes"]
    listed = nvidia_smi().splitlines()[1 + (this_device().index or 0)].split(", ")
    assert listed[0] == facts["name"]
    told = int(listed[2].removesuffix(" MiB")) << 20
    assert facts["memory_bytes"] == pytest.approx(told, rel=0.1)  # less what the driver keeps


def test_what_drawing_took_is_given_back(base: Path) -> None:
    device = this_device()
    cache = PipelineCache(device)
    torch.cuda.reset_peak_memory_stats(device)
    asked = Inference(prompt="a red wall", width=512, height=512, num_inference_steps=2)
    request = ImageRequest(inference=asked, seed=5)
    pipeline = cache.load(base)
    drawn_images(generate(pipeline, [request], clip_skip=0, on_step=lambda *_: None))
    took = torch.cuda.max_memory_reserved(device)
    cache.give_back()
    kept = torch.cuda.memory_reserved(device)
    assert kept < took
    assert kept - torch.cuda.memory_allocated(device) < 64 * MIB


def test_a_stopped_training_goes_on_from_its_resume_point(
    base: Path, dataset: Path, tmp_path: Path, *, bf16: bool
) -> None:
    del bf16
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
