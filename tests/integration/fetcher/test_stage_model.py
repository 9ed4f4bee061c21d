"""Staging models: from a name or URL to a folder in the store that the trainer loads."""

import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from msgspec.structs import replace
from safetensors.torch import load_file, save_file

from services.fetcher.model_files import WEIGHTS
from services.fetcher.models.configured_model import TINY_FOLDER
from services.fetcher.parsing.models.diffusers_folder import (
    validate_diffusers_folder,
    vocabulary_of,
)
from shared.adapters.folder import FolderStore
from shared.diffusion.loading import Parts, load
from shared.diffusion.single_file import export, original_layout
from shared.errors import Passing, Refused, SettingsError, Unavailable
from shared.ports import StoredObject
from shared.request import LoraShape
from shared.storage.cache import cached_folder
from shared.storage.folders import upload_folder
from shared.storage.manifest import LORA, LORA_SHAPE
from tests.support.in_process_parser import ignored
from tests.support.servers.web import Web
from tests.support.staging import Stage, copied, same, tensors_of, zipped


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


@pytest.fixture(scope="module")
def tiny() -> Parts:
    return load(TINY_FOLDER)


async def objects(stage: Stage) -> tuple[list[StoredObject], float]:
    """Those of the only model in the store, and when it was last used."""
    every = [entry async for entry in stage.store.list("")]
    (used,) = [entry for entry in every if entry.key.endswith("/used")]
    return [entry for entry in every if entry != used], used.modified


@pytest.mark.parametrize("alias", ["sd_v1-5_vae.ckpt", "sd_v1-5_vae"])
async def test_the_default_name_means_the_configured_model_and_is_stored_once(
    stage: Stage, tiny: Parts, alias: str
) -> None:
    prefix = await stage(alias)

    assert prefix.startswith("cache/")
    assert same(await stage.loaded(prefix), tiny)
    before, used = await objects(stage)
    assert await stage(alias) == prefix
    after, used_again = await objects(stage)
    assert after == before
    assert used_again > used, "each use is noted"


async def test_a_configured_folder_is_staged_without_what_does_not_belong_to_the_model(
    stage: Stage, tiny: Parts, tmp_path: Path
) -> None:
    folder = copied(TINY_FOLDER, tmp_path / "model")
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker/pytorch_model.bin").write_bytes(b"pickle")
    (folder / "unet/diffusion_pytorch_model.bin").write_bytes(b"pickle")

    prefix = await stage("sd_v1-5_vae.ckpt", models=stage.of(str(folder)))

    assert prefix == await stage("sd_v1-5_vae.ckpt")
    assert same(await stage.loaded(prefix), tiny)


async def test_a_configured_folder_that_changes_is_stored_anew(
    stage: Stage, tmp_path: Path
) -> None:
    folder = copied(TINY_FOLDER, tmp_path / "model")
    models = stage.of(str(folder))
    first = await stage("sd_v1-5_vae.ckpt", models=models)
    config = folder / "scheduler/scheduler_config.json"
    config.write_text(config.read_text() + "\n")

    assert await stage("sd_v1-5_vae.ckpt", models=models) != first


async def test_a_base_model_on_the_stores_disk_takes_its_room_once_and_is_known_when_written_over(
    stage: Stage, tmp_path: Path
) -> None:
    folder, weights = copied(TINY_FOLDER, tmp_path / "model"), f"{WEIGHTS['unet']}.safetensors"
    models = stage.of(str(folder))
    prefix = await stage("sd_v1-5_vae.ckpt", models=models)
    cached = await cached_folder(stage.store, prefix, tmp_path / "cache")
    shared = (folder / weights, stage.store.path_of(f"{prefix}/{weights}"), cached / weights)
    assert len({path.stat().st_ino for path in shared}) == 1

    whole = (folder / weights).read_bytes()
    with (folder / weights).open("r+b") as file:
        file.write(whole[:-1] + bytes([whole[-1] ^ 1]))

    with pytest.raises(Unavailable, match=f"{weights}' is damaged in the store"):
        await cached_folder(stage.store, prefix, tmp_path / "cache")
    assert await stage("sd_v1-5_vae.ckpt", models=models) != prefix


async def test_a_model_of_which_a_gateway_has_deleted_files_is_stored_again(
    stage: Stage, tiny: Parts
) -> None:
    prefix = await stage("sd_v1-5_vae.ckpt")
    await stage.store.delete(f"{prefix}/unet/")

    assert await stage("sd_v1-5_vae.ckpt") == prefix
    assert same(await stage.loaded(prefix), tiny)


