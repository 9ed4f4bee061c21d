"""A card that a trainer fills; the driver's answers are played, and the card is the processor."""

from __future__ import annotations

import gc
import os
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch
from PIL import Image

from services.inferencer.generation import pipeline_cache
from services.inferencer.generation.batching_pipeline import BatchingPipeline
from services.inferencer.generation.child import CUT_OFF, ON_THE_PROCESSOR, carry_out
from services.inferencer.generation.model_files import ModelFiles
from services.inferencer.generation.pipeline_cache import PipelineCache, idle_bytes
from services.inferencer.order import GenerationOrder, Provenance
from shared.child.process import RecordWriter
from shared.child.records import AnyRecord, Done, Phase
from shared.dataset.card_memory import DRAWN_BYTES, GIB, SPARE, drawing_memory, drawing_weights
from shared.diffusion.loading import load
from shared.diffusion.memory import CardMemory
from tests.support.drawing import SIDE, small_request
from tests.support.models import make_random_model

Play = Callable[..., None]
DRAWING = drawing_memory(SIDE * SIDE, 1)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_random_model(tmp_path / "model")


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Play:
    """Play how many bytes are available, answer by answer; the last one stays."""

    def play(*available: int) -> None:
        answers = [*available]

        def card_memory(_device: torch.device) -> CardMemory:
            left = answers.pop(0) if len(answers) > 1 else answers[0]
            return CardMemory(left, 20 * GIB, 24 * GIB)

        monkeypatch.setattr(pipeline_cache, "card_memory", card_memory)

    return play


@pytest.fixture
def cache() -> PipelineCache:
    return PipelineCache(torch.device("cpu"))


def another_architecture(model: Path) -> Path:
    other = model.with_name("other")
    shutil.copytree(model, other)
    config = other / "unet" / "config.json"
    fields = msgspec.json.decode(config.read_bytes())
    config.write_bytes(msgspec.json.encode({**fields, "sample_size": 17}))
    return other


def test_there_is_room_for_a_model_and_one_image_or_there_is_none(
    cache: PipelineCache, model: Path, driver: Play
) -> None:
    weights = drawing_weights(load(model).parameters)
    driver(weights + DRAWING)
    assert cache.has_room(model, (SIDE, SIDE))
    assert not cache.has_room(model, (2 * SIDE, SIDE)), "a larger image takes more"
    driver(weights + DRAWING - 1)
    assert not cache.has_room(model, (SIDE, SIDE))

    cache.load(model)

    driver(DRAWING)
    assert cache.has_room(model, (SIDE, SIDE)), "its weights are on the card already"


def test_parameters_are_counted_without_loading_the_model(model: Path) -> None:
    counted = ModelFiles(model, None, torch.float16).count_parameters()

    assert counted == pytest.approx(sum(load(model).parameters.values()), rel=0.01)


def test_models_that_are_kept_for_later_go_before_the_processor_has_to_draw(
    cache: PipelineCache, model: Path, driver: Play
) -> None:
    idle = weakref.ref(cache.load(another_architecture(model)).pipe.unet)
    driver(0, GIB)

    assert cache.has_room(model, (SIDE, SIDE))
    gc.collect()
    assert idle() is None


def test_between_orders_no_more_is_kept_than_a_training_has_room_beside(
    cache: PipelineCache, model: Path
) -> None:
    kept = weakref.ref(cache.load(model).pipe.unet)
    cache.give_back()
    gc.collect()
    assert kept() is not None

    cache.idle_bytes = 1
    cache.give_back()
    gc.collect()
    assert kept() is None


@pytest.mark.parametrize(("gibibytes", "kept"), [(11.8, 0.3), (23.7, 12.2), (8.0, 0.0)])
def test_how_much_is_kept_follows_from_the_card_s_size(
    monkeypatch: pytest.MonkeyPatch, gibibytes: float, kept: float
) -> None:
    monkeypatch.setattr(pipeline_cache, "total_memory", lambda _: int(gibibytes * GIB))

    found = idle_bytes(torch.device("cuda", 0))

    assert found is not None
    assert found / GIB == pytest.approx(kept, abs=0.06)
    assert idle_bytes(torch.device("cpu")) is None


# --- Batches ----------------------------------------------------------------------------------


def test_the_first_batch_is_as_large_as_what_is_free(
    cache: PipelineCache, model: Path, driver: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline_cache, "kind_of", lambda _: "of a size that was counted")
    pipeline = cache.load(model)
    driver(SPARE + 3 * DRAWN_BYTES * SIDE * SIDE)
    assert pipeline.batch_size((SIDE, SIDE)) == 3
    assert pipeline.batch_size((2 * SIDE, 2 * SIDE)) == 1
    driver(24 * GIB)
    assert pipeline.batch_size((SIDE, SIDE)) == 4


def test_other_models_go_before_a_batch_is_made_smaller(model: Path) -> None:
    pipeline = BatchingPipeline.from_parts(load(model))
    room = [1]
    pipeline.room_for = lambda _size, most: min(most, room[0])

    def free_memory() -> bool:
        room[0] = 4
        return True

    pipeline.free_memory = free_memory
    assert pipeline.batch_size((SIDE, SIDE)) == 4


def test_of_networks_that_were_not_counted_the_usual_batch_is_tried(
    cache: PipelineCache, model: Path, driver: Play
) -> None:
    driver(0)

    assert cache.load(model).batch_size((SIDE, SIDE)) == 4


# --- The processor ----------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")
def test_what_the_card_has_no_room_for_is_drawn_on_the_processor_and_said_so(
    cache: PipelineCache, model: Path, tmp_path: Path, driver: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    phases: list[str] = []

    def write(_writer: RecordWriter, record: AnyRecord) -> None:
        if isinstance(record, Phase):
            phases.append(record.name)

    def drawn(name: str) -> tuple[Done, bytes]:
        (tmp_path / name).mkdir()
        order = GenerationOrder(
            model=str(model), requests=(small_request(),), clip_skip=0,
            provenance=Provenance(job="job"), out=str(tmp_path / name),
        )  # fmt: skip
        done = carry_out(order, cache, RecordWriter(-1))
        assert isinstance(done, Done)
        return done, Image.open(tmp_path / name / "0000.png").tobytes()

    monkeypatch.setattr(RecordWriter, "write", write)
    driver(0)
    done, pixels = drawn("full")
    assert done.summary == {"images": 1, "warnings": [ON_THE_PROCESSOR]}
    assert phases == ["loading the trained model", "drawing on the processor"]
    assert not cache._cached, "nothing was loaded on the card"

    driver(24 * GIB)
    again, same = drawn("free")
    assert again.summary == {"images": 1, "warnings": []}
    assert same == pixels
    assert phases[2:] == ["loading the trained model", "drawing"]


@pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")
def test_a_prompt_whose_end_is_cut_off_is_a_warning(
    cache: PipelineCache, model: Path, tmp_path: Path, driver: Play
) -> None:
    driver(24 * GIB)
    request = small_request()
    long = msgspec.structs.replace(
        request, inference=msgspec.structs.replace(request.inference, prompt="a red wall, " * 800)
    )
    order = GenerationOrder(
        model=str(model), requests=(long, request), clip_skip=0,
        provenance=Provenance(job="job"), out=str(tmp_path),
    )  # fmt: skip

    done = carry_out(order, cache, RecordWriter(os.open(os.devnull, os.O_WRONLY)))

    assert isinstance(done, Done)
    (warning,) = done.summary["warnings"]
    assert warning.startswith(f"{CUT_OFF}: 'a red wall, a red wall, ")
