"""The single file in the original key layout, checked by the stock loader."""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from services.fetcher.parsing.models.pickle_reader import read_checkpoint
from shared.diffusion.loading import NO_CHECKER, Parts, load
from shared.diffusion.saving import save_configurations, save_folder
from shared.diffusion.single_file import (
    export,
    load_in_place,
    original_layout,
    sha256_of_tensors,
)
from shared.diffusion.text_layout import is_open_clip
from shared.errors import Passing, Refused
from shared.storage.manifest import SINGLE_FILE
from tests.support.forms import few
from tests.support.models import random_parts, random_sd2_parts

Networks = dict[str, dict[str, torch.Tensor]]


def networks(parts: Parts | StableDiffusionPipeline) -> Networks:
    text = parts.text_encoder.state_dict()
    return {
        "unet": parts.unet.state_dict(),
        "vae": parts.vae.state_dict(),
        "text_encoder": {name.removeprefix("text_model."): each for name, each in text.items()},
    }


def differences(ours: Networks, theirs: Networks, dtype: torch.dtype) -> list[str]:
    assert {name: set(state) for name, state in ours.items()} == {
        name: set(state) for name, state in theirs.items()
    }
    return [
        f"{network}.{name}"
        for network, state in ours.items()
        for name, tensor in state.items()
        if not torch.equal(tensor.to(dtype), theirs[network][name])
    ]


MODELS: dict[str, Callable[[], Parts]] = {
    "one layer": random_parts,
    "two layers": partial(random_parts, layers=2),
    "SD 2": random_sd2_parts,
    "SD 2, v-prediction": partial(random_sd2_parts, "v_prediction"),
}


LAYOUTS = ("one layer", "two layers", "SD 2")


@pytest.fixture(scope="module", params=few("two layers", "SD 2", of=LAYOUTS))
def parts(request: pytest.FixtureRequest) -> Parts:
    return MODELS[request.param]()


@pytest.mark.parametrize(
    ("dtype", "suffix"),
    [
        (torch.float16, "safetensors"),
        (torch.float32, "ckpt"),
        pytest.param(torch.float16, "ckpt", marks=pytest.mark.long),
        pytest.param(torch.float32, "safetensors", marks=pytest.mark.long),
    ],
)
def test_a_stock_pipeline_loads_every_bit_of_the_single_file(
    parts: Parts, dtype: torch.dtype, suffix: str, tmp_path: Path
) -> None:
    save_folder(parts, tmp_path / "folder")
    export(parts, tmp_path / f"model.{suffix}", dtype=dtype)

    stock = StableDiffusionPipeline.from_single_file(
        str(tmp_path / f"model.{suffix}"),
        config=str(tmp_path / "folder"),
        local_files_only=True,
        torch_dtype=dtype,
        **NO_CHECKER,
    )

    assert differences(networks(parts), networks(stock), dtype) == []


def test_a_diffusers_folder_loads_to_what_was_saved(parts: Parts, tmp_path: Path) -> None:
    save_folder(parts, tmp_path / "folder", dtype=torch.float32)

    again = load(tmp_path / "folder")

    assert differences(networks(parts), networks(again), torch.float32) == []
    words = "a red cat, Blue é"
    assert again.tokenizer(words).input_ids == parts.tokenizer(words).input_ids
    assert again.scheduler_config["beta_schedule"] == "scaled_linear"
    assert (tmp_path / "folder" / "tokenizer" / "vocab.json").exists()
    assert (tmp_path / "folder" / "tokenizer" / "merges.txt").exists()


def test_a_folder_of_configurations_and_a_single_file_loads_alike(
    parts: Parts, tmp_path: Path
) -> None:
    export(parts, tmp_path / "last.safetensors", dtype=torch.float32)
    save_configurations(
        parts, tmp_path / "model", tmp_path / "last.safetensors", dtype=torch.float32
    )
    assert not list(tmp_path.glob("model/**/*.safetensors"))
    (tmp_path / "model" / SINGLE_FILE).hardlink_to(tmp_path / "last.safetensors")

    again = load(tmp_path / "model")

    assert differences(networks(parts), networks(again), torch.float32) == []


