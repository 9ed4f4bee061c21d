"""Names and shapes of a diffusers folder's tensors, with real sizes but without weights."""

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from services.fetcher.parsing.models.architecture import Shapes
from services.fetcher.parsing.models.folder_tensors import check_tensors
from services.fetcher.parsing.models.safetensors_file import TensorEntry
from shared.errors import Refused

SD_1 = {"cross_attention_dim": 768}
SD_2 = {
    "cross_attention_dim": 1024, "use_linear_projection": True,
    "attention_head_dim": (5, 10, 20, 20),
}  # fmt: skip
ODD = {
    "block_out_channels": (32, 64, 96), "layers_per_block": 3, "cross_attention_dim": 16,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip
DISTILLED = {
    "block_out_channels": (320, 640, 1280), "layers_per_block": 1, "mid_block_type": None,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3,
    "up_block_types": ("CrossAttnUpBlock2D",) * 3, "cross_attention_dim": 768,
}  # fmt: skip
SD_VAE = {
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip


def entries_of(network: torch.nn.Module) -> dict[str, TensorEntry]:
    shapes: Shapes = {name: tuple(each.shape) for name, each in network.state_dict().items()}
    return {
        name: TensorEntry(dtype="F16", shape=shape, data_offsets=(0, 0))
        for name, shape in shapes.items()
    }


def unet(**numbers: Any) -> tuple[dict[str, Any], dict[str, TensorEntry]]:
    with torch.device("meta"):
        network = UNet2DConditionModel(**numbers)
    return dict(network.config), entries_of(network)


def text(**numbers: Any) -> tuple[dict[str, Any], dict[str, TensorEntry]]:
    with torch.device("meta"):
        network = CLIPTextModel(CLIPTextConfig(architectures=["CLIPTextModel"], **numbers))
    return network.config.to_dict(), entries_of(network)


def assert_asked_for_and_no_other(
    folder: str, entries: dict[str, TensorEntry], config: dict[str, Any]
) -> None:
    """All that is asked for is there, and as many are asked for: so each of them is."""
    assert check_tensors(folder, entries, config, folder) == []
    with pytest.raises(Refused, match=f"{folder}: {len(entries)} of the {len(entries)} tensors"):
        check_tensors(folder, {}, config, folder)


@pytest.mark.parametrize(
    "numbers", [SD_1, SD_2, ODD, DISTILLED], ids=["SD 1", "SD 2", "odd", "distilled"]
)
def test_every_tensor_of_a_unet_is_asked_for_and_no_other(numbers: dict[str, Any]) -> None:
    config, entries = unet(**numbers)

    assert_asked_for_and_no_other("unet", entries, config)


@pytest.mark.parametrize("name", ["conv_in.weight", "time_embedding.linear_2.bias"])
def test_a_tensor_that_is_missing_is_named(name: str) -> None:
    config, entries = unet(**SD_1)
    del entries[name]

    with pytest.raises(Refused, match=rf"unet: 1 of the 686 tensors .* first {name}"):
        check_tensors("unet", entries, config, "unet")


def test_so_is_every_one_of_an_autoencoder_by_new_names_and_old() -> None:
    with torch.device("meta"):
        network = AutoencoderKL(**SD_VAE)
    entries = entries_of(network)
    old = {
        name.replace(".to_q.", ".query.").replace(".to_k.", ".key.").replace(".to_v.", ".value.")
        .replace(".to_out.0.", ".proj_attn."): entry
        for name, entry in entries.items()
    }  # fmt: skip

    assert old.keys() != entries.keys()
    for each in (entries, old):
        assert_asked_for_and_no_other("vae", each, dict(network.config))


@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_so_is_every_one_of_a_text_encoder_flat_or_nested(prefix: str) -> None:
    config, entries = text(hidden_size=768, intermediate_size=3072)
    nested = {prefix + name.removeprefix("text_model."): each for name, each in entries.items()}
    positions = TensorEntry(dtype="I64", shape=(1, 77), data_offsets=(0, 0))
    nested[f"{prefix}embeddings.position_ids"] = positions

    assert check_tensors("text_encoder", nested, config, "text_encoder") == []
    del nested[f"{prefix}final_layer_norm.bias"]
    with pytest.raises(Refused, match=r"1 of the 196 tensors .* first final_layer_norm\.bias"):
        check_tensors("text_encoder", nested, config, "text_encoder")


def test_a_tensor_of_another_shape_is_refused_with_both() -> None:
    config, entries = unet(**SD_1)
    entries["conv_in.weight"] = TensorEntry(dtype="F16", shape=(320, 9, 3, 3), data_offsets=(0, 0))

    with pytest.raises(
        Refused, match=r"conv_in\.weight has shape 320x9x3x3, .* asks for 320x4x3x3"
    ):
        check_tensors("unet", entries, config, "unet")


@pytest.mark.parametrize(
    "numbers",
    [
        {**SD_1, "class_embed_type": "timestep"},
        {**SD_1, "transformer_layers_per_block": 2},
        {**SD_1, "time_embedding_dim": 512},
        {**SD_1, "only_cross_attention": True},
        {**ODD, "norm_num_groups": 16, "down_block_types": ("ResnetDownsampleBlock2D",) * 3},
    ],
)
def test_networks_of_other_blocks_are_left_to_the_loader(numbers: dict[str, Any]) -> None:
    config, entries = unet(**numbers)

    assert check_tensors("unet", entries, config, "unet") == []


@pytest.mark.parametrize(
    "config",
    [
        {"block_out_channels": "wide"},
        {"block_out_channels": []},
        {"block_out_channels": [0, 0, 0, 0]},
        {"layers_per_block": -1},
        {"cross_attention_dim": [1, 2]},
        {"down_block_types": []},
    ],
)
def test_so_are_configurations_that_make_no_sense(config: dict[str, Any]) -> None:
    assert check_tensors("unet", {}, config, "unet") == []
