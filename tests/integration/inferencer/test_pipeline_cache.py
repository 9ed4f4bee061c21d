"""Several models loaded in turn: each has exactly its own weights, and little is read."""

from __future__ import annotations

import asyncio
import gc
import json
import shutil
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from services.inferencer.generation import model_files
from services.inferencer.generation.batching_pipeline import BatchingPipeline
from services.inferencer.generation.generate import FailedImage, generate
from services.inferencer.generation.model_files import NETWORKS
from services.inferencer.generation.pipeline_cache import PipelineCache, total_memory
from services.inferencer.generation.schedulers import make_scheduler
from services.inferencer.order import ImageRequest
from shared.diffusion import saving, single_file
from shared.diffusion.loading import Parts, load
from shared.diffusion.lora import fresh_lora
from shared.diffusion.lora_file import lora_tensors
from shared.diffusion.noise import seeded
from shared.diffusion.saving import save_folder, stock_pipeline
from shared.diffusion.single_file import export
from shared.diffusion.weights import load_in_place, save_weights
from shared.errors import Refused
from shared.request import LoraShape
from shared.storage.cache import cached_folder
from shared.storage.folders import upload_folder
from shared.storage.manifest import LORA, SINGLE_FILE
from tests.support.drawing import drawn_images, small_request
from tests.support.forms import few
from tests.support.models import random_parts
from tests.support.workers import folder_store

State = dict[str, torch.Tensor]


def moved(*networks: str, seed: int = 1, prediction_type: str = "epsilon") -> Parts:
    """The random model with some of its networks changed, as if trained."""
    parts = random_parts(prediction_type)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name in networks:
            for weight in getattr(parts, name).parameters():
                weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.02)
    return parts


@pytest.fixture(scope="module", autouse=True)
def _saved_without_a_look() -> Iterator[None]:
    """What is saved here is loaded by the tests, and need not be loaded to see that it can be."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saving, "check_folder", lambda *_: None)
        yield


def saved(parts: Parts, folder: Path, *, dtype: torch.dtype = torch.float32) -> Path:
    save_folder(parts, folder, dtype=dtype)
    return folder


def as_single_file(folder: Path, parts: Parts, *, dtype: torch.dtype = torch.float32) -> Path:
    """Convert the folder to the single-file form."""
    for weights in folder.glob("*/*.safetensors"):
        weights.unlink()
    export(parts, folder / SINGLE_FILE, dtype=dtype)
    return folder


def snapshot(folder: Path, parts: Parts, *networks: str) -> Path:
    save_weights({name: getattr(parts, name) for name in networks}, folder)
    return folder


def states(pipeline: BatchingPipeline) -> dict[str, State]:
    return {name: getattr(pipeline.pipe, name).state_dict() for name in NETWORKS}


def expected(parts: Parts, *, rounded: bool = False) -> dict[str, State]:
    each = {name: getattr(parts, name).state_dict() for name in NETWORKS}
    if not rounded:
        return each
    return {name: {k: v.half().float() for k, v in state.items()} for name, state in each.items()}


def same(one: dict[str, State], other: dict[str, State]) -> bool:
    return all(
        one[name].keys() == other[name].keys()
        and all(torch.equal(one[name][key], other[name][key]) for key in one[name])
        for name in NETWORKS
    )


@pytest.fixture
def cache() -> PipelineCache:
    return PipelineCache(torch.device("cpu"))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record what is read from disk: one network's file or part of a file, or a whole model."""
    read: list[str] = []

    def noted_load_in_place(network: torch.nn.Module, file: Path, dtype: torch.dtype) -> None:
        read.append(file.parent.name)
        load_in_place(network, file, dtype)

    def noted_load(folder: Path, dtype: torch.dtype) -> Parts:
        read.append("whole")
        return load(folder, dtype)

    def noted_load_of_one(network: torch.nn.Module, file: Path, dtype: torch.dtype) -> bool:
        read.append(f"its {type(network).__name__}")
        return single_file.load_in_place(network, file, dtype)

    monkeypatch.setattr(model_files, "load_in_place", noted_load_in_place)
    monkeypatch.setattr(model_files, "load_of_one", noted_load_of_one)
    monkeypatch.setattr(model_files, "load", noted_load)
    return read


