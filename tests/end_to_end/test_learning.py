"""Learning is real: what the demo teaches was not there before, and is there afterwards."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from everydream import drawings
from everydream.demo import DRAWING, PROMPTS, request_for
from services.inferencer.generation.batching_pipeline import BatchingPipeline
from services.inferencer.generation.generate import generate
from services.inferencer.order import ImageRequest
from shared.diffusion.loading import load
from shared.diffusion.lora import PREFIXES
from shared.diffusion.single_file import original_layout
from shared.request import Inference
from tests.end_to_end.story import TINY, User, served
from tests.support.drawing import drawn_images
from tests.support.following import followed
from tests.support.servers.web import Web
from tests.support.services import WARM

pytestmark = [
    pytest.mark.usefixtures("warm_children"),
    # diffusers' schedulers of today hand numpy an array in yesterday's way
    pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning"),
]

UNET = "model.diffusion_model."
TEXT_ENCODER = "cond_stage_model."
VAE = "first_stage_model."


@dataclass(frozen=True)
class Lesson:
    """How much is taught, and how much is drawn to see it."""

    pictures: int
    """Of each concept."""
    recipe: dict[str, Any]
    """What differs from the demo's."""
    seeds: int
    """Images of each concept."""
    drawing: dict[str, Any]
    most_loss: float | None
    """At the end, beside that at the beginning; None: so few steps show noise alone."""


SHORT = Lesson(
    pictures=2,
    recipe={"max_epochs": 45, "lr_decay_steps": 45},
    seeds=2,
    drawing={**DRAWING, "num_inference_steps": 8},
    most_loss=None,
)
DEMO = Lesson(pictures=6, recipe={}, seeds=4, drawing=DRAWING, most_loss=0.8)
LONG = (pytest.mark.long, pytest.mark.timeout(1800))
BY_LORA = replace(DEMO, recipe={"lora_rank": 64, "lora_conv_rank": 64, "lr": 3e-3}, seeds=8)


@pytest.mark.parametrize(
    "lesson",
    [
        pytest.param(SHORT, id="short"),
        pytest.param(DEMO, id="as in the demo", marks=LONG),
        pytest.param(BY_LORA, id="by a LoRA", marks=LONG),
    ],
)
async def test_the_demos_recipe_teaches_two_concepts_that_the_base_model_does_not_know(
    lesson: Lesson, web: Web, tmp_path: Path
) -> None:
    drawings.draw_dataset(tmp_path / "dataset", lesson.pictures)
    web.serve("/dataset.zip", drawings.zip_dataset(tmp_path / "dataset"))
    examples: dict[str, Sequence[Image.Image]] = {
        concept.name: [opened(file) for file in sorted((tmp_path / "dataset").glob("*.png"))
                       if concept.name in file.name]
        for concept in drawings.CONCEPTS
    }  # fmt: skip
    request = request_for(web.url().rstrip("/"))
    request["input"]["train"] |= {**lesson.recipe, "save_full_precision": True}
    for entry in request["input"]["inference"]:
        entry |= {**lesson.drawing, "num_outputs": lesson.seeds, "seed": 0}

    async with served(web, WARM, HEARTBEAT="2") as (_, user):
        job = await user.client.run(request)
        statuses = [status async for status in followed(user.client, job, every=0.2)]
        last = statuses[-1]
        assert last["status"] == "COMPLETED", last
        taught = await images_of(user, last["output"]["inference"])
        checkpoint = tmp_path / "model.safetensors"
        checkpoint.write_bytes(await user.fetch(last["output"]["train"]["checkpoint_url"]))
    losses = [each["output"]["loss"] for each in statuses[:-1] if each["output"].get("loss")]
    untaught = await asyncio.to_thread(drawn_by_the_base_model, lesson)

    seeds = lesson.seeds
    assert right(taught, examples) == dict.fromkeys(examples, seeds)
    before = sum(right(untaught, examples).values())
    assert seeds // 2 <= before <= 3 * seeds // 2, f"{before} of {2 * seeds} before training"
    if lesson.most_loss is not None:
        assert losses[-1] < lesson.most_loss * losses[0]
    if lesson is BY_LORA:
        every_layer_of_the_lora_has_learnt(checkpoint)
    else:
        every_tensor_of_the_trained_networks_differs_and_the_vae_is_the_same(checkpoint)


def opened(file: Path) -> Image.Image:
    with Image.open(file) as image:
        return image.convert("RGB")


async def images_of(user: User, shown: Iterable[dict[str, str]]) -> dict[str, list[Image.Image]]:
    """The drawn images by the concept that was asked for."""
    images: dict[str, list[Image.Image]] = {concept.name: [] for concept in drawings.CONCEPTS}
    for entry in shown:
        name = next(name for name in images if name in entry["prompt"])
        images[name].append(Image.open(io.BytesIO(await user.fetch(entry["image"]))))
    return images


def drawn_by_the_base_model(lesson: Lesson) -> dict[str, list[Image.Image]]:
    drawing = {"num_outputs": lesson.seeds, **lesson.drawing}
    requests = [
        ImageRequest(inference=msgspec.convert({"prompt": prompt, **drawing}, Inference), seed=0)
        for prompt in PROMPTS
    ]
    pipeline = BatchingPipeline.from_parts(load(TINY))
    drawn = drawn_images(generate(pipeline, requests, clip_skip=0, on_step=lambda *_: None))
    return {
        concept.name: drawn[number * lesson.seeds : (number + 1) * lesson.seeds]
        for number, concept in enumerate(drawings.CONCEPTS)
    }


def right(
    images: dict[str, list[Image.Image]], examples: dict[str, Sequence[Image.Image]]
) -> dict[str, int]:
    """How many images of each concept are nearer to its own examples than to the other's."""
    return {
        name: sum(drawings.nearest(image, examples) == name for image in drawn)
        for name, drawn in images.items()
    }


def every_tensor_of_the_trained_networks_differs_and_the_vae_is_the_same(checkpoint: Path) -> None:
    before = original_layout(load(TINY))
    after = load_file(checkpoint)
    assert set(before) == set(after)
    same = {name for name in before if torch.equal(before[name].float(), after[name].float())}
    assert not [name for name in same if name.startswith((UNET, TEXT_ENCODER))]
    assert {name for name in before if name.startswith(VAE)} == same


def every_layer_of_the_lora_has_learnt(checkpoint: Path) -> None:
    ups = {name: each for name, each in load_file(checkpoint).items() if "lora_up" in name}
    assert not [name for name in ups if not name.startswith(tuple(PREFIXES.values()))]
    assert all(any(name.startswith(prefix) for name in ups) for prefix in PREFIXES.values())
    assert all(each.any() for each in ups.values()), "they are zero before training"
