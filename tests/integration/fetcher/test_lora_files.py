"""LoRA files from elsewhere: read as other tools write them, and put on their base model."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_kohya
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from services.fetcher.models.configured_model import TINY_FOLDER
from services.fetcher.parsing.models.lora import MODEL_HASH, is_lora
from shared.diffusion.loading import Parts, load
from shared.diffusion.lora_file import attach
from shared.diffusion.saving import stock_pipeline
from shared.errors import Refused
from shared.request import STORED, LoraShape
from shared.storage.folders import download_folder, read_manifest, upload_folder
from shared.storage.manifest import LORA, LORA_SHAPE
from tests.support.models import make_random_model
from tests.support.servers.web import Web
from tests.support.staging import Stage, copied, zipped

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

RANK, ALPHA = 4, 6
TARGETS = {
    "unet": r".*(to_[qkv]|to_out\.0|ff\.net\.(0\.proj|2)|proj_(in|out)|conv[12]|time_emb_proj)",
    "text_encoder": r".*(_proj|fc[12])",
}
Tensors = dict[str, Tensor]
Layout = Callable[[Path, Mapping[str, PeftModel]], object]


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def with_peft(parts: Parts, alpha: int) -> dict[str, PeftModel]:
    """A LoRA by peft on both networks, its weights drawn at random."""
    generator = torch.Generator().manual_seed(4)
    models: dict[str, PeftModel] = {}
    for kind, targets in TARGETS.items():
        config = LoraConfig(r=RANK, lora_alpha=alpha, target_modules=targets)
        models[kind] = get_peft_model(getattr(parts, kind), config)
        for name, weight in models[kind].named_parameters():
            if "lora_" in name:
                weight.data = torch.randn(weight.shape, generator=generator) * 0.1
    return models


def tensors_of(model: PeftModel) -> Tensors:
    """By the names of the network's layers, ending in ``.lora_A.weight`` or ``.lora_B.weight``."""
    state: Tensors = get_peft_model_state_dict(model)
    return {name.removeprefix("base_model.model."): value for name, value in state.items()}


def as_diffusers(file: Path, models: Mapping[str, PeftModel]) -> None:
    layers: dict[str, Any] = {kind: tensors_of(model) for kind, model in models.items()}
    configs = {kind: model.peft_config["default"].to_dict() for kind, model in models.items()}
    StableDiffusionPipeline.save_lora_weights(
        file.parent,
        unet_lora_layers=layers["unet"],
        text_encoder_lora_layers=layers["text_encoder"],
        unet_lora_adapter_metadata=configs["unet"],
        text_encoder_lora_adapter_metadata=configs["text_encoder"],
        weight_name=file.name,
    )


def renamed(models: Mapping[str, PeftModel], down: str, up: str, **starts: str) -> Tensors:
    names = {".lora_A.weight": down, ".lora_B.weight": up}
    return {
        starts[kind] + re.sub("|".join(map(re.escape, names)), lambda at: names[at[0]], name): value
        for kind, model in models.items()
        for name, value in tensors_of(model).items()
    }


def as_diffusers_before_peft(file: Path, models: Mapping[str, PeftModel]) -> None:
    """Without alphas, and with the text encoder as transformers before version 5 names it."""
    ends = {"unet": ".lora", "text_encoder": ".lora_linear_layer"}
    starts = {"unet": "unet.", "text_encoder": "text_encoder.text_model."}
    tensors: Tensors = {}
    for kind, end in ends.items():
        one = {kind: models[kind]}
        tensors |= renamed(one, f"{end}.down.weight", f"{end}.up.weight", **starts)
    save_file(tensors, file)


def as_peft(file: Path, models: Mapping[str, PeftModel]) -> None:
    """Of the UNet alone: peft writes a file for each network."""
    models["unet"].save_pretrained(str(file.parent / "peft"))
    (file.parent / "peft/adapter_model.safetensors").rename(file)


def as_kohya(file: Path, models: Mapping[str, PeftModel], **starts: str) -> None:
    starts = {"unet": "lora_unet_", "text_encoder": "lora_te_text_model_", **starts}
    tensors = {}
    for name, value in renamed(models, ":down", ":up", **starts).items():
        layer, _, part = name.replace(".", "_").partition(":")
        tensors[f"{layer}.lora_{part}.weight"] = value
        tensors[f"{layer}.alpha"] = torch.tensor(float(ALPHA))
    save_file(tensors, file, {MODEL_HASH: "ab" * 32})


