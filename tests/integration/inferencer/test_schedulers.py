"""The twelve schedulers with a model known exactly, so that there is a right answer.

If images are independent normal numbers with mean M and standard deviation S, the best guess of the
noise in x_t is sqrt(1 - a) (x_t - sqrt(a) M) / (a S^2 + 1 - a). Generating with it must give that
distribution back; nearly, since a is not quite 0 at the last timestep (1.453 for a mean of 1.5).
"""

import math
from typing import Any, get_args

import pytest
import torch

from services.inferencer.generation.schedulers import make_scheduler
from shared.diffusion.noise import cumulative_alphas, seeded
from shared.request import Scheduler
from tests.support.forms import few

CONFIG = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "skip_prk_steps": False,
    "clip_sample": False,
    "prediction_type": "epsilon",
}
MEAN, SPREAD = 1.5, 0.5

# Some stock schedulers use numpy in a deprecated way.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")
NAMES: tuple[Scheduler, ...] = get_args(Scheduler)


def drawn(name: Scheduler, steps: int, *, prediction_type: str = "epsilon") -> torch.Tensor:
    """4,096 numbers, generated as in the stock pipeline."""
    scheduler = make_scheduler(name, {**CONFIG, "prediction_type": prediction_type}, steps)
    alphas, generator = cumulative_alphas(CONFIG), seeded(1)
    x = torch.randn(1, 4, 32, 32, generator=generator) * scheduler.init_noise_sigma
    takes_generator = "generator" in scheduler.step.__code__.co_varnames
    options: dict[str, Any] = {"generator": generator} if takes_generator else {}
    for timestep in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, timestep)
        a = interpolated(alphas, float(timestep))
        noise = (1 - a) ** 0.5 * (scaled - a**0.5 * MEAN) / (a * SPREAD**2 + 1 - a)
        clean = (scaled - (1 - a) ** 0.5 * noise) / a**0.5
        velocity = a**0.5 * noise - (1 - a) ** 0.5 * clean
        said = velocity if prediction_type == "v_prediction" else noise
        x = scheduler.step(said, timestep, x, **options).prev_sample
    assert isinstance(x, torch.Tensor)
    return x


def interpolated(alphas: torch.Tensor, timestep: float) -> float:
    """a at a timestep that may lie between two, interpolated in log sigma as in the schedulers."""
    sigmas = ((1 - alphas) / alphas).sqrt().log()
    low = min(math.floor(timestep), len(alphas) - 2)
    share = timestep - low
    log_sigma = float((1 - share) * sigmas[low] + share * sigmas[low + 1])
    return 1 / (1 + math.exp(2 * log_sigma))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", NAMES)
def test_twenty_steps_give_the_right_distribution(name: Scheduler, prediction_type: str) -> None:
    x = drawn(name, 20, prediction_type=prediction_type)

    assert float(x.mean()) == pytest.approx(MEAN, abs=0.08)
    assert float(x.std()) == pytest.approx(SPREAD, abs=0.12)


@pytest.mark.parametrize("steps", few(130, of=[130, 350, 500]))
@pytest.mark.parametrize("name", NAMES)
def test_so_do_many_steps_that_divide_the_timesteps_or_not(name: Scheduler, steps: int) -> None:
    x = drawn(name, steps)

    assert float(x.mean()) == pytest.approx(MEAN, abs=0.06)
    assert float(x.std()) == pytest.approx(SPREAD, abs=0.03)


@pytest.mark.parametrize("name", NAMES)
def test_five_steps_come_near_it(name: Scheduler) -> None:
    x = drawn(name, 5)

    assert float(x.mean()) == pytest.approx(MEAN, abs=0.15)
    assert 0.2 < float(x.std()) < 1.0


@pytest.mark.parametrize("name", NAMES)
def test_one_step_goes_from_pure_noise_to_the_mean(name: Scheduler) -> None:
    """From pure noise the mean is the best guess of a single step."""
    x = drawn(name, 1)

    assert float(x.mean()) == pytest.approx(MEAN, abs=0.15)
    assert float(x.std()) < 0.5


@pytest.mark.parametrize("steps", few(1, 334, of=[1, 2, 7, 334, 500]))
@pytest.mark.parametrize("name", NAMES)
def test_any_number_of_steps_gives_timesteps_the_network_knows(name: Scheduler, steps: int) -> None:
    scheduler = make_scheduler(name, CONFIG, steps)

    assert len(scheduler.timesteps) >= steps
    assert float(max(scheduler.timesteps)) == 999
    assert float(min(scheduler.timesteps)) >= 0


@pytest.mark.parametrize(
    ("name", "calls"), [("HEUN", 99), ("KDPM2-A", 99), ("KDPM2-D", 99), ("PNDM", 51), ("IPNDM", 50)]
)
def test_some_ask_the_network_more_often_than_there_are_steps(name: Scheduler, calls: int) -> None:
    scheduler = make_scheduler(name, CONFIG, 50)

    assert len(scheduler.timesteps) == calls


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_step_of_pndm_reads_nothing_from_the_device(prediction_type: str) -> None:
    """A card's host would wait in each step; of a tensor without data nothing can be read."""
    config = {**CONFIG, "prediction_type": prediction_type}
    ours, unread = (make_scheduler("PNDM", config, 5) for _ in range(2))
    unread.timesteps = unread.timesteps.to("meta")
    x = other = torch.randn(1, 4, 8, 8, generator=seeded(1))

    for here, there in zip(ours.timesteps, unread.timesteps, strict=True):
        said = torch.sin(x * 7)
        x = ours.step(said, here, x).prev_sample
        other = unread.step(said, there, other).prev_sample

    assert torch.equal(x, other)
