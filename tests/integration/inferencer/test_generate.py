"""Generate images with a random model: what depends on the seed, and what must not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, get_args

import numpy as np
import pytest
import torch

from services.inferencer.generation import batching_pipeline
from services.inferencer.generation.batching_pipeline import BatchingPipeline
from services.inferencer.generation.generate import FailedImage, generate
from services.inferencer.generation.schedulers import make_scheduler
from services.inferencer.order import ImageRequest
from shared.diffusion.memory import is_out_of_memory
from shared.diffusion.saving import stock_pipeline
from shared.request import Scheduler
from tests.support.drawing import POISON, SIDE, drawn_images, poisoned, small_request
from tests.support.forms import few
from tests.support.models import random_parts

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning"),
]

MAX_BYTES = 1 << 62
"""More than any machine has."""
WORDS = ("a red wall", "blue", "", "a (blue:1.3) wall", "reds")


@pytest.fixture(scope="module")
def pipeline() -> BatchingPipeline:
    return BatchingPipeline.from_parts(random_parts())


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    return lambda most: monkeypatch.setitem(batching_pipeline.BATCH_SIZES, "cpu", most)


def nothing(_step: int, _steps: int) -> None:
    pass


def pixels_of(
    pipeline: BatchingPipeline, requests: Sequence[ImageRequest], *, clip_skip: int = 0
) -> list[np.ndarray[Any, Any]]:
    drawn = drawn_images(generate(pipeline, requests, clip_skip=clip_skip, on_step=nothing))
    return [np.asarray(image) for image in drawn]


def images(
    pipeline: BatchingPipeline, *, seed: int = 5, clip_skip: int = 0, **fields: Any
) -> list[np.ndarray]:
    return pixels_of(pipeline, [small_request(seed=seed, **fields)], clip_skip=clip_skip)


def rows_of(pipeline: BatchingPipeline) -> tuple[list[int], Any]:
    """Record the number of rows in each call of the network."""
    rows: list[int] = []
    hook = pipeline.pipe.unet.register_forward_pre_hook(
        lambda _unet, given: rows.append(len(given[0]))
    )
    return rows, hook


def test_the_same_seed_gives_the_same_pixels(pipeline: BatchingPipeline) -> None:
    assert np.array_equal(images(pipeline), images(pipeline))


def test_image_i_of_an_entry_is_the_first_of_one_whose_seed_is_i_higher(
    pipeline: BatchingPipeline,
) -> None:
    together = images(pipeline, num_outputs=3)

    alone = [images(pipeline, seed=5 + number)[0] for number in range(3)]

    assert all(np.array_equal(*pair) for pair in zip(together, alone, strict=True))
    assert not np.array_equal(together[0], together[1])


def test_everything_that_is_asked_for_makes_a_difference(pipeline: BatchingPipeline) -> None:
    plain = images(pipeline)[0]

    assert plain.shape == (128, 128, 3)
    assert not np.array_equal(plain, images(pipeline, prompt="blue")[0])
    assert not np.array_equal(plain, images(pipeline, prompt="a (red:1.5) wall")[0])
    assert not np.array_equal(plain, images(pipeline, prompt="a red wall" + " red" * 80)[0])
    assert not np.array_equal(plain, images(pipeline, negative_prompt="blue")[0])
    assert not np.array_equal(plain, images(pipeline, negative_prompt="blue " * 80)[0])
    assert not np.array_equal(plain, images(pipeline, guidance_scale=15.0)[0])
    assert not np.array_equal(plain, images(pipeline, num_inference_steps=3)[0])
    assert not np.array_equal(plain, images(pipeline, clip_skip=2)[0])
    assert np.array_equal(plain, images(pipeline, clip_skip=1)[0])
    assert images(pipeline, width=256)[0].shape == (128, 256, 3)


@pytest.mark.parametrize("scheduler", get_args(Scheduler))
@pytest.mark.parametrize("steps", [1, 2])
def test_every_scheduler_draws_with_few_steps(
    pipeline: BatchingPipeline, scheduler: Scheduler, steps: int
) -> None:
    (image,) = images(pipeline, scheduler=scheduler, num_inference_steps=steps)

    assert image.std() > 0


def test_the_pipelines_own_text_encoding_gives_the_same_pixels(pipeline: BatchingPipeline) -> None:
    """Without clip_skip our embeddings equal the stock ones."""
    parts = random_parts()
    stock = stock_pipeline(parts)
    stock.set_progress_bar_config(disable=True)
    stock.scheduler = make_scheduler("K-LMS", parts.scheduler_config, 2)
    theirs = stock(
        "a red wall", negative_prompt="blue", width=128, height=128, num_inference_steps=2,
        generator=torch.Generator("cpu").manual_seed(5), output_type="np",
    ).images[0]  # fmt: skip

    ours = images(pipeline, negative_prompt="blue")[0]

    assert np.abs(theirs * 255 - ours).max() <= 1.0


# --- Batches ----------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", few("EULER-A", "PNDM", of=get_args(Scheduler)))
def test_an_image_is_the_same_to_the_bit_alone_and_in_any_company(
    pipeline: BatchingPipeline, scheduler: Scheduler, at_once: Callable[[int], None]
) -> None:
    requests = [
        small_request(prompt=words, seed=7 * number, num_inference_steps=2, scheduler=scheduler)
        for number, words in enumerate(WORDS)
    ]
    alone = [pixels_of(pipeline, [request])[0] for request in requests]

    for most, order in ((2, 1), (5, -1)):
        at_once(most)
        together = pixels_of(pipeline, requests[::order])[::order]
        for number, image in enumerate(alone):
            assert np.array_equal(image, together[number]), f"{number} of batches of {most}"
    assert len({image.tobytes() for image in alone}) == len(WORDS)


def test_without_guidance_too_an_image_is_the_same_in_any_company(
    pipeline: BatchingPipeline,
) -> None:
    requests = [small_request(prompt=words, seed=3, guidance_scale=1.0) for words in WORDS]

    together = pixels_of(pipeline, requests)

    alone = [pixels_of(pipeline, [request])[0] for request in requests]
    assert all(np.array_equal(*pair) for pair in zip(together, alone, strict=True))


def test_what_is_alike_is_drawn_together_whatever_stands_between(
    pipeline: BatchingPipeline, at_once: Callable[[int], None]
) -> None:
    at_once(4)
    fields: list[dict[str, Any]] = [
        {"num_outputs": 2}, {"width": 256}, {"prompt": "blue"}, {"scheduler": "DDIM"},
        {"num_inference_steps": 1}, {"prompt": "red " * 80}, {"negative_prompt": "blue"},
    ]  # fmt: skip
    requests = [small_request(**each) for each in fields]
    rows, hook = rows_of(pipeline)

    outcomes = list(generate(pipeline, requests, clip_skip=0, on_step=nothing))

    hook.remove()
    assert rows == [8, 8, 2, 2, 2, 2, 2, 2, 2]
    assert [outcome.index for outcome in outcomes] == [0, 1, 3, 7, 2, 4, 5, 6]


def test_the_reported_steps_never_exceed_those_requested(
    pipeline: BatchingPipeline,
) -> None:
    """Heun's method calls the network nearly twice for each step."""
    told: list[tuple[int, int]] = []
    request = small_request(scheduler="HEUN", num_inference_steps=4, num_outputs=2)

    list(generate(pipeline, [request], clip_skip=0, on_step=lambda *numbers: told.append(numbers)))

    assert told[-1] == (4, 4)
    assert told == sorted(told)
    assert len(told) == 7


