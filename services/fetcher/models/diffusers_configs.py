"""The configurations that a single file needs beside it, from its geometry.

Shapes tell most of a configuration. What they do not tell (the number of heads, norm groups, the
scale of the latents) is the configured base model's where its network has the same shapes, and
otherwise what all of Stable Diffusion 1 and 2 have in common.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

from services.fetcher.models.architecture import Text, UNet, Vae
from services.fetcher.models.diffusers_folder import TOKENIZER, read_config, vocabulary_of
from shared.errors import Refused

Config = dict[str, Any]
Predicts = Literal["epsilon", "v_prediction"]

HEADS = 8
"""Of Stable Diffusion 1's UNet, at every level."""
HEAD_CHANNELS = 64
"""Of a head: in Stable Diffusion 2's UNet, and in both text encoders."""
SIDES = {"epsilon": 64, "v_prediction": 96}
"""Of Stable Diffusion 2's latents: models for 512 pixels predict noise, those for 768 velocity."""
SILENT = {"use_linear_projection": False, "hidden_act": "quick_gelu"}
"""What a configuration means by leaving something out."""

SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}
INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.6.0",
    "feature_extractor": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", SCHEDULER["_class_name"]],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
OPEN_CLIP_PAD = "!"
"""Stable Diffusion 2 fills captions up with this, the first word, and SD 1 with the end's sign."""
PAD = "<|endoftext|>"


class Geometry(Struct, frozen=True, kw_only=True):
    """Of a whole model, and what its UNet predicts."""

    unet: UNet
    vae: Vae
    text: Text
    predicts: Predicts
    zero_snr: bool = False
    """Whether it was trained with a schedule that ends in pure noise (Lin et al. 2024)."""


def write_configurations(geometry: Geometry, base: Path, target: Path, shown: str) -> None:
    """Everything of a diffusers folder except the weights; the words are the base model's.

    Raises:
        Refused: the base model has another vocabulary; names ``shown``.
    """
    _write_tokenizer(geometry.text, base, target, shown)
    for name, config in configurations(geometry, base).items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(msgspec.json.format(msgspec.json.encode(config)))


def configurations(geometry: Geometry, base: Path) -> dict[str, Config]:
    """By file name inside the folder."""
    unet = _like_the_base(unet_config(geometry.unet), base / "unet/config.json")
    vae = _like_the_base(vae_config(geometry.vae), base / "vae/config.json")
    text = _like_the_base(text_config(geometry.text), base / "text_encoder/config.json")
    return {
        "model_index.json": INDEX,
        "scheduler/scheduler_config.json": _scheduler(geometry, base, is_ours=unet is not None),
        "unet/config.json": unet or unet_config(geometry.unet) | _unet_rest(geometry),
        "vae/config.json": vae or vae_config(geometry.vae) | _vae_rest(geometry.vae),
        "text_encoder/config.json": text or text_config(geometry.text) | _text_rest(geometry.text),
    }


def _like_the_base(derived: Config, file: Path) -> Config | None:
    """The base model's configuration, if it agrees with everything that shapes tell."""
    ours = read_config(file, f"the configured base model: {file.name}")
    meant = SILENT | ours
    return ours if all(meant.get(name) == value for name, value in derived.items()) else None


# --- What shapes tell -------------------------------------------------------------------------


def unet_config(unet: UNet) -> Config:
    kinds = [("CrossAttn" if attended else "") for attended in unet.attended]
    return {
        "block_out_channels": list(unet.channels),
        "cross_attention_dim": unet.context,
        "down_block_types": [f"{kind}DownBlock2D" for kind in kinds],
        "up_block_types": [f"{kind}UpBlock2D" for kind in reversed(kinds)],
        "in_channels": unet.takes,
        "out_channels": unet.gives,
        "layers_per_block": unet.layers,
        "use_linear_projection": unet.linear,
    }


def vae_config(vae: Vae) -> Config:
    levels = len(vae.channels)
    return {
        "block_out_channels": list(vae.channels),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "latent_channels": vae.latent,
        "layers_per_block": vae.layers,
    }


def text_config(text: Text) -> Config:
    return {
        "hidden_act": "gelu" if text.open_clip else "quick_gelu",
        "hidden_size": text.width,
        "intermediate_size": text.inner,
        "max_position_embeddings": text.positions,
        "num_hidden_layers": text.layers,
        "vocab_size": text.words,
    }


# --- What all have in common ------------------------------------------------------------------


def _unet_rest(geometry: Geometry) -> Config:
    unet, is_second = geometry.unet, geometry.text.open_clip
    heads = [max(channels // HEAD_CHANNELS, 1) for channels in unet.channels]
    return {
        "_class_name": "UNet2DConditionModel",
        "attention_head_dim": heads if unet.linear else HEADS,  # their number, despite the name
        "sample_size": SIDES[geometry.predicts] if is_second else SIDES["epsilon"],
        "upcast_attention": is_second and geometry.predicts == "v_prediction",
    }


def _vae_rest(vae: Vae) -> Config:
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": 3,
        "out_channels": 3,
        "sample_size": 64 * 2 ** (len(vae.channels) - 1),
        "scaling_factor": 0.18215,
    }


def _text_rest(text: Text) -> Config:
    return {
        "architectures": ["CLIPTextModel"],
        "bos_token_id": text.words - 2,
        "eos_token_id": text.words - 1,
        "model_type": "clip_text_model",
        "num_attention_heads": max(text.width // HEAD_CHANNELS, 1),
        "pad_token_id": 0 if text.open_clip else text.words - 1,
        "projection_dim": text.width,
    }


def _scheduler(geometry: Geometry, base: Path, *, is_ours: bool) -> Config:
    file = base / "scheduler/scheduler_config.json"
    ours = read_config(file, "the configured base model's scheduler") if is_ours else SCHEDULER
    zero = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return {
        **ours,
        "prediction_type": geometry.predicts,
        **(zero if geometry.zero_snr else {}),
    }


def _write_tokenizer(text: Text, base: Path, target: Path, shown: str) -> None:
    """The base model's words; SD 1 and 2 have the same, and differ in what fills a caption up."""
    known = vocabulary_of(base, "the configured base model")
    if known != text.words:
        raise Refused(
            f"{shown}: its text encoder knows {text.words} words, but the configured base model,"
            f" whose tokenizer a single file gets, has {known}; give a zipped diffusers folder"
        )
    (target / "tokenizer").mkdir(parents=True)
    for name in TOKENIZER:
        if (base / name).exists():
            (target / name).write_bytes((base / name).read_bytes())
    _write_pad(target / "tokenizer", OPEN_CLIP_PAD if text.open_clip else PAD)


def _write_pad(folder: Path, pad: str) -> None:
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (file := folder / name).exists():
            config = read_config(file, name)
            file.write_bytes(msgspec.json.encode({**config, "pad_token": pad}))