def test_a_network_takes_its_weights_out_of_a_single_file(parts: Parts, tmp_path: Path) -> None:
    """But for OpenCLIP's, whose query, key and value are one matrix there."""
    export(parts, tmp_path / "last.safetensors", dtype=torch.float32)
    others = deepcopy(parts)
    for name in ("unet", "vae", "text_encoder"):
        network = getattr(others, name)
        with torch.no_grad():
            for weight in network.parameters():
                weight.fill_(7.0)

        loaded = load_in_place(network, tmp_path / "last.safetensors", torch.float32)

        assert loaded != is_open_clip(parts.text_encoder.config) or name != "text_encoder"
        if loaded:
            theirs = getattr(parts, name).state_dict()
            assert all(torch.equal(each, theirs[key]) for key, each in network.state_dict().items())


def test_a_network_of_another_shape_takes_nothing_out_of_it(tmp_path: Path) -> None:
    export(random_parts(layers=2), tmp_path / "last.safetensors")
    other = random_parts()
    before = deepcopy(other.unet.state_dict())

    assert not load_in_place(other.unet, tmp_path / "last.safetensors", torch.float32)

    assert all(torch.equal(each, before[key]) for key, each in other.unet.state_dict().items())


def test_the_header_gives_the_title_and_the_sha256(parts: Parts, tmp_path: Path) -> None:
    export(parts, tmp_path / "model.safetensors", metadata={"modelspec.title": "a job"})

    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    assert metadata["modelspec.title"] == "a job"
    assert metadata["modelspec.hash_sha256"] == f"0x{sha256_of_tensors(tensors)}"
    attention = tensors["first_stage_model.encoder.mid.attn_1.q.weight"]
    assert attention.shape == (attention.shape[0], attention.shape[0], 1, 1)
    assert attention.dtype == torch.float16


@pytest.mark.parametrize(
    ("model", "architecture", "predicts"),
    [
        ("one layer", "stable-diffusion-v1", "epsilon"),
        ("SD 2", "stable-diffusion-v2-512", "epsilon"),
        ("SD 2, v-prediction", "stable-diffusion-v2-768-v", "v"),
    ],
)
def test_both_formats_say_which_stable_diffusion_it_is(
    tmp_path: Path, model: str, architecture: str, predicts: str
) -> None:
    for suffix in ("safetensors", "ckpt"):
        export(MODELS[model](), tmp_path / f"m.{suffix}")
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        header = file.metadata()

    assert header["modelspec.architecture"] == architecture
    assert header["modelspec.prediction_type"] == predicts
    assert torch.load(tmp_path / "m.ckpt", weights_only=True)["modelspec"] == header


def test_stable_diffusion_2_has_the_whole_tower_as_strict_loaders_build_it() -> None:
    """Fused query, key and value; the unused 24th block and projection have the right shapes."""
    parts = random_sd2_parts()
    layout = {
        name.removeprefix("cond_stage_model.model."): tensor
        for name, tensor in original_layout(parts).items()
        if name.startswith("cond_stage_model.model.")
    }

    block = "transformer.resblocks.{}.attn.in_proj_weight"
    key = parts.text_encoder.state_dict()["encoder.layers.5.self_attn.k_proj.weight"]
    assert torch.equal(layout[block.format(5)][64:128], key)
    assert sum(name.endswith("in_proj_bias") for name in layout) == 24
    assert layout[block.format(23)].shape == (192, 64)
    assert layout["text_projection"].shape == (64, 64)
    assert layout["logit_scale"].shape == ()