async def test_a_store_that_loses_files_is_tried_again_later(stage: Stage) -> None:
    class Forgetful(FolderStore):
        async def upload(self, path: Path, key: str, **options: Any) -> None:
            if not key.endswith("unet/config.json"):
                await super().upload(path, key, **options)

    stage.store = Forgetful(stage.folder / "forgetful", public_url="http://x", key="k" * 32)
    with pytest.raises(Passing, match="the store does not keep all files of sd_v1-5_vae"):
        await stage("sd_v1-5_vae.ckpt", models=stage.of("tiny"))


async def test_a_configured_model_that_is_nowhere_is_a_matter_of_settings(stage: Stage) -> None:
    with pytest.raises(SettingsError, match="EVERYDREAM_BASE_MODEL is '/no/such/folder'"):
        await stage("sd_v1-5_vae.ckpt", models=stage.of("/no/such/folder"))


async def test_what_is_no_model_at_all_is_refused_with_what_would_be(stage: Stage) -> None:
    for asked in ("nonsense", "../../etc", "/etc/passwd", "a/b/c", "jobs/1/training/1/model"):
        with pytest.raises(Refused, match=r"^input\.model is .*; expected sd_v1-5_vae\.ckpt"):
            await stage(asked)


async def test_a_zipped_folder_is_taken_from_wherever_it_lies(
    stage: Stage, tiny: Parts, web: Web, tmp_path: Path
) -> None:
    url = web.serve("/model.zip", zipped(TINY_FOLDER, tmp_path / "m.zip", "my models/v1/"))

    prefix = await stage(url)

    assert prefix == await stage("sd_v1-5_vae.ckpt")
    assert same(await stage.loaded(prefix), tiny)
    assert stage.reported[-1]["bytes"] == (tmp_path / "m.zip").stat().st_size


async def test_a_subfolder_of_the_zip_can_be_asked_for(
    stage: Stage, web: Web, tmp_path: Path
) -> None:
    url = web.serve("/model.zip", zipped(TINY_FOLDER, tmp_path / "m.zip", "a/v1/"))

    assert await stage(url, subfolder="v1") == await stage("sd_v1-5_vae.ckpt")
    with pytest.raises(Refused, match=r"no model_index\.json in a folder v2"):
        await stage(url, subfolder="v2")


async def test_a_zipped_folder_with_pickled_weights_is_refused_with_advice(
    stage: Stage, web: Web, tmp_path: Path
) -> None:
    folder = copied(TINY_FOLDER, tmp_path / "model")
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    url = web.serve("/model.zip", zipped(folder, tmp_path / "m.zip"))

    with pytest.raises(Refused, match=r"unet has only pickled weights .* safe serialization"):
        await stage(url)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("unet/config.json", None, "unet/config.json is missing"),
        ("vae/diffusion_pytorch_model.safetensors", None, "vae has no weights"),
        ("scheduler/scheduler_config.json", b"[]", "not a JSON object"),
        ("text_encoder/model.safetensors", b"\x08", "not a whole safetensors file"),
        ("model_index.json", b'{"_class_name": "FluxPipeline"}', "it is a FluxPipeline; expected"),
    ],
)
def test_a_folder_that_lacks_something_is_refused_by_the_name_of_it(
    tmp_path: Path, name: str, content: bytes | None, reason: str
) -> None:
    folder = copied(TINY_FOLDER, tmp_path / "model")
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)

    with pytest.raises(Refused, match=reason) as refused:
        validate_diffusers_folder(folder, "the model", ignored)
    assert str(refused.value).startswith("the model: ")


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("unet", {"in_channels": 9}, "takes 9 channels, so it is an inpainting model"),
        ("unet", {"cross_attention_dim": 768}, "captions of width 768, its text encoder gives 64"),
        ("text_encoder", {"vocab_size": 49408}, "tokenizer has 584 words, .* embeds 49408"),
        ("scheduler", {"prediction_type": "sample"}, "'sample'; expected epsilon or v_prediction"),
    ],
)
def test_parts_that_do_not_fit_are_refused_before_a_gpu_sees_them(
    tmp_path: Path, name: str, change: dict[str, Any], reason: str
) -> None:
    folder = copied(TINY_FOLDER, tmp_path / "model")
    file = next((folder / name).glob("*config.json"))
    file.write_text(json.dumps(json.loads(file.read_text()) | change))

    with pytest.raises(Refused, match=reason):
        validate_diffusers_folder(folder, "the model", ignored)


def test_a_vocabulary_is_counted_in_either_format(tmp_path: Path) -> None:
    folder = copied(TINY_FOLDER, tmp_path / "model")
    assert vocabulary_of(folder, "the model") == 584
    (folder / "tokenizer/tokenizer.json").unlink()
    assert vocabulary_of(folder, "the model") == 584


