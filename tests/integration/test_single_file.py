"""The single file in the original key layout, checked by the stock loader."""

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open

from shared.diffusion.loading import NO_CHECKER, SINGLE_FILE, Parts, load
from shared.diffusion.saving import save_folder
from shared.diffusion.single_file import export, sha256_of_tensors
from shared.errors import Refused
from tests.models import random_parts

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


@pytest.fixture(scope="module", params=[1, 2], ids=["one layer", "two layers"])
def parts(request: pytest.FixtureRequest) -> Parts:
    return random_parts(layers=request.param)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_stock_pipeline_loads_every_bit_of_the_single_file(
    parts: Parts, dtype: torch.dtype, tmp_path: Path
) -> None:
    save_folder(parts, tmp_path / "folder")
    export(parts, tmp_path / "model.safetensors", dtype=dtype)

    stock = StableDiffusionPipeline.from_single_file(
        str(tmp_path / "model.safetensors"),
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
    save_folder(parts, tmp_path, dtype=torch.float32)
    for weights in tmp_path.glob("*/*.safetensors"):
        weights.unlink()
    export(parts, tmp_path / SINGLE_FILE, dtype=torch.float32)

    assert differences(networks(parts), networks(load(tmp_path)), torch.float32) == []


def test_the_header_tells_what_the_file_is_and_its_sha256(parts: Parts, tmp_path: Path) -> None:
    export(parts, tmp_path / "model.safetensors", metadata={"modelspec.title": "a job"})

    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    assert metadata["modelspec.title"] == "a job"
    assert metadata["modelspec.hash_sha256"] == f"0x{sha256_of_tensors(tensors)}"
    attention = tensors["first_stage_model.encoder.mid.attn_1.q.weight"]
    assert attention.shape == (8, 8, 1, 1)
    assert attention.dtype == torch.float16


def test_an_export_that_fails_leaves_nothing_behind(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(Exception):
        pass

    def no_space(*_: object, **__: object) -> None:
        raise Full

    monkeypatch.setattr("shared.diffusion.single_file.save_file", no_space)
    with pytest.raises(Full):
        export(parts, tmp_path / "model.safetensors")

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
def test_a_missing_file_is_named(parts: Parts, tmp_path: Path, broken: str, reason: str) -> None:
    save_folder(parts, tmp_path)
    (tmp_path / broken).unlink()

    with pytest.raises(Refused, match=reason):
        load(tmp_path)


def test_a_tokenizer_without_its_words_is_refused(parts: Parts, tmp_path: Path) -> None:
    save_folder(parts, tmp_path)
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        (tmp_path / "tokenizer" / name).unlink()

    with pytest.raises(Refused, match="tokenizer"):
        load(tmp_path)


def test_a_weight_that_is_missing_is_refused(parts: Parts, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file  # noqa: PLC0415

    save_folder(parts, tmp_path)
    weights = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    del state["conv_in.weight"]
    save_file(state, weights)

    with pytest.raises(Refused, match=r"unet.*conv_in\.weight|unet cannot be loaded"):
        load(tmp_path)
