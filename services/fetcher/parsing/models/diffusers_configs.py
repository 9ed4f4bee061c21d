"""Write the diffusers configurations for a single file, from its architecture.

The tensors' shapes give most of a configuration. What they do not give (number of heads, norm
groups, scale of the latents) comes from the configured base model if its network has the same
shapes, and otherwise from what all Stable Diffusion 1 and 2 have in common.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

from services.fetcher.model_files import TOKENIZER
from services.fetcher.parsing.models.architecture import TextEncoder, UNet, Vae
from services.fetcher.parsing.models.diffusers_folder import read_config, vocabulary_of
from shared.errors import Refused

Config = dict[str, Any]
PredictionType = Literal["epsilon", "v_prediction"]

HEADS = 8
"""Of Stable Diffusion 1's UNet, at every level."""
HEAD_CHANNELS = 64
"""Per head, in Stable Diffusion 2's UNet and in both text encoders."""
SAMPLE_SIZES = {"epsilon": 64, "v_prediction": 96}
"""Of Stable Diffusion 2's latents: models for 512 pixels predict noise, those for 768 velocity."""
DEFAULTS = {"use_linear_projection": False, "hidden_act": "quick_gelu"}
"""Values of fields that a configuration leaves out."""

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
"""Stable Diffusion 2 pads captions with this, token 0; SD 1 pads with the end token."""
PAD = "<|endoftext|>"
BASE_VAE = "the configured base model's vae/config.json"


class Architecture(Struct, frozen=True, kw_only=True):
    """The architecture of a whole model, and what its UNet predicts."""

    unet: UNet
    vae: Vae | None
    """None: it gets the base model's."""
    text: TextEncoder
    prediction_type: PredictionType
    zero_snr: bool = False
    """Whether its training schedule ends in pure noise (Lin et al. 2024)."""


def write_configs(architecture: Architecture, base: Path, target: Path, shown: str) -> None:
    """Write a diffusers folder without weights, with the base model's tokenizer.

    Raises:
        Refused: the base model has another vocabulary; names ``shown``.
    """
    _write_tokenizer(architecture.text, base, target, shown)
    for name, config in configs_for(architecture, base).items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(msgspec.json.format(msgspec.json.encode(config)))


def configs_for(architecture: Architecture, base: Path) -> dict[str, Config]:
    """All configurations, by file name inside the folder."""
    unet, vae, text = architecture.unet, architecture.vae, architecture.text
    base_unet = _base_config(unet_config(unet), base / "unet/config.json")
    base_text = _base_config(text_config(text), base / "text_encoder/config.json")
    scheduler = _scheduler(architecture, base, use_base=base_unet is not None)
    return {
        "model_index.json": INDEX,
        "scheduler/scheduler_config.json": scheduler,
        "unet/config.json": base_unet or unet_config(unet) | _unet_defaults(architecture),
        "vae/config.json": _vae(vae, base / "vae/config.json"),
        "text_encoder/config.json": base_text or text_config(text) | _text_defaults(text),
    }


def _vae(vae: Vae | None, file: Path) -> Config:
    if vae is None:
        return read_config(file, BASE_VAE)
    return _base_config(vae_config(vae), file) or vae_config(vae) | _vae_defaults(vae)


def _base_config(derived: Config, file: Path) -> Config | None:
    """The base model's configuration, if it agrees with the one derived from shapes."""
    if not file.exists():  # only a tokenizer was found
        return None
    config = read_config(file, f"the configured base model: {file.name}")
    explicit = DEFAULTS | config
    return config if all(explicit.get(name) == value for name, value in derived.items()) else None


# --- Derived from shapes ----------------------------------------------------------------------


def unet_config(unet: UNet) -> Config:
    kinds = [("CrossAttn" if attends else "") for attends in unet.cross_attention]
    return {
        "block_out_channels": list(unet.channels),
        "cross_attention_dim": unet.cross_attention_dim,
        "down_block_types": [f"{kind}DownBlock2D" for kind in kinds],
        "up_block_types": [f"{kind}UpBlock2D" for kind in reversed(kinds)],
        "in_channels": unet.in_channels,
        "out_channels": unet.out_channels,
        "layers_per_block": unet.layers_per_block,
        "use_linear_projection": unet.linear_projection,
    }


def vae_config(vae: Vae) -> Config:
    levels = len(vae.channels)
    return {
        "block_out_channels": list(vae.channels),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "latent_channels": vae.latent_channels,
        "layers_per_block": vae.layers_per_block,
    }


def text_config(text: TextEncoder) -> Config:
    return {
        "hidden_act": "gelu" if text.open_clip else "quick_gelu",
        "hidden_size": text.hidden_size,
        "intermediate_size": text.intermediate_size,
        "max_position_embeddings": text.max_positions,
        "num_hidden_layers": text.layers,
        "vocab_size": text.vocab_size,
    }


# --- Common to all Stable Diffusion 1 and 2 ---------------------------------------------------


def _unet_defaults(architecture: Architecture) -> Config:
    unet, is_sd2 = architecture.unet, architecture.text.open_clip
    predicted = architecture.prediction_type
    heads = [max(channels // HEAD_CHANNELS, 1) for channels in unet.channels]
    return {
        "_class_name": "UNet2DConditionModel",
        # Despite its name the number of heads.
        "attention_head_dim": heads if unet.linear_projection else HEADS,
        "sample_size": SAMPLE_SIZES[predicted if is_sd2 else "epsilon"],
        "upcast_attention": is_sd2 and predicted == "v_prediction",
    }


def _vae_defaults(vae: Vae) -> Config:
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": 3,
        "out_channels": 3,
        "sample_size": 64 * 2 ** (len(vae.channels) - 1),
        "scaling_factor": 0.18215,
    }


def _text_defaults(text: TextEncoder) -> Config:
    return {
        "architectures": ["CLIPTextModel"],
        "bos_token_id": text.vocab_size - 2,
        "eos_token_id": text.vocab_size - 1,
        "model_type": "clip_text_model",
        "num_attention_heads": max(text.hidden_size // HEAD_CHANNELS, 1),
        "pad_token_id": 0 if text.open_clip else text.vocab_size - 1,
        "projection_dim": text.hidden_size,
    }


def _scheduler(architecture: Architecture, base: Path, *, use_base: bool) -> Config:
    file = base / "scheduler/scheduler_config.json"
    config = read_config(file, "the configured base model's scheduler") if use_base else SCHEDULER
    zero_snr = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return {
        **config,
        "prediction_type": architecture.prediction_type,
        **(zero_snr if architecture.zero_snr else {}),
    }


def _write_tokenizer(text: TextEncoder, base: Path, target: Path, shown: str) -> None:
    """Copy the base model's tokenizer; SD 1 and 2 share the vocabulary, but not the pad token."""
    vocab_size = vocabulary_of(base, "the configured base model")
    if vocab_size != text.vocab_size:
        raise Refused(
            f"{shown}: its text encoder knows {text.vocab_size} words, but the configured base"
            f" model, whose tokenizer a single file gets, has {vocab_size}; give a zipped"
            " diffusers folder"
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
