"""The twelve schedulers with the tiny model: each comes close to the reference.

Those that add no noise must converge to the image of the stock DDIM with many steps. Their distance
is 0.002 to 0.006 (root mean square over pixels of 0 to 1); with timesteps for the network too high
by one spacing it is 0.012 to 0.017, for random pixels 0.4. Those that add noise must give images of
the same mean colour: the distance is 0.022; with a wrong prediction type it is 0.11.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from torch import Tensor

from bench.schedulers import (
    NAMES,
    STOCHASTIC,
    colour_distance,
    distance,
    draw,
    reference,
    tiny,
)
from services.inferencer.generation.schedulers import make_scheduler
from shared.diffusion.noise import cumulative_alphas, seeded
from shared.request import Scheduler
from tests.integration.inferencer.test_schedulers import interpolated
from tests.support.forms import few

STEPS = 30
SPACING = 33
FEWER_STEPS, SEEDS = 20, (1, 2, 3, 4)
"""To compare colours."""
NEAR, ALIKE = 0.009, 0.045
ORDERED: tuple[Scheduler, ...] = tuple(name for name in NAMES if name not in STOCHASTIC)


pytestmark = [
    pytest.mark.usefixtures("one_thread_and_no_advice"),
    pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionPipeline:
    return tiny()


@pytest.fixture(scope="module")
def config(pipe: StableDiffusionPipeline) -> dict[str, Any]:
    return dict(pipe.scheduler.config)


@pytest.fixture(scope="module")
def image(pipe: StableDiffusionPipeline, config: dict[str, Any]) -> Tensor:
    return reference(pipe, config)


@pytest.fixture(scope="module")
def images(pipe: StableDiffusionPipeline, config: dict[str, Any]) -> Tensor:
    """Of several seeds; this number of steps is enough for the mean colour."""
    return draw(pipe, make_scheduler("DPM-M", config, FEWER_STEPS), FEWER_STEPS, seeds=SEEDS)


@contextmanager
def timesteps_off_by(pipe: StableDiffusionPipeline, timesteps: int) -> Iterator[None]:
    """Pass the network another timestep than the scheduler's."""

    def shift(_unet: Any, args: tuple[Any, ...], kwargs: Any) -> tuple[Any, Any]:
        sample, timestep, *others = args
        return (sample, (timestep + timesteps).clamp(0, 999), *others), kwargs

    handle = pipe.unet.register_forward_pre_hook(shift, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def speaking_of_velocities(pipe: StableDiffusionPipeline, config: dict[str, Any]) -> Iterator[None]:
    """Convert the network's noise to v = sqrt(a) noise - sqrt(1 - a) x_0."""
    alphas = cumulative_alphas(config)

    def velocity(_unet: Any, args: tuple[Any, ...], answer: tuple[Tensor]) -> tuple[Tensor]:
        sample, timestep, (noise,) = args[0], args[1], answer
        a = interpolated(alphas, float(timestep))
        clean = (sample - (1 - a) ** 0.5 * noise) / a**0.5
        return (a**0.5 * noise - (1 - a) ** 0.5 * clean,)

    handle = pipe.unet.register_forward_hook(velocity)
    try:
        yield
    finally:
        handle.remove()


# test_same_seed.py compares those that have a stock counterpart with that, pixel by pixel.
@pytest.mark.parametrize("name", few("IPNDM", of=ORDERED))
def test_without_noise_on_the_way_all_come_to_the_same_image(
    name: Scheduler, pipe: StableDiffusionPipeline, config: dict[str, Any], image: Tensor
) -> None:
    assert distance(draw(pipe, make_scheduler(name, config, STEPS), STEPS), image) < NEAR


@pytest.mark.parametrize("name", few(ORDERED[0], of=ORDERED))
def test_with_timesteps_that_are_off_none_comes_near(
    name: Scheduler, pipe: StableDiffusionPipeline, config: dict[str, Any], image: Tensor
) -> None:
    with timesteps_off_by(pipe, SPACING):
        shifted = draw(pipe, make_scheduler(name, config, STEPS), STEPS)
    assert distance(shifted, image) > NEAR


@pytest.mark.parametrize("name", few("DDPM", of=STOCHASTIC))
def test_with_noise_on_the_way_the_images_have_the_same_colours(
    name: Scheduler, pipe: StableDiffusionPipeline, config: dict[str, Any], images: Tensor
) -> None:
    drawn = draw(pipe, make_scheduler(name, config, FEWER_STEPS), FEWER_STEPS, seeds=SEEDS)

    assert colour_distance(drawn, images) < ALIKE
    assert drawn.std(0).mean() == pytest.approx(float(images.std(0).mean()), rel=0.2)


@pytest.mark.parametrize("name", few(STOCHASTIC[0], of=STOCHASTIC))
def test_of_a_wrong_prediction_type_the_colours_are_others(
    name: Scheduler, pipe: StableDiffusionPipeline, config: dict[str, Any], images: Tensor
) -> None:
    mistaken = {**config, "prediction_type": "v_prediction"}
    wrong = draw(pipe, make_scheduler(name, mistaken, FEWER_STEPS), FEWER_STEPS, seeds=SEEDS)

    assert colour_distance(wrong, images) > 2 * ALIKE


def test_random_pixels_pass_for_neither(image: Tensor, images: Tensor) -> None:
    random = torch.rand(images.shape, generator=seeded(0))

    assert distance(random[:1], image) > 10 * NEAR
    assert colour_distance(random, images) > 2 * ALIKE


@pytest.mark.parametrize("name", few(NAMES[0], of=NAMES))
def test_a_network_that_predicts_velocity_draws_what_it_draws_when_it_predicts_noise(
    name: Scheduler, pipe: StableDiffusionPipeline, config: dict[str, Any]
) -> None:
    plain = draw(pipe, make_scheduler(name, config, 10), 10)
    changed = make_scheduler(name, {**config, "prediction_type": "v_prediction"}, 10)

    with speaking_of_velocities(pipe, config):
        assert distance(draw(pipe, changed, 10), plain) < 1e-4


def test_ddim_is_the_stock_ddim_where_that_keeps_to_its_timesteps(
    pipe: StableDiffusionPipeline, config: dict[str, Any]
) -> None:
    stock = DDIMScheduler.from_config(config, timestep_spacing="trailing", set_alpha_to_one=True)

    ours = draw(pipe, make_scheduler("DDIM", config, 20), 20)

    assert torch.allclose(ours, draw(pipe, stock, 20), atol=1e-3)