class Damage:
    """A disk or a library that damages what it writes."""

    def __init__(self, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
        self._change = change

    def __call__(self, tensors: dict[str, torch.Tensor], path: Path, **how: Any) -> None:
        kept = {name: each.clone() for name, each in tensors.items()}
        self._change(kept)
        save_file(kept, path, **how)


BIAS = "model.diffusion_model.out.2.bias"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda kept: kept.pop(BIAS), "is missing"),
        (lambda kept: kept[BIAS].add_(1), "differs"),
        (lambda kept: kept.update({BIAS: kept[BIAS].float()}), "differs"),
        (lambda kept: kept.update({BIAS: kept[BIAS][None]}), "differs"),
        (lambda kept: kept.update({"more": kept[BIAS].clone()}), "more differs"),
    ],
    ids=["missing", "another value", "another type", "another shape", "one too many"],
)
def test_a_file_that_does_not_read_back_as_it_was_written_is_never_put_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any, reason: str
) -> None:
    monkeypatch.setattr("shared.diffusion.single_file.save_file", Damage(change))

    with pytest.raises(Passing, match=f"m.safetensors does not read back .*{reason}"):
        export(random_parts(), tmp_path / "m.safetensors")

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda kept: kept.pop("conv_out.bias"), "does not load again: .* conv_out.bias"),
        (lambda kept: kept["conv_out.bias"].add_(1), "the saved unet .* conv_out.bias differs"),
    ],
    ids=["missing", "another value"],
)
def test_a_folder_that_does_not_load_as_it_was_written_is_never_put_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any, reason: str
) -> None:
    def damaged(tensors: dict[str, torch.Tensor], path: Path, *how: Any) -> None:
        Damage(change if path.parent.name == "unet" else lambda _: None)(
            tensors, path, metadata=how[0]
        )

    monkeypatch.setattr("shared.diffusion.saving.save_file", damaged)

    with pytest.raises(Passing, match=reason):
        save_folder(random_parts(), tmp_path / "model")

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("weight", [1e30, float("nan")])
def test_a_weight_that_is_no_number_in_half_precision_is_named_with_advice(
    tmp_path: Path, weight: float
) -> None:
    parts = random_parts()
    torch.nn.init.constant_(parts.unet.conv_out.bias, weight)

    with pytest.raises(Refused, match=rf"{BIAS} is no finite number .* save_full_precision"):
        export(parts, tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_ckpt_is_read_without_torch_by_the_fetcher(parts: Parts, tmp_path: Path) -> None:
    export(parts, tmp_path / "m.ckpt")

    with ZipFile(tmp_path / "m.ckpt") as zipped:
        read = read_checkpoint(zipped)

    layout = original_layout(parts)
    assert {name: tensor.shape for name, tensor in read.tensors.items()} == {
        name: tuple(tensor.shape) for name, tensor in layout.items()
    }


def test_an_export_that_fails_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(Exception):
        pass

    def no_space(*_: object, **__: object) -> None:
        raise Full

    monkeypatch.setattr("shared.diffusion.single_file.save_file", no_space)
    with pytest.raises(Full):
        export(random_parts(), tmp_path / "model.safetensors")

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ("unet/diffusion_pytorch_model.safetensors", "unet cannot be loaded"),
        ("vae/config.json", "vae cannot be loaded"),
        ("text_encoder/config.json", "text_encoder cannot be loaded"),
        ("scheduler/scheduler_config.json", "scheduler cannot be loaded"),
    ],
)
def test_a_missing_file_is_named(tmp_path: Path, broken: str, reason: str) -> None:
    save_folder(random_parts(), tmp_path)
    (tmp_path / broken).unlink()

    with pytest.raises(Refused, match=reason):
        load(tmp_path)


def test_a_tokenizer_without_its_words_is_refused(tmp_path: Path) -> None:
    save_folder(random_parts(), tmp_path)
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        (tmp_path / "tokenizer" / name).unlink()

    with pytest.raises(Refused, match="tokenizer"):
        load(tmp_path)


def test_a_weight_that_is_missing_is_refused(tmp_path: Path) -> None:
    save_folder(random_parts(), tmp_path)
    weights = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    del state["conv_in.weight"]
    save_file(state, weights)

    with pytest.raises(Refused, match=r"unet.*conv_in\.weight|unet cannot be loaded"):
        load(tmp_path)
