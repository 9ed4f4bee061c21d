"""The names, the number and the shapes of a LoRA's layers."""

from __future__ import annotations

import re
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from shared.dataset.card_memory import trained_parameters
from shared.diffusion.lora import Lora, fresh_lora, kohya_name, lora_of, size_of
from shared.diffusion.single_file import unet_layout
from shared.diffusion.text_layout import BLOCK, is_open_clip
from shared.errors import Refused
from shared.request import LoraShape, Train
from tests.support.counted_memory import Networks, networks
from tests.support.models import random_parts

full_size = cache(networks)
RESNET = {
    "conv1": "in_layers_2",
    "conv2": "out_layers_3",
    "time_emb_proj": "emb_layers_1",
    "conv_shortcut": "skip_connection",
}


def layers_of(of: Networks, kind: str, shape: LoraShape) -> dict[str, str]:
    """Our names of a network's layers in a file, by their names in the network."""
    modules = getattr(of, kind).named_modules()
    return {name: kohya_name(kind, name) for name, each in modules if size_of(name, each, shape)}


def in_the_original(name: str) -> str:
    """Where A1111 looks for a layer of the UNet, with ``_`` for ``.``: three layers to a block."""
    if found := re.fullmatch(r"lora_unet_down_blocks_(\d)_downsamplers_0_conv", name):
        return f"input_blocks_{3 * int(found[1]) + 3}_0_op"
    if found := re.fullmatch(r"lora_unet_up_blocks_(\d)_upsamplers_0_conv", name):
        return f"output_blocks_{3 * int(found[1]) + 2}_{2 if int(found[1]) else 1}_conv"
    found = re.fullmatch(
        r"lora_unet_(down_blocks_(\d)|mid_block|up_blocks_(\d))_(attentions|resnets)_(\d)_(.*)",
        name,
    )
    assert found, name
    _, down, up, group, layer, rest = found.groups()
    is_attention = group == "attentions"
    rest = rest if is_attention else RESNET[rest]
    if down:
        return f"input_blocks_{1 + 3 * int(down) + int(layer)}_{int(is_attention)}_{rest}"
    if up:
        return f"output_blocks_{3 * int(up) + int(layer)}_{int(is_attention)}_{rest}"
    return f"middle_block_{1 if is_attention else 2 * int(layer)}_{rest}"


@pytest.mark.parametrize("number", [1, 2])
def test_a1111_finds_all_278_layers_of_the_unet_where_they_belong(number: int) -> None:
    of = full_size(number)
    names = layers_of(of, "unet", LoraShape(rank=16, alpha=16.0, conv_rank=8))
    weights = {name: each for name, each in of.unet.state_dict().items() if name.endswith("weight")}
    # Renaming keeps the order.
    original = dict(zip(weights, unet_layout(weights), strict=True))

    assert len(names) == 278
    for name, kohya in names.items():
        expected = original[f"{name}.weight"].removesuffix(".weight").replace(".", "_")
        assert in_the_original(kohya) == expected


@pytest.mark.parametrize(("number", "layers"), [(1, 12), (2, 23)])
def test_of_the_text_encoder_each_linear_layer_has_the_name_that_comfyui_knows(
    number: int, layers: int
) -> None:
    of = full_size(number)
    parts = ("mlp_fc1", "mlp_fc2", "self_attn_q_proj", "self_attn_k_proj", "self_attn_v_proj",
             "self_attn_out_proj")  # fmt: skip

    names = layers_of(of, "text_encoder", LoraShape(rank=1, alpha=1.0)).values()

    assert sorted(names) == sorted(
        f"lora_te_text_model_encoder_layers_{layer}_{part}"
        for layer in range(layers)
        for part in parts
    )
    assert is_open_clip(of.text_encoder.config) == (number == 2)
    assert {part.replace(".", "_") for part in BLOCK} >= {
        "mlp_fc1",
        "mlp_fc2",
        "self_attn_out_proj",
    }


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("conv_rank", [0, 8])
def test_how_many_parameters_it_has_is_known_without_its_networks(
    number: int, conv_rank: int
) -> None:
    of, shape = full_size(number), LoraShape(rank=16, alpha=16.0, conv_rank=conv_rank)
    asked = Train(data_url="u", lora_rank=16, lora_conv_rank=conv_rank)
    with torch.device("meta"):
        loras = {kind: on_meta(kind, getattr(of, kind), shape) for kind in ("unet", "text_encoder")}

    found = {kind: sum(each.numel() for each in lora.parameters()) for kind, lora in loras.items()}
    for lora in loras.values():
        lora.remove()

    assert found == trained_parameters(asked, of.parameters)


def on_meta(kind: str, network: nn.Module, shape: LoraShape) -> Lora:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.init, "kaiming_uniform_", lambda *_, **__: None)
        return fresh_lora(kind, network, shape, torch.Generator())


# --- Files that do not fit --------------------------------------------------------------------

NAME = "lora_unet_down_blocks_0_attentions_0_proj_in"


def wrong(tensors: dict[str, Tensor]) -> str:
    with pytest.raises(Refused) as refused:
        lora_of("unet", random_parts().unet, tensors)
    return str(refused.value)


def test_a_lora_for_another_model_is_refused_by_the_name_of_what_differs() -> None:
    parts = random_parts()
    seed = torch.Generator().manual_seed(0)
    good = fresh_lora("unet", parts.unet, LoraShape(rank=2, alpha=2.0), seed).state_dict()
    down, up = good[f"{NAME}.lora_down.weight"], good[f"{NAME}.lora_up.weight"]

    wider = {**good, f"{NAME}.lora_down.weight": torch.zeros(2, 7, *down.shape[2:])}
    deeper = {**good, "lora_unet_down_blocks_9_attentions_0_proj_in.lora_up.weight": up}
    half = {name: each for name, each in good.items() if name != f"{NAME}.lora_up.weight"}

    assert f"{NAME} is 2 x 7" in wrong(wider)
    assert "lora_unet_down_blocks_9_attentions_0_proj_in, which the model has not" in wrong(deeper)
    assert f"lacks {NAME}.lora_up.weight" in wrong(half)


def test_a_file_without_an_alpha_counts_by_its_rank_and_one_without_layers_is_none() -> None:
    parts = random_parts()
    seed = torch.Generator().manual_seed(0)
    good = fresh_lora("unet", parts.unet, LoraShape(rank=2, alpha=1.0), seed).state_dict()
    without = {name: each for name, each in good.items() if not name.endswith("alpha")}

    found = lora_of("unet", parts.unet, without)

    assert found is not None
    assert found.state_dict()[f"{NAME}.alpha"] == 2.0
    assert lora_of("text_encoder", parts.text_encoder, good) is None


def test_a_file_gives_the_layers_in_the_order_by_which_optimizers_know_them() -> None:
    parts = random_parts()
    seed = torch.Generator().manual_seed(0)
    shape = LoraShape(rank=2, alpha=1.0, conv_rank=1)
    for kind in ("unet", "text_encoder"):
        fresh = fresh_lora(kind, getattr(parts, kind), shape, seed)
        shuffled = dict(sorted(fresh.state_dict().items()))

        found = lora_of(kind, getattr(parts, kind), shuffled)

        assert found is not None
        assert list(found) == list(fresh)
        assert list(found) != sorted(found)