def test_the_next_model_replaces_the_last_in_the_same_modules(
    cache: PipelineCache, read: list[str], tmp_path: Path
) -> None:
    one, other = moved("unet"), moved("unet", "text_encoder", "vae", seed=2)
    first = saved(one, tmp_path / "one")
    second = saved(other, tmp_path / "other")
    untouched = {file: file.read_bytes() for file in tmp_path.rglob("*.safetensors")}

    pipeline = cache.load(first)
    modules = [getattr(pipeline.pipe, name) for name in NETWORKS]
    assert same(states(pipeline), expected(one))

    for folder, parts in ((second, other), (first, one), (first, one)):
        again = cache.load(folder)
        assert same(states(again), expected(parts))
        assert [getattr(again.pipe, name) for name in NETWORKS] == modules

    assert read == ["whole", *NETWORKS, *NETWORKS]
    assert all(file.read_bytes() == content for file, content in untouched.items())


def test_a_network_that_is_loaded_already_is_not_read_again_whatever_folder_it_is_in(
    cache: PipelineCache, read: list[str], tmp_path: Path
) -> None:
    """Folders from the store have a manifest with each file's sha256."""
    store = folder_store(tmp_path / "store")

    async def through_the_store(name: str, parts: Parts) -> Path:
        await upload_folder(store, saved(parts, tmp_path / name), name)
        return await cached_folder(store, name, tmp_path / "cache")

    one, other = moved("unet"), moved("unet", seed=2)
    first, second = (
        asyncio.run(through_the_store(*each)) for each in (("one", one), ("other", other))
    )
    cache.load(first)
    read.clear()

    pipeline = cache.load(second)

    assert same(states(pipeline), expected(other))
    assert read == ["unet"]


def test_a_file_that_was_replaced_is_read_again(
    cache: PipelineCache, read: list[str], tmp_path: Path
) -> None:
    folder = saved(moved("unet"), tmp_path / "model")
    cache.load(folder)
    read.clear()
    other = moved("unet", "vae", seed=2)
    saved(other, folder)

    assert same(states(cache.load(folder)), expected(other))


def test_scheduler_and_prediction_belong_to_the_model_not_to_its_architecture(
    cache: PipelineCache, tmp_path: Path
) -> None:
    noise = saved(moved("unet"), tmp_path / "noise")
    velocity = saved(moved("unet", prediction_type="v_prediction"), tmp_path / "velocity")

    told = [
        (pipeline.pipe, pipeline.parts.scheduler_config["prediction_type"])
        for pipeline in map(cache.load, (noise, velocity, noise))
    ]

    assert [kind for _, kind in told] == ["epsilon", "v_prediction", "epsilon"]
    assert len({id(pipe) for pipe, _ in told}) == 1


def test_a_snapshot_is_laid_over_its_base_and_only_what_differs_is_read(
    cache: PipelineCache, read: list[str], tmp_path: Path
) -> None:
    """With a snapshot everything is rounded as in a saved model, so that rows match results."""
    base, trained, further = random_parts(), moved("unet", "text_encoder"), moved("unet", seed=2)
    folder = saved(base, tmp_path / "base")
    both = snapshot(tmp_path / "both", trained, "unet", "text_encoder")
    unet = snapshot(tmp_path / "unet", further, "unet")
    assert same(states(cache.load(folder)), expected(base))
    read.clear()

    pipeline = cache.load(folder, both)
    assert same(states(pipeline), expected(trained, rounded=True))
    assert read == ["both", "vae", "both"]
    read.clear()

    assert same(states(cache.load(folder, unet)), expected(further, rounded=True))
    assert read == ["unet", "text_encoder"], "its text encoder is the base's"
    read.clear()

    assert same(states(cache.load(folder)), expected(base))
    assert read == list(NETWORKS), "not rounded any more"