def test_a_tokenizer_without_a_vocabulary_is_refused(tmp_path: Path) -> None:
    folder = copied(TINY_FOLDER, tmp_path / "model")
    (folder / "tokenizer/tokenizer.json").unlink()
    assert validate_diffusers_folder(folder, "the model", ignored)
    (folder / "tokenizer/vocab.json").unlink()

    with pytest.raises(Refused, match=r"lacks vocab\.json and merges\.txt"):
        validate_diffusers_folder(folder, "the model", ignored)


def test_weights_that_are_cut_off_are_refused(tmp_path: Path) -> None:
    folder = copied(TINY_FOLDER, tmp_path / "model")
    weights = folder / "vae/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])

    with pytest.raises(Refused, match=r"vae/diffusion_pytorch_model.* is cut off"):
        validate_diffusers_folder(folder, "the model", ignored)


async def test_a_single_file_gets_the_base_models_configurations(
    stage: Stage, tiny: Parts, web: Web, tmp_path: Path
) -> None:
    changed = {name: tensor + 1 for name, tensor in tensors_of(tiny).items()}
    save_file(changed, tmp_path / "m.safetensors")
    url = web.serve("/m.safetensors", tmp_path / "m.safetensors")

    prefix = await stage(url)

    found = original_layout(await stage.loaded(prefix))
    assert found.keys() == changed.keys()
    assert all(torch.equal(found[name], changed[name]) for name in changed)
    names = {entry.key.removeprefix(f"{prefix}/") async for entry in stage.store.list(prefix)}
    assert "single_file.safetensors" in names
    assert not any(name.startswith("unet/diffusion") for name in names)


async def test_a_file_that_we_exported_ourselves_comes_back(
    stage: Stage, tiny: Parts, web: Web, tmp_path: Path
) -> None:
    export(tiny, tmp_path / "last.safetensors", dtype=torch.float32)

    assert same(
        await stage.loaded(await stage(web.serve("/m", tmp_path / "last.safetensors"))), tiny
    )


def by_other_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The VAE's attention with the names that some converters write."""
    new = {".q.": ".to_q.", ".k.": ".to_k.", ".v.": ".to_v.", ".proj_out.": ".to_out.0.",
           ".norm.": ".group_norm."}  # fmt: skip
    return {
        re.sub(r"(?<=attn_1)\.\w+\.", lambda old: new[old[0]], name)
        if "first_stage" in name else name: t
        for name, t in tensors.items()
    }  # fmt: skip


def flat(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name.replace("transformer.text_model.", "transformer."): t for name, t in tensors.items()
    }


def with_extras(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    positions = "cond_stage_model.transformer.text_model.embeddings.position_ids"
    return tensors | {
        positions: torch.arange(77)[None],
        "model_ema.decay": torch.tensor(0.9),
        "betas": torch.ones(1000),
    }


@pytest.mark.parametrize("change", [flat, with_extras, by_other_names])
async def test_small_differences_between_tools_are_evened_out(
    stage: Stage,
    tiny: Parts,
    web: Web,
    tmp_path: Path,
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
) -> None:
    save_file(change(tensors_of(tiny)), tmp_path / "m.safetensors")

    prefix = await stage(web.serve("/m", tmp_path / "m.safetensors"))

    assert same(await stage.loaded(prefix), tiny)


class Callback:
    """An object such as training frameworks pickle."""


@pytest.mark.parametrize("nested", [True, False])
async def test_a_ckpt_is_rewritten_byte_for_byte_without_unpickling_it(
    stage: Stage, tiny: Parts, web: Web, tmp_path: Path, *, nested: bool
) -> None:
    half = {name: tensor.half() for name, tensor in tensors_of(tiny).items()}
    torch.save(
        {"state_dict": half, "callback": Callback()} if nested else half, tmp_path / "m.ckpt"
    )

    prefix = await stage(web.serve("/m.ckpt", tmp_path / "m.ckpt"))

    await stage.store.download(f"{prefix}/single_file.safetensors", tmp_path / "s.safetensors")
    written = load_file(tmp_path / "s.safetensors")
    assert written.keys() == half.keys()
    assert all(torch.equal(written[name], half[name]) for name in half)
    assert (await stage.loaded(prefix)).prediction_type == "epsilon"


async def test_a_hostile_ckpt_does_nothing_and_is_refused(
    stage: Stage, web: Web, tmp_path: Path
) -> None:
    class Hostile:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "touched",)

    torch.save({"state_dict": {"w": Hostile()}}, tmp_path / "m.ckpt")

    with pytest.raises(Refused, match=r"/m\.ckpt: the \.ckpt holds no dict of tensors; convert"):
        await stage(web.serve("/m.ckpt", tmp_path / "m.ckpt"))
    assert not (tmp_path / "touched").exists()


