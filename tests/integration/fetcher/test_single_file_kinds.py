"""Single files of Stable Diffusion 1 and 2, of sizes that the configured base model does not have.

Their configurations come from their shapes, the tokenizer from the base model, here ``tiny``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPTokenizer

from services.fetcher.models.configured_model import TINY_FOLDER
from services.trainer.training.train import train
from shared.diffusion.loading import Parts, load
from shared.diffusion.noise import cumulative_alphas
from shared.diffusion.saving import save_folder
from shared.diffusion.single_file import export
from shared.errors import Refused
from tests.support.models import random_parts, random_sd2_parts, standard_parts
from tests.support.servers.web import Web
from tests.support.staging import Stage, same, tensors_of, zipped
from tests.support.training import RecordingCallbacks, make_dataset, training_order

LAST_BIAS = "model.diffusion_model.output_blocks.5.1.transformer_blocks.0.norm1.bias"


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def sd1() -> Parts:
    return standard_parts(tiny_tokenizer())


def sd2(prediction: str = "epsilon") -> Parts:
    return random_sd2_parts(prediction, tokenizer=tiny_tokenizer())


def tiny_tokenizer() -> CLIPTokenizer:
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(TINY_FOLDER / "tokenizer")
    return tokenizer


@cache
def tensors_of_sd1() -> dict[str, torch.Tensor]:
    return tensors_of(sd1())


@cache
def tensors_of_sd2() -> dict[str, torch.Tensor]:
    return tensors_of(sd2())


async def staged(stage: Stage, web: Web, tensors: dict[str, torch.Tensor], **header: str) -> Parts:
    save_file(tensors, stage.folder / "m.safetensors", metadata=header)
    prefix = await stage(web.serve("/m.safetensors", stage.folder / "m.safetensors"))
    return await stage.loaded(prefix)


UNET = (
    "block_out_channels", "attention_head_dim", "cross_attention_dim", "layers_per_block",
    "down_block_types", "up_block_types", "use_linear_projection", "norm_num_groups",
)  # fmt: skip
VAE = ("block_out_channels", "scaling_factor", "latent_channels", "norm_num_groups")


def numbers(config: Any, names: Collection[str]) -> dict[str, Any]:
    return {name: _plain(config[name]) for name in names}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize(
    ("make", "suffix"),
    [
        (sd1, "ckpt"),
        (sd2, "safetensors"),
        pytest.param(sd1, "safetensors", marks=pytest.mark.long),
        pytest.param(sd2, "ckpt", marks=pytest.mark.long),
    ],
)
async def test_a_single_file_brings_its_own_configurations(
    stage: Stage, web: Web, tmp_path: Path, make: Callable[[], Parts], suffix: str
) -> None:
    parts = make()
    export(parts, tmp_path / f"m.{suffix}", dtype=torch.float32)

    found = await stage.loaded(await stage(web.serve("/m", tmp_path / f"m.{suffix}")))

    assert same(found, parts)
    assert numbers(found.unet.config, UNET) == numbers(parts.unet.config, UNET)
    assert numbers(found.vae.config, VAE) == numbers(parts.vae.config, VAE)
    for name in ("hidden_act", "num_attention_heads", "num_hidden_layers", "intermediate_size"):
        assert getattr(found.text_encoder.config, name) == getattr(parts.text_encoder.config, name)
    assert found.tokenizer.pad_token == parts.tokenizer.pad_token
    assert found.prediction_type == "epsilon"


@pytest.mark.parametrize("make", [sd1, sd2], ids=["SD 1", "SD 2"])
async def test_it_computes_what_the_model_computes_that_it_was_made_from(
    stage: Stage, web: Web, make: Callable[[], Parts]
) -> None:
    """Heads, norm groups and activations are not in any tensor; only this shows a wrong one."""
    parts = make()
    found = await staged(stage, web, tensors_of(parts))

    torch.testing.assert_close(answer(found), answer(parts), rtol=0, atol=1e-4)


@torch.no_grad()
def answer(parts: Parts) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    for network in (parts.unet, parts.text_encoder):
        network.eval()
    hidden = parts.text_encoder(torch.arange(77)[None]).last_hidden_state
    noise = torch.randn(1, 4, 16, 16, generator=generator)
    predicted: torch.Tensor = parts.unet(noise, 500, hidden).sample
    return predicted


async def test_a_network_with_the_base_models_shapes_gets_the_rest_from_it_too(
    stage: Stage, web: Web
) -> None:
    """``tiny`` has an unusual scale of latents and unusual norm groups."""
    tiny = load(TINY_FOLDER)

    found = await staged(stage, web, tensors_of(tiny))

    for ours, theirs in ((found.vae, tiny.vae), (found.unet, tiny.unet)):
        assert ours.config | {"_name_or_path": ""} == theirs.config | {"_name_or_path": ""}
    assert found.text_encoder.config.num_attention_heads == 4


async def test_stable_diffusion_2_from_one_file_is_trained_and_comes_back_as_one(
    stage: Stage, web: Web, tmp_path: Path
) -> None:
    export(sd2("v_prediction"), tmp_path / "m.safetensors", dtype=torch.float32)
    prefix = await stage(web.serve("/m", tmp_path / "m.safetensors"))
    await stage.loaded(prefix)
    order = training_order(
        tmp_path / "out", dataset=make_dataset(tmp_path / "data", images=1),
        base=stage.folder / f"loaded-{stage.number}", checkpoint_format="ckpt", max_epochs=1,
    )  # fmt: skip

    outcome = train(order, RecordingCallbacks())
    again = await stage.loaded(await stage(web.serve("/again", Path(outcome.checkpoint))))

    assert outcome.checkpoint.endswith("last-job1-ep01-gs00001.ckpt")
    assert again.prediction_type == "v_prediction"
    assert same(again, load(Path(outcome.model)))


async def test_a_zipped_folder_of_stable_diffusion_2_keeps_its_prediction(
    stage: Stage, web: Web, tmp_path: Path
) -> None:
    parts = sd2("v_prediction")
    save_folder(parts, tmp_path / "model", dtype=torch.float32)

    prefix = await stage(web.serve("/m.zip", zipped(tmp_path / "model", tmp_path / "m.zip")))

    found = await stage.loaded(prefix)
    assert same(found, parts)
    assert found.prediction_type == "v_prediction"


SAYS = "modelspec.prediction_type"


@pytest.mark.parametrize(
    ("header", "extra", "predicts"),
    [
        ({}, {}, "epsilon"),
        ({SAYS: "v"}, {}, "v_prediction"),
        ({SAYS: "V-prediction"}, {}, "v_prediction"),
        ({}, {"v_pred": torch.tensor([])}, "v_prediction"),
        ({SAYS: "epsilon"}, {"v_pred": torch.tensor([])}, "epsilon"),
    ],
)
async def test_what_a_file_of_stable_diffusion_1_predicts_is_what_it_says(
    stage: Stage, web: Web, header: dict[str, str], extra: dict[str, Any], predicts: str
) -> None:
    tensors = tensors_of_sd1() | extra

    assert (await staged(stage, web, tensors, **header)).prediction_type == predicts


@pytest.mark.parametrize(
    ("dtype", "spread", "header", "predicts"),
    [
        (torch.float16, 0.03, {}, "epsilon"),
        (torch.float16, 0.2, {}, "v_prediction"),
        (torch.float16, 0.2, {SAYS: "epsilon"}, "epsilon"),
        (torch.float16, 0.03, {SAYS: "v"}, "v_prediction"),
        pytest.param(torch.float32, 0.2, {}, "v_prediction", marks=pytest.mark.long),
        pytest.param(torch.bfloat16, 0.2, {}, "v_prediction", marks=pytest.mark.long),
    ],
)
async def test_a_stable_diffusion_2_file_without_marker_is_recognized_by_its_last_norm(
    stage: Stage, web: Web, dtype: torch.dtype, spread: float, header: dict[str, str], predicts: str
) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in tensors_of_sd2().items()}
    tensors[LAST_BIAS] = torch.linspace(-1, 1, 64).mul(spread * 3**0.5).to(dtype)

    assert (await staged(stage, web, tensors, **header)).prediction_type == predicts


async def test_the_marker_of_a_schedule_that_ends_in_noise_is_respected(
    stage: Stage, web: Web
) -> None:
    markers = {"v_pred": torch.tensor([]), "ztsnr": torch.tensor([])}

    found = await staged(stage, web, tensors_of_sd2() | markers)

    assert cumulative_alphas(found.scheduler_config)[-1] == pytest.approx(0, abs=1e-6)


async def test_a_prediction_that_nobody_knows_is_refused(stage: Stage, web: Web) -> None:
    with pytest.raises(Refused, match="its header says that it predicts 'x0'; expected epsilon"):
        await staged(stage, web, tensors_of_sd2(), **{SAYS: "x0"})


async def test_a_text_encoder_of_other_words_than_the_base_models_is_refused(
    stage: Stage, web: Web
) -> None:
    with pytest.raises(Refused, match=r"knows 519 words, but .* base model, .* has 584"):
        await staged(stage, web, tensors_of(random_parts()))


async def test_parts_of_two_models_in_one_file_are_refused(stage: Stage, web: Web) -> None:
    texts = {name: each for name, each in tensors_of_sd2().items() if "cond_stage" in name}
    rest = {name: each for name, each in tensors_of_sd1().items() if "cond_stage" not in name}

    with pytest.raises(Refused, match="captions of width 128, its text encoder gives 64"):
        await staged(stage, web, rest | texts)
