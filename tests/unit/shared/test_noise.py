"""The arithmetic of noise, checked against the papers and EveryDream2."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler

from services.trainer.training.loss import image_errors, noise_of, timesteps_of
from shared.diffusion.noise import (
    cumulative_alphas,
    min_snr_weights,
    offset_noise,
    prediction_type,
    pyramid_noise,
    seeded,
    with_zero_terminal_snr,
)
from shared.errors import Refused
from shared.request import LossType
from tests.support.models import SCHEDULER
from tests.support.training import train_request

SD15 = {**SCHEDULER, "_class_name": "PNDMScheduler", "prediction_type": "epsilon"}
V = {**SD15, "prediction_type": "v_prediction"}


def test_stable_diffusions_schedule_is_the_published_one() -> None:
    alphas = cumulative_alphas(SD15)

    assert alphas[[0, 500, 999]].tolist() == pytest.approx([0.99915, 0.27633, 0.0046601], abs=1e-5)


def test_min_snr_weighs_easy_timesteps_down_and_leaves_the_others() -> None:
    weights = min_snr_weights("epsilon", cumulative_alphas(SD15), 5.0)

    assert weights[[0, 100]].tolist() == pytest.approx([0.004254, 0.591445], abs=1e-6)
    assert int((weights == 1).nonzero()[0]) == 147
    assert bool((weights[147:] == 1).all())


def test_min_snr_for_velocities_is_divided_by_one_more_than_the_snr() -> None:
    alphas = torch.tensor([0.5, 0.9, 0.0])  # SNR 1, 9 and 0

    assert min_snr_weights("v_prediction", alphas, 5.0).tolist() == pytest.approx([0.5, 0.5, 0.0])
    assert min_snr_weights("epsilon", alphas, 5.0).tolist() == pytest.approx([1.0, 5 / 9, 1.0])


def test_offset_noise_moves_each_channel_of_each_image_as_a_whole() -> None:
    noise = torch.randn(64, 4, 32, 32, generator=seeded(1))

    added = offset_noise(noise, 0.1, seeded(2)) - noise

    assert float(added.std(dim=(2, 3)).max()) < 1e-6
    assert float(added[:, :, 0, 0].std()) == pytest.approx(0.1, rel=0.1)
    assert len(set(added[:, :, 0, 0].flatten().tolist())) == 64 * 4


def test_pyramid_noise_is_coarse_of_unit_deviation_and_the_generators_own() -> None:
    noise = torch.randn(8, 4, 32, 48, generator=seeded(1))

    pyramid = pyramid_noise(noise, 0.8, seeded(2))

    assert pyramid.shape == noise.shape
    assert pyramid.std(dim=(1, 2, 3)).tolist() == pytest.approx([1.0] * 8, abs=1e-5)
    assert neighbours_agree(noise) < 0.1 < neighbours_agree(pyramid)
    assert torch.equal(pyramid, pyramid_noise(noise, 0.8, seeded(2)))


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("discount", "agree"), [(0.5, 0.0753), (0.8, 0.2529)])
def test_a_discount_makes_as_much_coarse_noise_as_everydream2_does(
    discount: float, agree: float
) -> None:
    """Its own function gives these on the mean of 600 batches."""
    of = [
        neighbours_agree(pyramid_noise(torch.randn(4, 4, 32, 32, generator=g), discount, g))
        for g in map(seeded, range(200))
    ]

    assert sum(of) / len(of) == pytest.approx(agree, rel=0.05)


def neighbours_agree(noise: torch.Tensor) -> float:
    """Correlation of each value with the next."""
    return float((noise[..., :-1] * noise[..., 1:]).mean() / noise.square().mean())


def test_noise_is_plain_unless_more_is_asked_for() -> None:
    shape = (2, 4, 8, 8)

    plain = noise_of(shape, train_request(), seeded(1))
    offset = noise_of(shape, train_request(zero_frequency_noise_ratio=0.1), seeded(1))
    pyramid = noise_of(shape, train_request(pyramid_noise_discount=0.5), seeded(1))

    assert torch.equal(plain, torch.randn(shape, generator=seeded(1)))
    assert not torch.equal(plain, offset)
    assert not torch.equal(plain, pyramid)


def test_zero_terminal_snr_ends_without_signal_and_begins_where_it_did() -> None:
    config = with_zero_terminal_snr(V)

    alphas = cumulative_alphas(config)
    betas = 1 - alphas[1:] / alphas[:-1]

    assert float(alphas[0]) == pytest.approx(0.99915, abs=1e-6)
    assert float(alphas[999]) == 0.0
    assert betas[[997, 998]].tolist() == pytest.approx([0.75113, 1.0], abs=1e-4)
    assert prediction_type(config) == "v_prediction"
    sampler = DDIMScheduler.from_config(config)
    sampler.set_timesteps(10)
    assert int(sampler.timesteps[0]) == 999
    assert float(sampler.alphas_cumprod[999]) == 0.0


def test_zero_terminal_snr_is_refused_to_a_model_that_predicts_noise() -> None:
    with pytest.raises(Refused, match=r"enable_zero_terminal_snr needs .* v_prediction"):
        with_zero_terminal_snr(SD15)


@pytest.mark.parametrize(
    ("kind", "errors"),
    [
        ("mse", [4.0, 4.0, 4.0]),
        ("huber", [1.5, 1.5, 1.5]),
        ("mse_huber", [1.5, 2.75, 3.9975]),
        ("huber_mse", [4.0, 2.75, 1.5025]),
    ],
)
def test_a_residual_of_two_costs_what_the_loss_and_the_timestep_say(
    kind: LossType, errors: list[float]
) -> None:
    """At t = 0, 500 and 999 of 1000: ``mse_huber`` ends with squares, ``huber_mse`` with Huber."""
    predicted, wanted = torch.full((3, 4, 2, 2), 2.0), torch.zeros(3, 4, 2, 2)

    found = image_errors(predicted, wanted, kind, torch.tensor([0.0, 0.5, 0.999]))

    assert found.tolist() == pytest.approx(errors)


@pytest.mark.parametrize(
    ("fields", "timesteps"),
    [
        ({}, range(1000)),
        ({"timestep_start": 200, "timestep_end": 201}, range(200, 201)),
        ({"timestep_start": 5, "timestep_end": 900}, range(5, 900)),
    ],
)
def test_timesteps_are_drawn_from_the_start_to_before_the_end(
    fields: dict[str, Any], timesteps: range
) -> None:
    assert timesteps_of(train_request(**fields), 1000) == timesteps


def test_a_start_beyond_the_models_schedule_is_refused() -> None:
    with pytest.raises(Refused, match=r"timestep_start is 600, .* only 500 timesteps"):
        timesteps_of(train_request(timestep_start=600), 500)