def as_diffusers_converts_to_kohya(file: Path, models: Mapping[str, PeftModel]) -> None:
    """Whose ranks are the alphas, whatever these were."""
    starts = {"unet": "unet.", "text_encoder": "text_encoder."}
    whole = renamed(models, ".lora_A.weight", ".lora_B.weight", **starts)
    save_file(convert_state_dict_to_kohya(whole), file)


def drawn(parts: Parts) -> np.ndarray[Any, Any]:
    pipeline = stock_pipeline(parts)
    pipeline.set_progress_bar_config(disable=True)
    seed = torch.Generator().manual_seed(3)
    images = pipeline(
        "a red wall", width=64, height=64, num_inference_steps=3, generator=seed, output_type="np"
    ).images
    return np.asarray(images)


async def ours(stage: Stage, prefix: str) -> Parts:
    """The staged model with its LoRA, as workers load it."""
    folder = stage.folder / "composed"
    await download_folder(stage.store, prefix, folder)
    parts = load(folder)
    attach(parts, folder / LORA)
    return parts


@pytest.fixture(scope="module")
def plain() -> np.ndarray[Any, Any]:
    """What the model draws without a LoRA."""
    return drawn(load(TINY_FOLDER))


@pytest.mark.parametrize(
    ("layout", "alpha", "networks"),
    [
        (as_diffusers, ALPHA, 2),
        (as_diffusers_before_peft, RANK, 2),
        (as_peft, RANK, 1),
        (as_kohya, ALPHA, 2),
        (partial(as_kohya, text_encoder="lora_te1_"), ALPHA, 2),
        (as_diffusers_converts_to_kohya, RANK, 2),
    ],
    ids=["diffusers", "diffusers before peft", "peft", "kohya", "kohya of others", "converted"],
)
async def test_a_lora_of_each_layout_draws_exactly_as_peft_draws_with_it(
    stage: Stage, web: Web, plain: np.ndarray[Any, Any], *, layout: Layout, alpha: int,
    networks: int,
) -> None:  # fmt: skip
    theirs = load(TINY_FOLDER)
    models = with_peft(theirs, alpha)
    layout(stage.folder / "anna.safetensors", models)
    if networks == 1:
        models["text_encoder"].unload()
    prefix = await stage(web.serve("/anna.safetensors", stage.folder / "anna.safetensors"))

    assert stage.lora is not None
    assert (stage.lora.rank, stage.lora.alpha) == (RANK, alpha)
    found = drawn(await ours(stage, prefix))
    assert np.abs(found - drawn(theirs)).max() == 0.0
    assert np.abs(found - plain).max() > 0.01


# --- What is refused --------------------------------------------------------------------------

DOWN, UP = "lora_down.weight", "lora_up.weight"
DIFFUSERS, ORIGINAL = "down_blocks_0_attentions_0", "input_blocks_1_1"
LAYER = f"lora_unet_{DIFFUSERS}_transformer_blocks_0_attn2_to_k"


def small(width: int = 64, out: int = 32, /, **changes: Any) -> Tensors:
    """A LoRA of the tiny model with one layer, changed; None: taken out."""
    tensors = {
        f"{LAYER}.{DOWN}": torch.ones(RANK, width),
        f"{LAYER}.{UP}": torch.ones(out, RANK),
        f"{LAYER}.alpha": torch.tensor(ALPHA),
    }
    changed = {**tensors, **{f"{LAYER}.{name}": value for name, value in changes.items()}}
    return {name: value for name, value in changed.items() if value is not None}


