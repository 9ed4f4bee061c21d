"""Models as people bring them: with tensors to spare, parts missing, or other than they seem."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from services.fetcher.models.configured_model import TINY_FOLDER
from services.fetcher.parsing.models.diffusers_folder import validate_diffusers_folder
from shared.diffusion.loading import Parts, load
from shared.errors import Refused
from tests.support.in_process_parser import ignored
from tests.support.servers.web import Web
from tests.support.staging import Stage, copied, same, tensors_of, zipped

State = dict[str, torch.Tensor]

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4" * 64 + b"\nsize 9\n"


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


@pytest.fixture(scope="module")
def tiny() -> Parts:
    return load(TINY_FOLDER)


@pytest.fixture(scope="module")
def tensors(tiny: Parts) -> State:
    return tensors_of(tiny)


def file_of(tensors: State, folder: Path, suffix: str) -> Path:
    path = folder / f"m.{suffix}"
    if suffix == "ckpt":
        torch.save({"state_dict": tensors}, path)
    else:
        save_file(tensors, path)
    return path


# --- Tensors to spare -------------------------------------------------------------------------

TO_SPARE = (
    "cond_stage_model.transformer.text_projection.weight",
    "cond_stage_model.transformer.logit_scale",
    "cond_stage_model.transformer.vision_model.embeddings.class_embedding",
    "first_stage_model.loss.logvar",
    "first_stage_model.loss.discriminator.main.0.weight",
    "first_stage_model.loss.discriminator.main.3.num_batches_tracked",
    "first_stage_model.model_ema.decay",
)


@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
async def test_a_folder_inside_a_single_file_is_warned_of(
    stage: Stage, web: Web, tensors: State, suffix: str
) -> None:
    url = web.serve("/m", file_of(tensors, stage.folder, suffix))

    await stage(url, subfolder="v1")

    assert stage.warnings == (f"hf_repo_subfolder v1 has no effect: {url} is a single file",)


@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
async def test_what_a_network_was_trained_with_is_ignored_without_a_word(
    stage: Stage, web: Web, tiny: Parts, tensors: State, suffix: str
) -> None:
    more = {name: torch.ones(3) for name in TO_SPARE}

    prefix = await stage(web.serve("/m", file_of(tensors | more, stage.folder, suffix)))

    assert same(await stage.loaded(prefix), tiny)
    assert stage.warnings == ()


async def test_tensors_that_no_network_has_a_place_for_are_ignored_and_named_in_a_warning(
    stage: Stage, web: Web, tiny: Parts, tensors: State
) -> None:
    more = {f"model.diffusion_model.extra.{n}": torch.ones(3) for n in range(5)}
    more |= {"first_stage_model.hook": torch.ones(3), "model_ema.decay": torch.ones(1)}

    prefix = await stage(web.serve("/m", file_of(tensors | more, stage.folder, "safetensors")))

    assert same(await stage.loaded(prefix), tiny)
    (warning,) = stage.warnings
    assert "/m: ignored, as Stable Diffusion has no such tensors: first_stage_model.hook" in warning
    assert warning.endswith(
        "model.diffusion_model.extra.0, model.diffusion_model.extra.1 and 3 more"
    )


@pytest.mark.parametrize(
    "name",
    [
        "model.diffusion_model.label_emb.0.0.weight",
        "model.diffusion_model.middle_block.1.transformer_blocks.1.norm1.bias",
        "first_stage_model.encoder.down.3.attn.0.q.weight",
    ],
)
async def test_tensors_that_another_kind_of_network_computes_with_are_refused(
    stage: Stage, web: Web, tensors: State, name: str
) -> None:
    more = {name: torch.ones(3)}

    with pytest.raises(Refused, match=f"{name} is not known in Stable Diffusion 1 or 2: this is"):
        await stage(web.serve("/m", file_of(tensors | more, stage.folder, "safetensors")))


# --- Parts missing ----------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
async def test_a_file_without_a_vae_gets_the_configured_base_models_with_a_warning(
    stage: Stage, web: Web, tiny: Parts, tensors: State, suffix: str
) -> None:
    without = {
        name: each.half() for name, each in tensors.items() if not name.startswith("first_stage")
    }
    without["first_stage_model.loss.logvar"] = torch.ones(())
    url = web.serve("/m", file_of(without, stage.folder, suffix))

    found = await stage.loaded(await stage(url))

    assert stage.warnings == (f"{url}: it has no VAE, and gets the configured base model's",)
    assert same(found, tiny)
    assert found.vae.config.scaling_factor == tiny.vae.config.scaling_factor
    assert found.vae.config.norm_num_groups == tiny.vae.config.norm_num_groups


async def test_a_base_model_whose_vae_has_old_names_lends_it_too(
    stage: Stage, web: Web, tiny: Parts, tensors: State, tmp_path: Path
) -> None:
    base = copied(TINY_FOLDER, tmp_path / "base")
    path = base / "vae/diffusion_pytorch_model.safetensors"
    new = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    state = load_file(path)
    for now, old in new.items():
        state = {name.replace(now, old): each for name, each in state.items()}
    save_file(state, path)
    without = {name: each for name, each in tensors.items() if not name.startswith("first_stage")}
    url = web.serve("/m", file_of(without, stage.folder, "safetensors"))

    prefix = await stage(url, models=stage.of(str(base)))

    assert same(await stage.loaded(prefix), tiny)


async def test_a_base_model_of_another_kind_of_vae_lends_none(
    stage: Stage, web: Web, tensors: State, tmp_path: Path
) -> None:
    base = copied(TINY_FOLDER, tmp_path / "base")
    config = base / "vae/config.json"
    config.write_text(
        config.read_text().replace('"use_quant_conv": true', '"use_quant_conv": false')
    )
    without = {name: each for name, each in tensors.items() if not name.startswith("first_stage")}
    url = web.serve("/m", file_of(without, stage.folder, "safetensors"))

    with pytest.raises(
        Refused, match=r"/m: it has no vae .*, and the configured base model has none"
    ):
        await stage(url, models=stage.of(str(base)))


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("unet/diffusion_pytorch_model", "mid_block.attentions.0.proj_in.weight"),
        ("vae/diffusion_pytorch_model", "decoder.conv_out.bias"),
        ("text_encoder/model", "encoder.layers.3.mlp.fc1.weight"),
    ],
)
async def test_a_folder_whose_network_lacks_a_tensor_is_refused_before_it_is_staged(
    stage: Stage, web: Web, tmp_path: Path, file: str, name: str
) -> None:
    folder = copied(TINY_FOLDER, tmp_path / "model")
    path = folder / f"{file}.safetensors"
    state = load_file(path)
    lacking = {each: tensor for each, tensor in state.items() if not each.endswith(name)}
    assert len(lacking) == len(state) - 1
    save_file(lacking, path)

    with pytest.raises(
        Refused, match=rf"{file}\.safetensors: 1 of .* are missing, the first {name}"
    ):
        await stage(web.serve("/m.zip", zipped(folder, tmp_path / "m.zip")))
    assert [entry async for entry in stage.store.list("")] == []


async def test_a_folder_with_tensors_to_spare_is_taken_with_a_warning(
    stage: Stage, web: Web, tiny: Parts, tmp_path: Path
) -> None:
    folder = copied(TINY_FOLDER, tmp_path / "model")
    path = folder / "unet/diffusion_pytorch_model.safetensors"
    save_file(load_file(path) | {"extra": torch.ones(1)}, path)

    prefix = await stage(web.serve("/m.zip", zipped(folder, tmp_path / "m.zip")))

    assert same(await stage.loaded(prefix), tiny)
    (warning,) = stage.warnings
    assert "unet/diffusion_pytorch_model.safetensors: ignored, as Stable Diffusion" in warning


# --- Other than they seem ---------------------------------------------------------------------


async def test_a_git_lfs_pointer_is_refused_with_what_to_do(stage: Stage, web: Web) -> None:
    with pytest.raises(Refused, match=r"/m: .*Git LFS pointer.* \.\.\./resolve/\.\.\. in place of"):
        await stage(web.serve("/m", POINTER))


@pytest.mark.parametrize(
    "name", ["unet/diffusion_pytorch_model.safetensors", "tokenizer/tokenizer.json"]
)
def test_so_is_one_in_a_folder_that_was_cloned_without_its_files(tmp_path: Path, name: str) -> None:
    folder = copied(TINY_FOLDER, tmp_path / "model")
    (folder / name).write_bytes(POINTER)

    with pytest.raises(Refused, match=f"the model: .*{name}.*Git LFS pointer.*`git lfs pull`"):
        validate_diffusers_folder(folder, "the model", ignored)


@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
@pytest.mark.parametrize(
    ("dtype", "shown"), [(torch.float8_e4m3fn, "F8_E4M3"), (torch.float8_e5m2, "F8_E5M2")]
)
async def test_weights_of_eight_bits_are_refused_with_the_types_that_are_taken(
    stage: Stage, web: Web, tensors: State, dtype: torch.dtype, shown: str, suffix: str
) -> None:
    small = {name: tensor.to(dtype) for name, tensor in tensors.items()}

    with pytest.raises(
        Refused, match=rf"is of type {shown}; expected F64, F32, F16 or BF16: .*fp16"
    ):
        await stage(web.serve("/m", file_of(small, stage.folder, suffix)))


def test_so_are_those_of_a_folder(tmp_path: Path, tiny: Parts) -> None:
    folder = copied(TINY_FOLDER, tmp_path / "model")
    state = {name: each.to(torch.float8_e4m3fn) for name, each in tiny.unet.state_dict().items()}
    save_file(state, folder / "unet/diffusion_pytorch_model.safetensors")

    with pytest.raises(Refused, match=r"the model: unet/.* is of type F8_E4M3; expected F64"):
        validate_diffusers_folder(folder, "the model", ignored)


def test_so_are_those_smaller_than_a_byte(tmp_path: Path) -> None:
    folder = copied(TINY_FOLDER, tmp_path / "model")
    header = b'{"w":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}'
    file = folder / "unet/diffusion_pytorch_model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + b"0")

    with pytest.raises(Refused, match=r"the model: unet/.*: w is of type F4; expected F64"):
        validate_diffusers_folder(folder, "the model", ignored)
