"""LoRA: what is trained, what is written, and that others read and train the same."""

from __future__ import annotations

import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig, inject_adapter_in_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from services.trainer.order import Outcome
from services.trainer.training import train as loop
from services.trainer.training.recipe import Choices
from services.trainer.training.state import State, prepare
from services.trainer.training.train import begin_or_resume, loras_for, train
from shared.diffusion.loading import Parts, load
from shared.diffusion.lora import Lora, fresh_lora, kohya_name
from shared.diffusion.lora_file import attach, export_lora
from shared.diffusion.saving import stock_pipeline
from shared.request import LoraShape
from shared.storage.manifest import LORA, LORA_SHAPE
from tests.support.models import make_random_model, random_parts, random_sd2_parts
from tests.support.training import RecordingCallbacks, make_dataset, training_order, whole_model

pytestmark = pytest.mark.usefixtures("models_in_memory", "small_pictures")

UNEQUAL: dict[str, Any] = {"lora_rank": 4, "lora_alpha": 3.0, "lora_conv_rank": 2}
SHAPE = LoraShape(rank=4, alpha=3.0, conv_rank=2)
STEPS, FEW_STEPS = 25, 6
"""The second moves what a zero has kept from moving in the first."""
CPU = Choices(precision="fp32", optimizer="adamw", attention="sdpa")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_random_model(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("dataset") / "data", images=4)


def trained(out: Path, base: Path, dataset: Path, **options: Any) -> Outcome:
    """By so high a rate that what is learnt can be seen."""
    settings: dict[str, Any] = {"lr": 0.02, "batch_size": 2, **UNEQUAL, **options}
    order = training_order(out, dataset=dataset, base=base, **settings)
    return train(order, RecordingCallbacks())


@pytest.fixture(scope="module")
def whole(base: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    out = tmp_path_factory.mktemp("whole")
    return trained(out, base, dataset, save_full_precision=True, lora_merge=True)


# --- The same as peft -------------------------------------------------------------------------


def with_peft(network: nn.Module, kind: str, lora: Lora) -> list[Tensor]:
    """Put peft's layers on a network like ours, with the same weights; what it trains."""
    names = [name for name, _ in network.named_modules() if kohya_name(kind, name) in lora]
    ours: dict[str, Any] = {name: lora[kohya_name(kind, name)] for name in names}
    config = LoraConfig(
        target_modules=names,
        rank_pattern={f"^{name}$": len(each.lora_down.weight) for name, each in ours.items()},
        alpha_pattern={f"^{name}$": float(each.alpha) for name, each in ours.items()},
    )
    inject_adapter_in_model(config, network)
    weights = []
    for name, each in ours.items():
        theirs: Any = network.get_submodule(name)
        for part, own in ((theirs.lora_A, each.lora_down), (theirs.lora_B, each.lora_up)):
            part.default.weight.data.copy_(own.weight.data)
            weights.append(part.default.weight)
    return weights


def losses_of(
    parts: Parts, weights: list[Tensor], steps: int, *, checkpointing: bool
) -> list[float]:
    for network in (parts.unet, parts.text_encoder):
        network.requires_grad_(False).train()  # noqa: FBT003
    if checkpointing:
        parts.unet.enable_gradient_checkpointing()
        kwargs: dict[str, Any] = {"use_reentrant": False}
        parts.text_encoder.activation_checkpointing_enable(activation_checkpointing_kwargs=kwargs)
    for weight in weights:
        weight.requires_grad_(True)  # noqa: FBT003
    optimizer = torch.optim.AdamW(weights, lr=1e-3)
    generator, losses = torch.Generator().manual_seed(5), []
    for _ in range(steps):
        noisy, noise = (torch.randn(1, 4, 8, 8, generator=generator) for _ in range(2))
        ids = torch.randint(0, len(parts.tokenizer), (1, 8), generator=generator)
        hidden = parts.text_encoder(ids).last_hidden_state
        predicted = parts.unet(noisy, torch.tensor([500]), hidden).sample
        loss = (predicted - noise).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    ("steps", "checkpointing"),
    [
        pytest.param(STEPS, False, marks=pytest.mark.long),
        pytest.param(STEPS, True, marks=pytest.mark.long),
        (FEW_STEPS, True),
    ],
)
def test_it_trains_as_peft_does_to_the_last_bit(steps: int, *, checkpointing: bool) -> None:
    ours, theirs = random_parts(), random_parts()
    own: list[Tensor] = []
    other: list[Tensor] = []
    for number, kind in enumerate(("unet", "text_encoder")):
        seed = torch.Generator().manual_seed(number)
        lora = fresh_lora(kind, getattr(ours, kind), SHAPE, seed)
        own += lora.parameters()
        other += with_peft(getattr(theirs, kind), kind, lora)
    untouched = deepcopy(own)

    found = losses_of(ours, own, steps, checkpointing=checkpointing)

    assert found == losses_of(theirs, other, steps, checkpointing=checkpointing)
    assert all(map(torch.equal, own, other))
    assert not any(map(torch.equal, own, untouched))


