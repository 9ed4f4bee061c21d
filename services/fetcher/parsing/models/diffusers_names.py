"""Names of a network's tensors in a diffusers folder, from its architecture and back.

The architecture gives every tensor of the original layout; each has one name in diffusers' layout.
"""

from __future__ import annotations

import re
from itertools import count

from services.fetcher.parsing.models.architecture import (
    Shapes,
    TextEncoder,
    UNet,
    Vae,
    text_shapes,
    unet_shapes,
    vae_shapes,
)

UNET_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
    "middle_block.0": "mid_block.resnets.0",
    "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
}
RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
VAE_ATTENTION = {
    "norm": "group_norm",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "proj_out": "to_out.0",
}
OLD_VAE_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""As diffusers before 0.15 has written them; its loader takes both."""
TEXT_PREFIX = "text_model."
"""Before every name of a text encoder, unless transformers 5 or later has written it."""


def diffusers_unet_shapes(unet: UNet) -> Shapes:
    """All tensors of a UNet by their names in diffusers' layout."""
    blocks = {**UNET_ENDS, **_down_blocks(unet), **_up_blocks(unet)}
    return {_unet_name(name, blocks): shape for name, shape in unet_shapes(unet).items()}


def diffusers_vae_shapes(vae: Vae) -> Shapes:
    """The same of an autoencoder; its attention consists of matrices."""
    shapes, names = vae_shapes(vae), vae_names(vae)
    return {
        names[name]: shape[:2] if _is_attention(name) else shape for name, shape in shapes.items()
    }


def diffusers_text_shapes(text: TextEncoder) -> Shapes:
    """The same of a text encoder, without ``text_model.``."""
    return {name.removeprefix(TEXT_PREFIX): shape for name, shape in text_shapes(text).items()}


def vae_names(vae: Vae) -> dict[str, str]:
    """An autoencoder's names in the original layout to those in diffusers' layout."""
    return {name: _vae_name(name, len(vae.channels)) for name in vae_shapes(vae)}


def current_name(part: str, name: str) -> str:
    """Today's name of a tensor in a diffusers folder's ``part``."""
    if part == "text_encoder":
        return name.removeprefix(TEXT_PREFIX)
    parent, attention, rest = name.partition(".mid_block.attentions.0.")
    if part != "vae" or not attention:
        return name
    old, _, kind = rest.rpartition(".")
    return f"{parent}{attention}{OLD_VAE_ATTENTION.get(old, old)}.{kind}"


def _down_blocks(unet: UNet) -> dict[str, str]:
    """``input_blocks.1.0`` to ``down_blocks.0.resnets.0``, and so on."""
    names, numbers = {}, count(1)
    for level in range(len(unet.channels)):
        for layer in range(unet.layers_per_block):
            number = next(numbers)
            names[f"input_blocks.{number}.0"] = f"down_blocks.{level}.resnets.{layer}"
            names[f"input_blocks.{number}.1"] = f"down_blocks.{level}.attentions.{layer}"
        if level < len(unet.channels) - 1:
            names[f"input_blocks.{next(numbers)}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
    return names


def _up_blocks(unet: UNet) -> dict[str, str]:
    """An upsampler is after its level's last layer, and after the attention if there is one."""
    names, layers = {}, unet.layers_per_block + 1
    for block, attends in enumerate(reversed(unet.cross_attention)):
        for layer in range(layers):
            number = block * layers + layer
            names[f"output_blocks.{number}.0"] = f"up_blocks.{block}.resnets.{layer}"
            names[f"output_blocks.{number}.1"] = f"up_blocks.{block}.attentions.{layer}"
        upsampler = f"output_blocks.{block * layers + layers - 1}.{1 + attends}.conv"
        names[upsampler] = f"up_blocks.{block}.upsamplers.0.conv"
    return names


def _unet_name(name: str, blocks: dict[str, str]) -> str:
    parts = name.split(".")
    # The longest first: an upsampler's name begins like an attention's.
    length = next(n for n in (4, 3, 2) if ".".join(parts[:n]) in blocks)
    new, rest = blocks[".".join(parts[:length])], ".".join(parts[length:])
    if ".resnets." in new:
        part, kind = rest.rsplit(".", 1)
        rest = f"{RESNET[part]}.{kind}"
    return f"{new}.{rest}"


def _vae_name(name: str, levels: int) -> str:
    if _is_attention(name) or ".mid.attn_1.norm." in name:
        parent, rest = name.split(".mid.attn_1.")
        part, kind = rest.rsplit(".", 1)
        return f"{parent}.mid_block.attentions.0.{VAE_ATTENTION[part]}.{kind}"
    name = re.sub(r"down\.(\d+)\.block\.(\d+)", r"down_blocks.\1.resnets.\2", name)
    name = re.sub(r"down\.(\d+)\.downsample", r"down_blocks.\1.downsamplers.0", name)
    name = re.sub(r"up\.(\d+)\.block\.(\d+)", r"up.\1.resnets.\2", name)
    name = re.sub(r"up\.(\d+)\.upsample", r"up.\1.upsamplers.0", name)
    name = re.sub(r"up\.(\d+)\.", lambda at: f"up_blocks.{levels - 1 - int(at[1])}.", name)
    name = re.sub(r"mid\.block_(\d)", lambda at: f"mid_block.resnets.{int(at[1]) - 1}", name)
    return name.replace("nin_shortcut", "conv_shortcut").replace("norm_out", "conv_norm_out")


def _is_attention(name: str) -> bool:
    """Whether a name is that of a matrix, or its bias, in an autoencoder's attention."""
    return ".mid.attn_1." in name and ".norm." not in name