# --- Failures ---------------------------------------------------------------------------------


def test_an_image_that_is_no_number_spoils_neither_its_mates_nor_what_comes_after() -> None:
    pipeline = BatchingPipeline.from_parts(poisoned(random_parts()))
    sound = [small_request(seed=1), small_request(seed=2, prompt="blue", num_outputs=2)]
    poison = small_request(seed=9, prompt=f"red {POISON}")
    rows, hook = rows_of(pipeline)

    outcomes = list(generate(pipeline, [sound[0], poison, sound[1]], clip_skip=0, on_step=nothing))

    hook.remove()
    assert rows == [8, 8], "one batch"
    (failure,) = (each for each in outcomes if isinstance(each, FailedImage))
    assert (failure.index, failure.seed) == (1, 9)
    assert f"'red {POISON}' came out as not-a-number" in failure.reason
    assert "lower lr" in failure.reason
    drawn = drawn_images(each for each in outcomes if each is not failure)
    wanted = pixels_of(pipeline, sound)
    assert all(np.array_equal(*pair) for pair in zip(map(np.asarray, drawn), wanted, strict=True))


def room_for(pipeline: BatchingPipeline, rows: int, *, side: int = SIDE) -> Any:
    """Run out of memory whenever the network gets more rows of this size."""

    def ask(_unet: Any, given: tuple[torch.Tensor, ...]) -> None:
        if len(given[0]) > rows and given[0].shape[-1] == side // 8:
            torch.empty(MAX_BYTES, dtype=torch.uint8)

    return pipeline.pipe.unet.register_forward_pre_hook(ask)