# --- The file ---------------------------------------------------------------------------------


def drawn(pipeline: StableDiffusionPipeline) -> np.ndarray[Any, Any]:
    pipeline.set_progress_bar_config(disable=True)
    seed = torch.Generator().manual_seed(3)
    images = pipeline(
        "a red wall", width=64, height=64, num_inference_steps=3, generator=seed, output_type="np"
    ).images
    return np.asarray(images)


def stock(base: Path, file: Path | None = None) -> StableDiffusionPipeline:
    pipeline = stock_pipeline(load(base))
    if file is not None:
        pipeline.load_lora_weights(file.parent, weight_name=file.name)
    return pipeline


def test_diffusers_loads_the_file_and_draws_what_we_draw(base: Path, whole: Outcome) -> None:
    parts = load(base)
    attach(parts, Path(whole.checkpoint))

    ours = drawn(stock_pipeline(parts))

    assert np.array_equal(drawn(stock(base, Path(whole.checkpoint))), ours)
    assert np.abs(drawn(stock(base)) - ours).max() > 0.05


def test_of_stable_diffusion_2_both_networks_compute_the_same_at_an_alpha_that_no_float_holds(
    tmp_path: Path,
) -> None:
    parts, shape = random_sd2_parts("v_prediction"), LoraShape(rank=3, alpha=0.9, conv_rank=2)
    loras = {
        kind: fresh_lora(kind, getattr(parts, kind), shape, torch.Generator().manual_seed(1))
        for kind in ("unet", "text_encoder")
    }
    for lora in loras.values():
        for weight in lora.parameters():
            nn.init.normal_(weight, std=0.2, generator=torch.Generator().manual_seed(2))
    file, theirs = tmp_path / "l.safetensors", stock_pipeline(parts)
    export_lora(loras, parts, file, dtype=torch.float32, shape=shape, metadata={})

    ours = computed(theirs)
    for lora in loras.values():
        lora.remove()
    theirs.load_lora_weights(tmp_path, weight_name=file.name)

    assert all(map(torch.equal, ours, computed(theirs)))


@torch.no_grad()
def computed(pipeline: StableDiffusionPipeline) -> tuple[Tensor, Tensor]:
    """Hidden states of a prompt, and a prediction."""
    noisy = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(4))
    hidden = pipeline.text_encoder(torch.arange(77)[None] % 50).last_hidden_state
    return hidden, pipeline.unet(noisy, torch.tensor([500]), hidden).sample


def test_in_half_precision_the_file_draws_nearly_the_same(
    base: Path, dataset: Path, whole: Outcome, tmp_path: Path
) -> None:
    half = trained(tmp_path, base, dataset)

    there = drawn(stock(base, Path(half.checkpoint)))

    assert np.abs(there - drawn(stock(base, Path(whole.checkpoint)))).max() < 1e-3


def test_merged_into_its_base_model_it_draws_the_same(base: Path, whole: Outcome) -> None:
    assert whole.merged is not None
    merged = StableDiffusionPipeline.from_single_file(
        whole.merged, config=str(base), local_files_only=True, safety_checker=None
    )

    assert np.abs(drawn(merged) - drawn(stock(base, Path(whole.checkpoint)))).max() < 1e-4