def test_a_snapshot_may_be_the_first_that_is_asked_for(
    cache: PipelineCache, tmp_path: Path
) -> None:
    folder, trained = saved(random_parts(), tmp_path / "base"), moved("text_encoder")

    pipeline = cache.load(folder, snapshot(tmp_path / "s", trained, "text_encoder"))

    assert same(states(pipeline), expected(trained, rounded=True))
    assert {each.dtype for state in states(pipeline).values() for each in state.values()} == {
        torch.float32
    }


@pytest.mark.parametrize(
    "dtype", few(torch.float16, of=[torch.float64, torch.float32, torch.float16, torch.bfloat16])
)
@pytest.mark.parametrize("form", ["folder", "one file", "older names"])
def test_a_snapshot_without_files_is_the_base_as_a_training_begins_with_it(
    cache: PipelineCache, tmp_path: Path, form: str, dtype: torch.dtype
) -> None:
    parts = moved(*NETWORKS).to(torch.device("cpu"), torch.float64)
    parts.unet.conv_out.bias.data.fill_(1 + 2**-11 + 2**-40)  # matters if rounded in two steps
    base = saved(parts, tmp_path / "base", dtype=dtype)
    if form == "one file":
        as_single_file(base, parts, dtype=dtype)
    elif form == "older names":
        with_older_names(base)
    begun = load(base)
    (tmp_path / "empty").mkdir()
    full = snapshot(tmp_path / "full", begun, "unet", "text_encoder")
    cache.load(saved(random_parts(), tmp_path / "other"))

    pipeline = cache.load(base, tmp_path / "empty")
    assert same(states(pipeline), expected(begun, rounded=True))
    assert same(states(PipelineCache(torch.device("cpu")).load(base, full)), states(pipeline))


def test_a_base_in_one_file_and_one_under_older_names_take_part(
    cache: PipelineCache, read: list[str], tmp_path: Path
) -> None:
    plain, single, older = moved("unet"), moved("unet", "vae", seed=2), moved("vae", seed=3)
    first = saved(plain, tmp_path / "plain")
    second = as_single_file(saved(single, tmp_path / "single"), single)
    third = saved(older, tmp_path / "older")
    with_older_names(third)
    cache.load(first)
    read.clear()

    assert same(states(cache.load(second)), expected(single))
    assert read == ["its UNet2DConditionModel", "its AutoencoderKL", "its CLIPTextModel"]
    assert same(states(cache.load(first)), expected(plain))
    read.clear()
    assert same(states(cache.load(third)), expected(older))
    assert read == ["unet", "whole", "text_encoder"], "the words of its VAE are older"


