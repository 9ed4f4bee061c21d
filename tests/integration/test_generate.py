"""Drawing images with a random model: what depends on the seed, and what must not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import numpy as np
import pytest
import torch

from services.inferencer.generate import generate
from services.inferencer.order import Entry
from shared.diffusion.loading import Parts
from shared.errors import Refused
from shared.request import Inference, Scheduler
from tests.models import random_parts

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")


@pytest.fixture(scope="module")
def parts() -> Parts:
    return random_parts()


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def images(parts: Parts, *, seed: int = 5, clip_skip: int = 0, **fields: Any) -> list[np.ndarray]:
    small = {"prompt": "a red wall", "width": 128, "height": 128, "num_inference_steps": 2}
    entry = Entry(inference=Inference(**{**small, **fields}), seed=seed)
    drawings = generate(parts, entry, clip_skip=clip_skip, tell=lambda _step, _steps: None)
    return [np.asarray(drawing.image) for drawing in drawings]


def test_the_same_seed_gives_the_same_pixels(parts: Parts) -> None:
    assert np.array_equal(images(parts), images(parts))


def test_image_i_of_an_entry_is_the_first_of_one_whose_seed_is_i_higher(parts: Parts) -> None:
    together = images(parts, num_outputs=3)

    alone = [images(parts, seed=5 + number)[0] for number in range(3)]

    assert all(np.array_equal(*pair) for pair in zip(together, alone, strict=True))
    assert not np.array_equal(together[0], together[1])


def test_everything_that_is_asked_for_makes_a_difference(parts: Parts) -> None:
    plain = images(parts)[0]

    assert plain.shape == (128, 128, 3)
    assert not np.array_equal(plain, images(parts, prompt="blue")[0])
    assert not np.array_equal(plain, images(parts, prompt="a (red:1.5) wall")[0])
    assert not np.array_equal(plain, images(parts, prompt="a red wall" + " red" * 80)[0])
    assert not np.array_equal(plain, images(parts, negative_prompt="blue")[0])
    assert not np.array_equal(plain, images(parts, negative_prompt="blue " * 80)[0])
    assert not np.array_equal(plain, images(parts, guidance_scale=15.0)[0])
    assert not np.array_equal(plain, images(parts, num_inference_steps=3)[0])
    assert not np.array_equal(plain, images(parts, clip_skip=2)[0])
    assert np.array_equal(plain, images(parts, clip_skip=1)[0])
    assert images(parts, width=256)[0].shape == (128, 256, 3)


@pytest.mark.parametrize("scheduler", get_args(Scheduler))
@pytest.mark.parametrize("steps", [1, 2])
def test_every_scheduler_draws_with_few_steps(
    parts: Parts, scheduler: Scheduler, steps: int
) -> None:
    (image,) = images(parts, scheduler=scheduler, num_inference_steps=steps)

    assert image.std() > 0


def test_an_image_that_is_no_number_is_an_error_with_advice() -> None:
    parts = random_parts()
    with torch.no_grad():
        parts.unet.conv_out.bias.fill_(float("nan"))

    with pytest.raises(Refused, match=r"'a red wall' came out as not-a-number.*lower lr"):
        images(parts)


def test_the_pipelines_own_text_encoding_gives_the_same_pixels(parts: Parts) -> None:
    """Our embeddings take the place of the stock ones where clip_skip leaves them alone."""
    from services.inferencer.schedulers import make_scheduler  # noqa: PLC0415
    from shared.diffusion.saving import pipeline  # noqa: PLC0415

    stock = pipeline(parts)
    stock.set_progress_bar_config(disable=True)
    stock.scheduler = make_scheduler("K-LMS", parts.scheduler_config, 2)
    theirs = stock(
        "a red wall", negative_prompt="blue", width=128, height=128, num_inference_steps=2,
        generator=torch.Generator("cpu").manual_seed(5), output_type="np",
    ).images[0]  # fmt: skip

    ours = images(parts, negative_prompt="blue")[0]

    assert np.abs(theirs * 255 - ours).max() <= 1.0
