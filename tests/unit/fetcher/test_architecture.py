"""Architectures from tensor shapes and back, with real sizes but without weights."""

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from services.fetcher.parsing.models.architecture import (
    Shapes,
    TextEncoder,
    UNet,
    UnknownArchitecture,
    Vae,
    read_clip,
    read_open_clip,
    read_unet,
    read_vae,
    text_shapes,
    unet_shapes,
    vae_shapes,
)
from shared.diffusion.single_file import unet_layout, vae_layout
from shared.diffusion.text_layout import text_layout

CHANNELS = (320, 640, 1280, 1280)


def shapes(layout: dict[str, torch.Tensor]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in layout.items()}


def unet(**numbers: Any) -> Shapes:
    with torch.device("meta"):
        return shapes(unet_layout(UNet2DConditionModel(**numbers).state_dict()))


def text(**numbers: Any) -> Shapes:
    with torch.device("meta"):
        layout = text_layout(CLIPTextModel(CLIPTextConfig(**numbers)))
    return {name.split(".", 2)[2]: shape for name, shape in shapes(layout).items()}


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        (
            {"cross_attention_dim": 768},
            UNet(channels=CHANNELS, layers_per_block=2, cross_attention=(True, True, True, False),
                 cross_attention_dim=768, linear_projection=False, in_channels=4, out_channels=4),
        ),
        (
            {"cross_attention_dim": 1024, "use_linear_projection": True,
             "attention_head_dim": (5, 10, 20, 20)},
            UNet(channels=CHANNELS, layers_per_block=2, cross_attention=(True, True, True, False),
                 cross_attention_dim=1024, linear_projection=True, in_channels=4, out_channels=4),
        ),
        (
            {"block_out_channels": (32, 64), "layers_per_block": 1, "cross_attention_dim": 16,
             "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
             "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")},
            UNet(channels=(32, 64), layers_per_block=1, cross_attention=(False, True),
                 cross_attention_dim=16, linear_projection=False, in_channels=4, out_channels=4),
        ),
    ],
    ids=["SD 1.5", "SD 2.1", "a small one"],
)  # fmt: skip
def test_a_unet_is_known_by_a_few_of_its_shapes(numbers: dict[str, Any], expected: UNet) -> None:
    found = unet(**numbers)

    assert read_unet(found) == expected
    assert unet_shapes(expected) == found


def test_so_is_an_autoencoder() -> None:
    with torch.device("meta"):
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), layers_per_block=2,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        )  # fmt: skip
    found = shapes(vae_layout(vae.state_dict()))

    assert read_vae(found) == Vae(
        channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4
    )
    assert vae_shapes(read_vae(found)) == found


def test_so_is_openais_text_encoder() -> None:
    found = text(
        vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
        num_attention_heads=12,
    )  # fmt: skip

    assert read_clip(found) == TextEncoder(
        hidden_size=768,
        intermediate_size=3072,
        layers=12,
        vocab_size=49408,
        max_positions=77,
        open_clip=False,
    )
    assert text_shapes(read_clip(found)) == found


OPEN_CLIP = {
    "vocab_size": 49408, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23,
    "num_attention_heads": 16, "hidden_act": "gelu",
}  # fmt: skip


def test_of_openclips_tower_all_but_the_last_block_is_used() -> None:
    found = text(**OPEN_CLIP)

    known = read_open_clip(found)

    assert known == TextEncoder(
        hidden_size=1024,
        intermediate_size=4096,
        layers=23,
        vocab_size=49408,
        max_positions=77,
        open_clip=True,
    )
    unused = found.keys() - text_shapes(known).keys()
    assert text_shapes(known).items() <= found.items()
    assert {name for name in unused if ".23." not in name} == {"text_projection", "logit_scale"}


@pytest.mark.parametrize("projection", [True, False])
def test_a_tower_whose_last_block_was_cut_off_already_is_used_whole(*, projection: bool) -> None:
    found = {name: shape for name, shape in text(**OPEN_CLIP).items() if ".23." not in name}
    if not projection:
        del found["text_projection"]

    assert read_open_clip(found).layers == 23


@pytest.mark.parametrize(
    ("lost", "reason"),
    [
        ("input_blocks.1.0.in_layers.2.weight", "levels with different numbers of layers"),
        ("input_blocks.5.0.in_layers.2.weight", "levels with different numbers of layers"),
        ("out.2.weight", r"out\.2\.weight is missing"),
        ("input_blocks.1.1.proj_in.weight", "proj_in.weight is missing"),
        ("input_blocks.", "levels with different numbers of layers"),
    ],
)
def test_a_tensor_that_would_tell_is_missed_by_name(lost: str, reason: str) -> None:
    found = {name: shape for name, shape in unet().items() if not name.startswith(lost)}

    with pytest.raises(UnknownArchitecture, match=reason):
        read_unet(found)


def test_an_autoencoder_that_has_fewer_layers_somewhere_is_none() -> None:
    """Otherwise a small file could claim its number of names, times levels, as layers."""
    names = ["down.0.block.0", "down.0.block.1", "down.1.block.0"]
    found: Shapes = {f"encoder.{name}.conv1.weight": (8, 8, 3, 3) for name in names}

    with pytest.raises(UnknownArchitecture, match="levels with different numbers of layers"):
        read_vae(found)