def with_older_names(folder: Path) -> None:
    """Older names that hubs still have: a deeper text encoder, other words for attention."""
    text = folder / "text_encoder" / "model.safetensors"
    deeper = {f"text_model.{name}": each for name, each in load_file(text).items()}
    deeper["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(deeper, text, {"format": "pt"})
    vae = folder / "vae" / "diffusion_pytorch_model.safetensors"
    words = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = load_file(vae)
    for new, old in words.items():
        renamed = {name.replace(f".{new}.", f".{old}."): each for name, each in renamed.items()}
    assert renamed.keys() != load_file(vae).keys()
    save_file(renamed, vae, {"format": "pt"})


@pytest.mark.parametrize("damage", ["a weight less", "another shape", "half a file"])
def test_a_model_that_cannot_be_loaded_leaves_no_mixture_behind(
    cache: PipelineCache, read: list[str], tmp_path: Path, damage: str
) -> None:
    """Its UNet is loaded already when the text encoder turns out to be broken."""
    sound, broken = moved("unet"), moved("unet", "text_encoder", "vae", seed=2)
    first, second = saved(sound, tmp_path / "sound"), saved(broken, tmp_path / "broken")
    file = second / "text_encoder" / "model.safetensors"
    damage_file(file, damage)
    kept = weakref.ref(cache.load(first).pipe.unet)
    read.clear()

    with pytest.raises(Refused, match="the base model's text_encoder"):
        cache.load(second)

    assert read == ["unet", "vae", "whole"]
    gc.collect()
    assert kept() is None
    assert same(states(cache.load(first)), expected(sound))


def test_half_a_single_file_is_refused_and_leaves_no_mixture_behind(
    cache: PipelineCache, tmp_path: Path
) -> None:
    sound, broken = moved("unet"), moved("unet", "vae", seed=2)
    first = saved(sound, tmp_path / "sound")
    second = as_single_file(saved(broken, tmp_path / "broken"), broken)
    damage_file(second / SINGLE_FILE, "half a file")
    cache.load(first)

    with pytest.raises(Refused, match="the base model cannot be loaded"):
        cache.load(second)

    assert same(states(cache.load(first)), expected(sound))


def damage_file(file: Path, damage: str) -> None:
    if damage == "half a file":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        return
    state = load_file(file)
    name = next(name for name in state if name.endswith("final_layer_norm.bias"))
    weight = state.pop(name)
    if damage == "another shape":
        state[name] = weight[:-1].clone()
    save_file(state, file, {"format": "pt"})


def test_a_snapshot_of_another_model_is_refused_by_name_and_the_next_is_right(
    cache: PipelineCache, tmp_path: Path
) -> None:
    base = saved(random_parts(), tmp_path / "base")
    other = snapshot(tmp_path / "other", random_parts(layers=2), "unet")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "unet.safetensors").write_bytes(b"no weights")
    trained = moved("unet")

    with pytest.raises(Refused, match=r"the snapshot's unet cannot be loaded: .* expected missing"):
        cache.load(base, other)
    with pytest.raises(Refused, match="the snapshot's unet cannot be loaded"):
        cache.load(base, tmp_path / "torn")

    pipeline = cache.load(base, snapshot(tmp_path / "trained", trained, "unet"))
    assert same(states(pipeline), expected(trained, rounded=True))


def test_a_configuration_that_is_not_json_is_refused_by_name(
    cache: PipelineCache, tmp_path: Path
) -> None:
    folder = saved(random_parts(), tmp_path / "model")
    (folder / "vae" / "config.json").write_text("{")

    with pytest.raises(Refused, match=r"the base model's vae cannot be loaded: config\.json"):
        cache.load(folder)


# --- Eviction ---------------------------------------------------------------------------------


def architectures(folder: Path, count: int) -> list[Path]:
    """Models with different configurations and the same weights."""
    first = saved(random_parts(), folder / "0")
    for number in range(1, count):
        other = folder / str(number)
        shutil.copytree(first, other)
        config = json.loads((other / "unet" / "config.json").read_text())
        config["sample_size"] += number
        (other / "unet" / "config.json").write_text(json.dumps(config))
    return [folder / str(number) for number in range(count)]


def test_the_least_recently_used_goes_when_there_is_no_room_for_all(
    cache: PipelineCache, read: list[str], tmp_path: Path
) -> None:
    first, second, third = architectures(tmp_path, 3)
    parts = load(first)
    one = sum(
        each.nbytes for name in NETWORKS for each in getattr(parts, name).state_dict().values()
    )
    cache.max_bytes = 2 * one

    read.clear()
    for folder in (first, second, first, third, first):
        cache.load(folder)
    assert read == ["whole"] * 3
    cache.load(second)
    assert read == ["whole"] * 4, "it had to go for the third"