async def test_a_ckpt_of_the_old_format_is_refused_with_advice(
    stage: Stage, web: Web, tmp_path: Path
) -> None:
    torch.save({"w": torch.ones(1)}, tmp_path / "m.ckpt", _use_new_zipfile_serialization=False)

    with pytest.raises(Refused, match=r"torch's zip format \(torch 1\.6 or later\)"):
        await stage(web.serve("/m.ckpt", tmp_path / "m.ckpt"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda t: {n: v for n, v in t.items() if "encoder.conv_in" not in n},
            "it has no vae in the original layout",
        ),
        (
            lambda t: t | {"model.diffusion_model.label_emb.0.0.weight": torch.ones(3)},
            r"model\.diffusion_model\.label_emb\.0\.0\.weight is not known .*, such as unCLIP",
        ),
        (
            lambda t: (
                t | {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(32, 9, 3, 3)}
            ),
            "its unet takes 9 channels, so it is an inpainting model",
        ),
        (
            lambda t: t | {"model.diffusion_model.out.2.bias": torch.ones(5)},
            r"model\.diffusion_model\.out\.2\.bias has shape 5, expected 4",
        ),
        (
            lambda t: {n: v for n, v in t.items() if n != "model.diffusion_model.out.0.bias"},
            r"model\.diffusion_model\.out\.0\.bias is missing",
        ),
        (lambda _: {"model.diffusion_model.joint_blocks.0": torch.ones(3)}, "Diffusion 3"),
        (lambda _: {"double_blocks.0.img": torch.ones(3)}, "it looks like Flux"),
        (lambda _: {"lora_unet_down.weight": torch.ones(3)}, "a LoRA, but in none of"),
        (lambda _: {"conditioner.embedders.0.w": torch.ones(3)}, "Stable Diffusion XL"),
        (lambda t: {n: v.to(torch.int32) for n, v in t.items()}, "expected F64, F32, F16 or BF16"),
    ],
)
async def test_another_architecture_is_refused_with_the_difference(
    stage: Stage, tiny: Parts, web: Web, *, change: Any, reason: str
) -> None:
    save_file(change(tensors_of(tiny)), stage.folder / "m.safetensors")

    with pytest.raises(Refused, match=reason) as refused:
        await stage(web.serve("/m.safetensors", stage.folder / "m.safetensors"))
    assert "/m.safetensors: " in str(refused.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"<html>", "an HTML page.*; a model must be a zipped diffusers folder"),
        (b"", "what came is empty"),
        (b"\x20\0\0\0\0\0\0\0{" + b"x" * 31, "not a whole safetensors file"),
    ],
)
async def test_anything_else_is_refused_by_what_it_is(
    stage: Stage, web: Web, content: bytes, reason: str
) -> None:
    with pytest.raises(Refused, match=reason):
        await stage(web.serve("/m", content))


async def test_a_zip_of_something_else_says_what_is_missing(
    stage: Stage, web: Web, tmp_path: Path
) -> None:
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        archive.writestr("a.png", b"1")

    with pytest.raises(Refused, match=r"no model_index\.json in the zip"):
        await stage(web.serve("/m.zip", tmp_path / "m.zip"))


async def test_a_lora_of_ours_comes_with_its_shape_as_long_as_its_base_model_is_there(
    stage: Stage, tmp_path: Path
) -> None:
    base, model = "jobs/1/training/1/model", "jobs/2/training/1/model"
    files = await upload_folder(stage.store, copied(TINY_FOLDER, tmp_path / "m"), base)
    (tmp_path / "own").mkdir()
    shape = LoraShape(rank=4, alpha=2.0, conv_rank=1)
    (tmp_path / "own" / LORA).write_bytes(b"its weights")
    (tmp_path / "own" / LORA_SHAPE).write_bytes(msgspec.json.encode(shape))
    of_base = [replace(file, key=f"{base}/{file.name}") for file in files.files]
    await upload_folder(stage.store, tmp_path / "own", model, stored=of_base)

    assert await stage(f"store:{model}") == model
    assert stage.lora == shape
    await stage.store.delete(f"{base}/")
    with pytest.raises(Refused, match=r"input\.model: the base model .* name one like it with"):
        await stage(f"store:{model}")


async def test_a_model_that_is_ours_is_used_where_it_lies(stage: Stage, tmp_path: Path) -> None:
    await upload_folder(stage.store, copied(TINY_FOLDER, tmp_path / "m"), "jobs/1/training/1/model")

    assert await stage("store:jobs/1/training/1/model") == "jobs/1/training/1/model"
    await stage.store.upload(zipped(TINY_FOLDER, tmp_path / "m.zip"), "uploads/7")
    assert await stage("store:uploads/7") == await stage("sd_v1-5_vae.ckpt")
    gone = r"^input\.model: this model \(uploads/8\) is not in the store any more"
    with pytest.raises(Refused, match=gone):
        await stage("store:uploads/8")