async def staged(
    stage: Stage,
    web: Web,
    tensors: Tensors,
    metadata: dict[str, str] | None = None,
    **options: Any,
) -> str:
    save_file(tensors, stage.folder / "anna.safetensors", metadata)
    url = web.serve("/anna.safetensors", stage.folder / "anna.safetensors")
    return await stage(url, **options)


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        (small() | {f"{LAYER}.dora_scale": torch.ones(32, 1)}, "it is a DoRA"),
        ({f"{LAYER}.hada_w1_a": torch.ones(32, 4)}, "it is a LoHa"),
        ({f"{LAYER}.lokr_w1": torch.ones(4, 4)}, "it is a LoKr"),
        (small(**{"lora_mid.weight": torch.ones(4, 4, 3, 3)}), "with Tucker decomposition"),
        (small() | {"lora_te2_text_model_x.alpha": torch.ones(1)}, "a LoRA for SDXL"),
        (small() | {f"{LAYER.replace('0_attn2', '1_attn2')}.{UP}": torch.ones(1)}, "for SDXL"),
        ({f"transformer.blocks.0.attn.to_q.{DOWN}": torch.ones(4, 4)}, "Flux or the like"),
        (small() | {f"lora_unet_out_3.{UP}": torch.ones(4, 4)}, "has no such layer"),
        (small() | {f"{LAYER}.bias": torch.ones(4)}, "to_k.bias is of no kind that is read here"),
        (small() | {"bundle_emb.anna": torch.ones(4)}, "bundle_emb.anna is of no kind that is"),
        (
            small() | {f"lora_unet_{'x' * 9999}.{UP}": torch.ones(4)},
            r"\.\.\.x{50,300}\.lora_up\.weight: the base",
        ),
        (small(1024), r"is 4x1024, but the base model needs 4x64: .* name that one with"),
        (small(**{UP: torch.ones(32, 8)}), "_up.weight is 32x8, but lora_down.weight beside it is"),
        (small(**{UP: None}), "it lacks .*attn2_to_k.lora_up.weight"),
        (small(**{UP: torch.full((32, RANK), torch.nan)}), "a value that is not finite"),
        (small(**{UP: torch.ones(32, RANK).to(torch.float8_e4m3fn)}), "is of type F8_E4M3"),
        (small(alpha=torch.tensor(0.0)), "expected a number above 0, got 0"),
        (small(**{DOWN: torch.ones(0, 64)}), "lora_down.weight is of rank 0; expected 1 to 1280"),
        (
            small(**{DOWN: torch.ones(1281, 64), UP: torch.ones(32, 1281)}),
            "lora_down.weight is of rank 1281; expected 1 to 1280",
        ),
        (small(alpha=torch.ones(4)), "expected one number, got F32 4"),
        (
            small() | {f"{LAYER.replace(DIFFUSERS, ORIGINAL)}.{UP}": torch.ones(32, RANK)},
            "the layer is in it twice",
        ),
    ],
)
async def test_what_is_no_lora_for_this_base_model_is_refused_by_the_name_of_what_is_wrong(
    stage: Stage, web: Web, tensors: Tensors, reason: str
) -> None:
    with pytest.raises(Refused, match=rf"anna\.safetensors: .*{reason}"):
        await staged(stage, web, tensors)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("[1]", "got `array`"),
        ('{"unet.lora_alpha": NaN}', "malformed"),
        ('{"unet.lora_alpha": -5}', "`float` >= 1e-30 - at `$.lora_alpha`"),
        (f'{{"unet.lora_alpha": 1{"0" * 400}}}', "out of range"),
        ('{"text_encoder.alpha_pattern": ["to_k"]}', "got `array` - at `$.alpha_pattern`"),
        (f'{{"unet.alpha_pattern": {"[" * 9999}{"]" * 9999}}}', "maximum recursion depth"),
        ('{"unet.alpha_pattern": {"to_k": 2, "to_(q": 4}}', "unterminated subpattern"),
    ],
)
async def test_a_configuration_that_is_not_as_peft_writes_it_is_refused(
    stage: Stage, web: Web, config: str, reason: str
) -> None:
    where = r"anna\.safetensors: lora_adapter_metadata in its header is not as peft writes it"
    with pytest.raises(Refused, match=f"{where}: .*{re.escape(reason)}"):
        await staged(stage, web, small(), metadata={"lora_adapter_metadata": config})


async def test_the_patterns_of_a_configuration_are_regular_expressions_as_in_peft(
    stage: Stage, web: Web
) -> None:
    layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_"
    tensors = {}
    for name in ("k", "q", "v"):
        width = 64 if name in "kv" else 32
        tensors[f"unet.{layer}{name}.lora_A.weight"] = torch.ones(RANK, width)
        tensors[f"unet.{layer}{name}.lora_B.weight"] = torch.ones(32, RANK)
    patterns = {"^attn2.to_k$": 1, r"down_blocks\.\d+\..*\.to_k": 2, "to_q|to_k": 3}
    config = {"unet.lora_alpha": 8, "unet.alpha_pattern": patterns}
    metadata = {"lora_adapter_metadata": msgspec.json.encode(config).decode()}

    prefix = await staged(stage, web, tensors, metadata)

    (stage.folder / "lora").write_bytes(await stage.store.get(f"{prefix}/{LORA}"))
    with safe_open(stage.folder / "lora", "pt") as opened:
        start = f"lora_unet_{layer.replace('.', '_')}"
        alphas = [float(opened.get_tensor(f"{start}{name}.alpha")) for name in "kqv"]
    assert alphas == [2, 3, 8]