def test_the_one_in_use_is_kept_even_where_there_is_no_room_for_one(
    cache: PipelineCache, read: list[str], tmp_path: Path
) -> None:
    first, second = architectures(tmp_path, 2)
    cache.max_bytes = 1

    gone = weakref.ref(cache.load(first).pipe.unet)
    pipeline = cache.load(second)
    cache.load(second)

    gc.collect()
    assert gone() is None
    assert read == ["whole", "whole"]
    assert not pipeline.free_memory(), "there is no other to let go of"


def test_drawing_that_lacks_memory_makes_the_idle_ones_go(
    cache: PipelineCache, tmp_path: Path
) -> None:
    first, second = architectures(tmp_path, 2)
    idle = weakref.ref(cache.load(first).pipe.unet)
    used = cache.load(second)

    assert used.free_memory()

    gc.collect()
    assert idle() is None
    assert not used.free_memory()
    assert cache.load(second) is used


def test_the_bound_is_a_part_of_the_memory_that_the_machine_says_it_has(
    cache: PipelineCache,
) -> None:
    lines = Path("/proc/meminfo").read_text().splitlines()
    kibibytes = next(int(line.split()[1]) for line in lines if line.startswith("MemTotal"))

    assert total_memory(torch.device("cpu")) == kibibytes * 1024
    assert cache.max_bytes < total_memory(cache.device)


def with_lora(folder: Path, parts: Parts, *, seed: int, name: str = LORA) -> Path:
    """Put a LoRA of every kind of layer into a model's folder, as if it had learnt something."""
    generator = torch.Generator().manual_seed(seed)
    shape = LoraShape(rank=2, alpha=3.0, conv_rank=2)
    loras = {
        kind: fresh_lora(kind, getattr(parts, kind), shape, generator)
        for kind in ("unet", "text_encoder")
    }
    for lora in loras.values():
        for weight in lora.parameters():
            weight.data = torch.randn(weight.shape, generator=generator) * 0.1
    folder.mkdir(exist_ok=True, parents=True)
    save_file(lora_tensors(loras, torch.float16), folder / name)
    return folder


def small_image(outputs: int = 1, seed: int = 7, **more: Any) -> ImageRequest:
    return small_request(
        seed=seed, num_outputs=outputs, num_inference_steps=3, scheduler="DDIM", **more
    )


def images_of(
    pipeline: BatchingPipeline, *requests: ImageRequest, weights: Sequence[float] = ()
) -> list[np.ndarray[Any, Any]]:
    found = generate(pipeline, requests, clip_skip=0, weights=weights, on_step=lambda *_: None)
    return [np.asarray(each) for each in drawn_images(found)]


def image_of(
    pipeline: BatchingPipeline, outputs: int = 1, seed: int = 7
) -> list[np.ndarray[Any, Any]]:
    return images_of(pipeline, small_image(outputs, seed))


@pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")
@pytest.mark.usefixtures("one_thread_and_no_advice")
def test_a_lora_is_put_on_for_its_model_and_taken_off_for_the_next(
    cache: PipelineCache, tmp_path: Path
) -> None:
    parts = random_parts()
    plain, other = saved(parts, tmp_path / "plain"), saved(parts, tmp_path / "lora")
    with_lora(other, parts, seed=1)
    before = image_of(cache.load(plain))

    (changed,) = image_of(cache.load(other))

    assert np.abs(changed.astype(int) - before[0]).max() > 10
    assert np.array_equal(image_of(cache.load(plain))[0], before[0])
    assert np.array_equal(image_of(cache.load(other))[0], changed)


@pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")
@pytest.mark.usefixtures("one_thread_and_no_advice")
def test_a_snapshot_of_a_lora_draws_what_the_model_saved_at_that_step_draws(
    cache: PipelineCache, tmp_path: Path
) -> None:
    parts = random_parts()
    base, model = saved(parts, tmp_path / "base"), saved(parts, tmp_path / "model")
    snapshot = with_lora(tmp_path / "snapshot", parts, seed=1)
    shutil.copy(snapshot / LORA, model / LORA)

    (row,) = image_of(cache.load(base, snapshot))

    assert np.array_equal(image_of(cache.load(model))[0], row)


@pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")
@pytest.mark.usefixtures("one_thread_and_no_advice")
def test_with_a_lora_an_image_depends_on_its_seed_and_not_on_its_batch(
    cache: PipelineCache, tmp_path: Path
) -> None:
    folder = saved(random_parts(), tmp_path / "model")
    pipeline = cache.load(with_lora(folder, random_parts(), seed=1))

    together = image_of(pipeline, outputs=3)

    alone = [image_of(pipeline, seed=7 + number)[0] for number in range(3)]
    assert all(map(np.array_equal, together, alone))


TWO = (LORA, "lora_2.safetensors")


@pytest.fixture
def with_two(tmp_path: Path) -> Path:
    """A model's folder with two LoRAs."""
    parts, folder = random_parts(), tmp_path / "two"
    saved(parts, folder)
    for number, name in enumerate(TWO):
        with_lora(folder, parts, seed=number, name=name)
    return folder


@pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
@pytest.mark.usefixtures("one_thread_and_no_advice")
def test_several_loras_with_weights_draw_what_the_stock_pipeline_draws_with_them(
    cache: PipelineCache, with_two: Path
) -> None:
    parts = random_parts()
    stock = stock_pipeline(parts)
    stock.scheduler = make_scheduler("DDIM", parts.scheduler_config, 3)
    stock.set_progress_bar_config(disable=True)
    for name in TWO:
        stock.load_lora_weights(with_two / name, adapter_name=name.removesuffix(".safetensors"))
    stock.set_adapters(["lora", "lora_2"], [0.75, -0.5])
    request = small_image()
    inference = request.inference
    theirs = stock(
        inference.prompt,
        width=inference.width,
        height=inference.height,
        num_inference_steps=3,
        guidance_scale=inference.guidance_scale,
        generator=seeded(request.seed),
    ).images[0]

    (ours,) = images_of(cache.load(with_two, loras=TWO), request, weights=[0.75, -0.5])

    assert np.abs(ours.astype(int) - np.asarray(theirs)).max() <= 1


@pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")
@pytest.mark.usefixtures("one_thread_and_no_advice")
def test_each_entry_is_drawn_with_its_own_weights_of_the_loras(
    cache: PipelineCache, with_two: Path, tmp_path: Path
) -> None:
    plain = saved(random_parts(), tmp_path / "plain")
    (without,) = image_of(cache.load(plain))
    pipeline = cache.load(with_two, loras=TWO)
    (first,) = images_of(pipeline, small_image(), weights=[1, 0])
    (both,) = images_of(pipeline, small_image())

    mixed = images_of(
        pipeline,
        small_image(loras=[0.0, 0.0]),
        small_image(),
        small_image(loras=[1.0, 1.0]),
        weights=[1, 0],
    )

    assert not np.array_equal(first, both)
    assert all(map(np.array_equal, mixed, (without, first, both)))


@pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")
def test_an_image_that_a_lora_makes_not_a_number_says_that_it_may_be_its_weight(
    cache: PipelineCache, with_two: Path, tmp_path: Path
) -> None:
    def failure(pipeline: BatchingPipeline, weights: Sequence[float] = ()) -> str:
        (failed,) = generate(
            pipeline, [small_image()], clip_skip=0, weights=weights, on_step=lambda *_: None
        )
        assert isinstance(failed, FailedImage)
        return failed.reason

    diverged = random_parts()
    diverged.unet.conv_out.bias.data.fill_(torch.nan)

    of_a_lora = failure(cache.load(with_two, loras=TWO), [1e30, 1.0])
    of_none = failure(cache.load(saved(diverged, tmp_path / "diverged")))

    assert "a LoRA adds too much (try a smaller weight), the trained model has" in of_a_lora
    assert "LoRA" not in of_none
