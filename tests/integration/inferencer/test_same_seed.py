"""The stock classes draw from the folder that we hand out what we draw, with the same seed.

docs/schedulers.md says for which classes, and for which numbers of steps.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from msgspec import structs

from bench.schedulers import NAMES, PAGE, SAME, SAME_CHANGES, same_seed_rows, stock_class
from services.fetcher.models.configured_model import TINY_FOLDER
from services.inferencer.generation.batching_pipeline import BatchingPipeline
from services.inferencer.generation.generate import generate
from shared.diffusion.loading import load
from shared.diffusion.saving import save_folder
from shared.request import Scheduler
from tests.support.drawing import drawn_images, small_request
from tests.support.forms import few

pytestmark = [
    pytest.mark.usefixtures("one_thread_and_no_advice"),
    pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning"),
]

PROMPT, SEED, SIDE, GUIDANCE = "a red circle on a blue background", 7, 64, 3.0
STEPS, OTHER_STEPS = 10, 15
"""The first divides the 1000 training timesteps, the second does not."""
WITHOUT: tuple[Scheduler, ...] = ("IPNDM",)
"""Those that have no counterpart."""
COUNTERPARTS = tuple(name for name in NAMES if name not in WITHOUT)
ONE = 1.0
"""Of 255."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As a training hands it out; the base model says ``leading``."""
    parts = load(TINY_FOLDER)
    assert parts.scheduler_config["timestep_spacing"] == "leading"
    folder = tmp_path_factory.mktemp("handed-out") / "model"
    save_folder(parts, folder)
    return folder


@pytest.fixture(scope="module")
def ours(folder: Path) -> BatchingPipeline:
    return BatchingPipeline.from_parts(load(folder))


@pytest.fixture(scope="module")
def stock(folder: Path) -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def difference(
    ours: BatchingPipeline,
    stock: StableDiffusionPipeline,
    name: Scheduler,
    scheduler: Any,
    steps: int = STEPS,
) -> float:
    """The largest of all pixels and colours, of 255."""
    request = small_request(
        prompt=PROMPT, seed=SEED, scheduler=name,
        num_inference_steps=steps, guidance_scale=GUIDANCE,
    )  # fmt: skip
    (image,) = drawn_images(
        generate(
            ours,
            [structs.replace(request, side=SIDE)],
            clip_skip=0,
            on_step=lambda _step, _steps: None,
        )
    )
    stock.scheduler = scheduler
    theirs = stock(
        PROMPT, width=SIDE, height=SIDE, num_inference_steps=steps, guidance_scale=GUIDANCE,
        generator=torch.Generator("cpu").manual_seed(SEED), output_type="np",
    ).images[0]  # fmt: skip
    return float(np.abs(theirs * 255 - np.asarray(image)).max())


def counterpart(name: Scheduler, folder: Path) -> Any:
    """The stock class with the folder's configuration."""
    config = DDIMScheduler.load_config(folder / "scheduler", local_files_only=True)
    return getattr(diffusers, stock_class(name)).from_config(config, **SAME_CHANGES.get(name, {}))


@pytest.mark.parametrize("name", few("DDIM", "EULER-A", "K-LMS", "PNDM", of=COUNTERPARTS))
def test_the_stock_class_draws_from_our_folder_what_we_drew_with_the_same_seed(
    ours: BatchingPipeline, stock: StableDiffusionPipeline, folder: Path, name: Scheduler
) -> None:
    assert difference(ours, stock, name, counterpart(name, folder)) <= ONE


@pytest.mark.parametrize("name", ["DDIM", "EULER-A", "K-LMS"])
def test_so_it_does_with_steps_that_do_not_divide_the_timesteps(
    ours: BatchingPipeline, stock: StableDiffusionPipeline, folder: Path, name: Scheduler
) -> None:
    assert difference(ours, stock, name, counterpart(name, folder), OTHER_STEPS) <= ONE


def test_the_classes_that_do_not_draw_the_same_are_those_that_the_page_names(
    ours: BatchingPipeline, stock: StableDiffusionPipeline, folder: Path
) -> None:
    config = counterpart("PNDM", folder).config
    ddim = DDIMScheduler.from_config(config, set_alpha_to_one=True)

    assert difference(ours, stock, "DDIM", ddim) <= ONE
    assert difference(ours, stock, "DDIM", ddim, OTHER_STEPS) > ONE
    assert difference(ours, stock, "PNDM", counterpart("PNDM", folder), OTHER_STEPS) > ONE
    assert difference(ours, stock, "IPNDM", counterpart("IPNDM", folder)) > ONE
    assert SAME.keys() == {"DDIM", "PNDM", *WITHOUT}
    assert "".join(same_seed_rows()) in PAGE.read_text()


def test_whatever_the_base_models_class_the_folder_says_how_we_draw(tmp_path: Path) -> None:
    parts = load(TINY_FOLDER)
    for kind in (
        "PNDMScheduler",
        "LMSDiscreteScheduler",
        "DDIMScheduler",
        "DPMSolverSinglestepScheduler",
    ):
        parts.scheduler_config["_class_name"] = kind
        save_folder(parts, tmp_path / kind)

        saved = json.loads((tmp_path / kind / "scheduler/scheduler_config.json").read_text())

        assert saved["_class_name"] == kind
        assert saved["timestep_spacing"] == "trailing"
        assert (saved["clip_sample"], saved["skip_prk_steps"]) == (False, True)
        assert saved["beta_end"] == parts.scheduler_config["beta_end"]