def test_where_memory_runs_out_half_as_many_are_drawn_and_so_from_then_on(
    at_once: Callable[[int], None],
) -> None:
    pipeline = BatchingPipeline.from_parts(random_parts())
    request = small_request(num_outputs=5)
    alone = pixels_of(BatchingPipeline.from_parts(random_parts()), [request])
    at_once(4)
    rows, _ = rows_of(pipeline)
    room_for(pipeline, 4)

    halved = pixels_of(pipeline, [request])
    assert rows == [8, 4, 4, 4, 4, 2, 2]
    assert all(np.array_equal(*pair) for pair in zip(halved, alone, strict=True))

    rows.clear()
    pixels_of(pipeline, [request, small_request(width=256, num_outputs=4)])
    assert rows == [4, 4, 4, 4, 2, 2, 8, 8], "each size by itself"


def test_what_else_is_in_memory_goes_before_fewer_are_drawn(
    at_once: Callable[[int], None],
) -> None:
    pipeline = BatchingPipeline.from_parts(random_parts())
    at_once(4)
    rows, _ = rows_of(pipeline)
    full = [room_for(pipeline, 4)]

    def let_go() -> bool:
        for hook in full:
            hook.remove()
        return bool(full)

    pipeline.free_memory = let_go

    pixels_of(pipeline, [small_request(num_outputs=4)])

    assert rows == [8, 8, 8]


def test_a_size_that_memory_is_too_small_for_fails_alone() -> None:
    pipeline = BatchingPipeline.from_parts(random_parts())
    room_for(pipeline, 0, side=256)
    large = small_request(width=256, height=256, num_outputs=2)

    outcomes = list(generate(pipeline, [large, small_request()], clip_skip=0, on_step=nothing))

    failures = [each for each in outcomes if isinstance(each, FailedImage)]
    assert [(each.index, each.seed) for each in failures] == [(0, 5), (1, 6)]
    assert "out of memory while drawing one image of 256 x 256 pixels" in failures[0].reason
    assert len(drawn_images(each for each in outcomes if each not in failures)) == 1


def test_an_error_of_another_kind_is_nobodys_memory() -> None:
    pipeline = BatchingPipeline.from_parts(random_parts())

    def fail(*_: Any) -> None:
        raise RuntimeError("the card fell off the bus")

    pipeline.pipe.unet.register_forward_pre_hook(fail)

    with pytest.raises(RuntimeError, match="fell off the bus"):
        images(pipeline)


def test_the_allocators_own_error_is_known() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(MAX_BYTES, dtype=torch.uint8)

    assert is_out_of_memory(error.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