def test_the_header_tells_other_programs_what_it_is(whole: Outcome) -> None:
    with safe_open(whole.checkpoint, "pt") as file:
        header = file.metadata()

    assert {name: header[name] for name in header if name.startswith("ss_")} == {
        "ss_network_module": "networks.lora",
        "ss_network_dim": "4",
        "ss_network_alpha": "3",
        "ss_network_args": '{"conv_dim":"2","conv_alpha":"1.5"}',
        "ss_v2": "False",
        "ss_base_model_version": "sd_v1",
        "ss_output_name": "last-job1-ep02-gs00004",
        "ss_epoch": "2",
        "ss_steps": "4",
    }
    assert header["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert len(header["sshs_model_hash"]) == 64


# --- What is trained --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "prefixes"),
    [
        ({"disable_textenc_training": True}, {"lora_unet"}),
        ({"disable_unet_training": True}, {"lora_te"}),
    ],
    ids=str,
)
def test_a_network_that_is_frozen_gets_no_layers(
    options: dict[str, Any], prefixes: set[str], base: Path, dataset: Path, tmp_path: Path
) -> None:
    outcome = trained(tmp_path, base, dataset, max_epochs=1, **options)

    names = load_file(outcome.checkpoint)
    assert {"_".join(name.split("_")[:2]) for name in names} == prefixes


def test_rank_alpha_and_the_rank_of_convolutions_are_those_asked_for(whole: Outcome) -> None:
    tensors = load_file(whole.checkpoint)
    linear = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    convolution = "lora_unet_down_blocks_0_resnets_0_conv1"

    for name, rank, alpha in ((linear, 4, 3.0), (convolution, 2, 1.5)):
        assert len(tensors[f"{name}.lora_down.weight"]) == rank
        assert float(tensors[f"{name}.alpha"]) == alpha


def test_without_their_rank_convolutions_get_no_layers(
    base: Path, dataset: Path, tmp_path: Path
) -> None:
    outcome = trained(tmp_path, base, dataset, max_epochs=1, lora_conv_rank=0)

    assert not [name for name in load_file(outcome.checkpoint) if "resnets" in name]


def test_the_base_model_keeps_its_weights_and_is_in_nothing_that_is_saved(
    base: Path, dataset: Path, tmp_path: Path
) -> None:
    callbacks = RecordingCallbacks()
    order = training_order(
        tmp_path, dataset=dataset, base=base, sample_every=2, save_every_n_epochs=1, resume_every=0,
        **UNEQUAL,
    )  # fmt: skip

    train(order, callbacks)

    largest = sum(path.stat().st_size for path in base.rglob("*.safetensors"))
    for kind, path, *_ in callbacks.saves:
        files = [path] if path.is_file() else [*path.rglob("*.safetensors")]
        for file in files:
            assert not [name for name in load_file(file) if name.startswith("down_blocks")], kind
            assert file.stat().st_size < largest / 2