async def test_attention_of_the_text_encoder_may_be_named_as_the_first_diffusers_did(
    stage: Stage, web: Web
) -> None:
    width = load(TINY_FOLDER).text_encoder.config.hidden_size
    layer = "text_encoder.text_model.encoder.layers.0.self_attn.to_{}_lora.{}.weight"
    tensors = {}
    for name in ("q", "out"):
        tensors[layer.format(name, "down")] = torch.ones(RANK, width)
        tensors[layer.format(name, "up")] = torch.ones(width, RANK)

    prefix = await staged(stage, web, tensors)

    folder = stage.folder / "composed"
    await download_folder(stage.store, prefix, folder)
    with safe_open(folder / LORA, "np") as opened:
        layers = {name.partition(".")[0] for name in opened.keys()}  # noqa: SIM118
    start = "lora_te_text_model_encoder_layers_0_self_attn"
    assert layers == {f"{start}_q_proj", f"{start}_out_proj"}


async def test_a_lora_takes_no_optimizers_from_the_job_that_has_trained_its_base_model(
    stage: Stage, web: Web, tmp_path: Path
) -> None:
    trained = copied(TINY_FOLDER, tmp_path / "trained")
    (trained / "optimizer_unet.safetensors").write_bytes(b"moments of the whole UNet")
    await upload_folder(stage.store, trained, "jobs/base/model")

    prefix = await staged(stage, web, small(), base=f"{STORED}jobs/base/model")

    names = {each.name for each in (await read_manifest(stage.store, prefix)).files}
    assert names >= {LORA, "unet/config.json"}
    assert not [name for name in names if name.startswith("optimizer")]


async def test_a_lora_is_put_on_the_base_model_that_is_named_beside_it(
    stage: Stage, web: Web, tmp_path: Path
) -> None:
    other = make_random_model(tmp_path / "other")
    base = web.serve("/base.zip", zipped(other, tmp_path / "base.zip"))
    config = load(other).unet.config
    lora = small(config.cross_attention_dim, config.block_out_channels[0])

    prefix = await staged(stage, web, lora, base=base)

    files = {each.name: each for each in (await read_manifest(stage.store, prefix)).files}
    assert files["unet/config.json"].key == f"{stage.lora_base}/unet/config.json"
    assert files[LORA].key is None
    assert stage.lora == LoraShape(rank=RANK, alpha=ALPHA)
    assert await stage.store.get(f"{prefix}/{LORA_SHAPE}") == msgspec.json.encode(stage.lora)
    folder = stage.folder / "composed"
    await download_folder(stage.store, prefix, folder)
    assert attach(load(folder), folder / LORA).keys() == {"unet"}


def test_what_has_an_alpha_alone_is_no_lora() -> None:
    assert is_lora([f"{LAYER}.{DOWN}", f"{LAYER}.alpha"])
    assert is_lora([f"{LAYER}.dora_scale"])
    assert not is_lora(["model.diffusion_model.out.2.weight", "schedule.alpha"])


async def test_a_base_model_beside_a_whole_model_is_said_to_have_no_effect(stage: Stage) -> None:
    await stage("sd_v1-5_vae", base="sd_v1-5_vae")

    assert stage.warnings == ("input.base has no effect: sd_v1-5_vae is a whole model",)


async def test_a_lora_is_no_base_model_for_another(stage: Stage, web: Web) -> None:
    save_file(small(), stage.folder / "other.safetensors")
    other = web.serve("/other.safetensors", stage.folder / "other.safetensors")

    with pytest.raises(Refused, match=r"input\.base: it is a LoRA, too; expected a whole model"):
        await staged(stage, web, small(), base=other)


async def test_a_hash_that_the_webui_knows_it_by_is_kept_and_else_computed_as_the_webui_does(
    stage: Stage, web: Web
) -> None:
    file = stage.folder / "anna.safetensors"
    found = []
    for metadata in ({MODEL_HASH: "ab" * 32}, {MODEL_HASH: "1, Seed: 2"}, None):
        save_file(small(), file, metadata)
        prefix = await stage(web.serve("/anna.safetensors", file))
        (stage.folder / "lora").write_bytes(await stage.store.get(f"{prefix}/{LORA}"))
        with safe_open(stage.folder / "lora", "pt") as opened:
            found.append(opened.metadata()[MODEL_HASH])

    whole = file.read_bytes()
    tensors = whole[8 + int.from_bytes(whole[:8], "little") :]
    assert found == ["ab" * 32, *[sha256(tensors).hexdigest()] * 2]
