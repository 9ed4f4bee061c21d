"""Rename the text encoder's weights as in the original Stable Diffusion 1 and 2.

Version 1 has OpenAI's CLIP, with transformers' names under ``text_model.``. Version 2 has
OpenCLIP's tower with OpenCLIP's names: query, key and value are one matrix, and there is one more
block than is used.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

State = Mapping[str, Tensor]

CLIP = "cond_stage_model.transformer."
OPEN_CLIP = "cond_stage_model.model."
ENDS = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
BLOCK = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
PARTS = ("q_proj", "k_proj", "v_proj")
"""In the order in which they are concatenated."""
LOGIT_SCALE = 4.6052
"""ln 100, the cap of CLIP's temperature; nothing here reads it."""


def is_open_clip(config: CLIPTextConfig) -> bool:
    """OpenCLIP's tower, and so Stable Diffusion 2: it uses plain GELU, OpenAI's another."""
    return str(config.hidden_act) == "gelu"


def text_layout(text_encoder: CLIPTextModel) -> dict[str, Tensor]:
    """Every weight under its original name, with prefix."""
    state = {
        name.removeprefix("text_model."): each for name, each in text_encoder.state_dict().items()
    }
    if is_open_clip(text_encoder.config):
        return {f"{OPEN_CLIP}{name}": each for name, each in open_clip_layout(state).items()}
    return {f"{CLIP}text_model.{name}": each for name, each in state.items()}


def open_clip_layout(state: State) -> dict[str, Tensor]:
    """A text encoder's weights under OpenCLIP's names, completed to the whole tower.

    The last block was cut off because it is never used (the penultimate states are taken). Programs
    that build the tower before they load it need one, so it is a copy of the block before. The
    projection is unused as well: it is the identity.
    """
    layers = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("encoder.layers"))
    layout = {new: state[name] for name, new in ENDS.items()}
    for layer in range(layers):
        layout |= _block(state, f"encoder.layers.{layer}.", f"transformer.resblocks.{layer}.")
    spare = _block(state, f"encoder.layers.{layers - 1}.", f"transformer.resblocks.{layers}.")
    layout |= {name: each.clone() for name, each in spare.items()}
    embedding = layout["token_embedding.weight"]
    layout["text_projection"] = torch.eye(embedding.shape[1], dtype=embedding.dtype)
    layout["logit_scale"] = torch.tensor(LOGIT_SCALE, dtype=embedding.dtype)
    return layout


def _block(state: State, old: str, new: str) -> dict[str, Tensor]:
    block = {
        f"{new}{new_part}.{kind}": state[f"{old}{part}.{kind}"]
        for part, new_part in BLOCK.items()
        for kind in ("weight", "bias")
    }
    for kind in ("weight", "bias"):
        parts = [state[f"{old}self_attn.{part}.{kind}"] for part in PARTS]
        block[f"{new}attn.in_proj_{kind}"] = torch.cat(parts)
    return block