def test_the_base_models_weights_are_halves_where_halves_are_computed_with_and_the_loras_are_not(
    base: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a card with bf16."""
    chosen = Choices(precision="bf16", optimizer="adamw", attention="sdpa")
    seen: list[State] = []

    def prepared(*given: Any, **options: Any) -> State:
        seen.append(prepare(*given, **options))
        return seen[0]

    monkeypatch.setattr(loop, "choose", lambda *_: chosen)
    monkeypatch.setattr(loop, "prepare", prepared)

    outcome = trained(tmp_path, base, dataset, max_epochs=1, save_full_precision=True)

    (state,) = seen
    frozen = [*state.parts.unet.parameters(), *state.parts.text_encoder.parameters()]
    learnt = [each for lora in state.loras.values() for each in lora.parameters()]
    assert {each.dtype for each in frozen} == {torch.bfloat16}
    assert {each.dtype for each in (*learnt, *state.parts.vae.parameters())} == {torch.float32}
    assert all(each.grad is None for each in frozen)
    kept = load_file(outcome.checkpoint)
    ups = [each for name, each in kept.items() if name.endswith("up.weight")]
    assert not any(torch.equal(each, each.bfloat16().float()) for each in ups)


def test_a_lora_is_drawn_anew_for_each_seed_and_the_same_for_one(
    base: Path, dataset: Path, tmp_path: Path
) -> None:
    order = training_order(tmp_path, dataset=dataset, base=base, lora_rank=2)
    first, second = (loras_for(load(base), order)["unet"].state_dict() for _ in range(2))

    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not any(tensor.any() for name, tensor in first.items() if name.endswith("up.weight"))


def test_training_goes_on_with_the_lora_that_the_base_model_comes_with(
    base: Path, dataset: Path, whole: Outcome, tmp_path: Path
) -> None:
    before = with_lora(base, whole, tmp_path / "before")
    parts = load(before)
    order = training_order(tmp_path / "out", dataset=dataset, base=before, **UNEQUAL)

    loras = loras_for(parts, order)

    known = load_file(whole.checkpoint)
    found = {name: each for lora in loras.values() for name, each in lora.state_dict().items()}
    assert sorted(found) == sorted(known)
    assert all(torch.equal(found[name], known[name]) for name in known)


def test_a_run_that_began_with_a_lora_of_several_ranks_goes_on_after_a_kill_bit_for_bit(
    base: Path, dataset: Path, tmp_path: Path
) -> None:
    """As other tools write them: some layers of the UNet alone."""
    generator = torch.Generator().manual_seed(8)
    given: dict[str, Tensor] = {}
    for rank, layer in ((3, "to_q"), (5, "conv1")):
        shape = LoraShape(rank=rank, alpha=1.0, conv_rank=rank)
        drawn = fresh_lora("unet", load(base).unet, shape, generator)
        given |= {name: each for name, each in drawn.state_dict().items() if f"_{layer}." in name}
    began = tmp_path / "began"
    shutil.copytree(base, began)
    save_file(given, began / LORA)
    settings: dict[str, Any] = {
        "dataset": dataset, "base": began, "lora_rank": 3, "lora_alpha": 1.0, "batch_size": 2,
        "lr": 0.02, "save_full_precision": True,
    }  # fmt: skip
    callbacks = RecordingCallbacks()

    whole = train(training_order(tmp_path / "1", resume_every=0, **settings), callbacks)
    point = next(path for kind, path, *_ in callbacks.saves if kind == "resume_point")
    resumed = train(training_order(tmp_path / "2", resume=point, **settings), RecordingCallbacks())

    first, second = load_file(whole.checkpoint), load_file(resumed.checkpoint)
    assert {name: each.shape for name, each in first.items() if name in given} == {
        name: each.shape for name, each in given.items()
    }
    assert not [name for name in first.keys() - given.keys() if name.startswith("lora_unet")]
    assert all(torch.equal(first[name], second[name]) for name in first)


def begun_from(base: Path, dataset: Path, out: Path) -> State:
    order = training_order(out, dataset=dataset, base=base, **UNEQUAL)
    parts = load(base)
    device = torch.device("cpu")
    return begin_or_resume(
        order, prepare(parts, order.train, CPU, device, loras=loras_for(parts, order))
    )


def test_whoever_goes_on_with_a_lora_gets_the_moments_of_each_of_its_weights(
    base: Path, dataset: Path, tmp_path: Path
) -> None:
    first = trained(tmp_path / "1", base, dataset, max_epochs=1, save_optimizer=True)

    state = begun_from(with_lora(base, first, tmp_path / "base"), dataset, tmp_path / "2")

    for name, lora in state.loras.items():
        moments = state.optimizers[name].state
        assert [moments[each]["exp_avg"].shape for each in lora.parameters()] == [
            each.shape for each in lora.parameters()
        ]


def test_a_new_lora_leaves_the_optimizers_of_the_whole_networks_alone_without_a_warning(
    base: Path, dataset: Path, tmp_path: Path
) -> None:
    options = {"max_epochs": 1, "save_optimizer": True, "lora_rank": None}
    first = trained(tmp_path / "1", base, dataset, **options)

    state = begun_from(whole_model(first), dataset, tmp_path / "2")

    assert not state.warnings
    assert not state.optimizers["unet"].state


def with_lora(base: Path, outcome: Outcome, folder: Path) -> Path:
    """A LoRA's model as it comes out of the store: the base model's files beside its own."""
    own = Path(outcome.model)
    folder.mkdir()
    for source in (own, base):
        for path in source.rglob("*"):
            target = folder / path.relative_to(source)
            if path.is_file() and not target.exists():
                target.parent.mkdir(exist_ok=True, parents=True)
                target.hardlink_to(path)
    (folder / LORA).hardlink_to(outcome.checkpoint)
    assert (folder / LORA_SHAPE).exists()
    return folder
