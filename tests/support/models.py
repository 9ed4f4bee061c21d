"""Tiny random models with the parts of Stable Diffusion 1.5 or 2.1, always the same."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from shared.diffusion.loading import Parts, load
from shared.diffusion.saving import save_folder

SCHEDULER = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}


def make_random_model(folder: Path, *, prediction_type: str = "epsilon") -> Path:
    """Save a random model as a diffusers folder."""
    shutil.copytree(Path(_saved_random_model(prediction_type).name, "model"), folder)
    return folder


@cache
def _saved_random_model(prediction_type: str) -> TemporaryDirectory[str]:
    """A folder that has it in ``model``, and that is removed when the process ends."""
    folder = TemporaryDirectory()
    save_folder(random_parts(prediction_type), Path(folder.name, "model"), dtype=torch.float32)
    return folder


def random_parts(prediction_type: str = "epsilon", *, layers: int = 1) -> Parts:
    torch.manual_seed(7)
    tokenizer = small_tokenizer()
    return _parts(
        small_unet(layers),
        small_vae(layers),
        small_text_encoder(tokenizer),
        tokenizer,
        prediction_type,
    )


def _parts(
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    prediction_type: str = "epsilon",
) -> Parts:
    config = dict(PNDMScheduler(**SCHEDULER, prediction_type=prediction_type).config)
    return Parts(
        unet=unet,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler_config={**config, "_class_name": "PNDMScheduler"},
        prediction_type="v_prediction" if prediction_type == "v_prediction" else "epsilon",
    )


def random_sd2_parts(
    prediction_type: str = "epsilon", *, tokenizer: CLIPTokenizer | None = None
) -> Parts:
    """Stable Diffusion 2: linear projections, heads of 64 channels, 23 of OpenCLIP's 24 layers."""
    torch.manual_seed(8)
    tokenizer = tokenizer or small_tokenizer()
    tokenizer.pad_token = "!"
    return _parts(
        sd2_unet(), standard_vae(), sd2_text_encoder(len(tokenizer)), tokenizer, prediction_type
    )


def standard_parts(tokenizer: CLIPTokenizer) -> Parts:
    """Stable Diffusion 1 with the usual values that shapes do not show: 8 heads, ..."""
    torch.manual_seed(9)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=2,
        )
    )
    unet = UNet2DConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=128,
        attention_head_dim=8,
    )
    return _parts(unet, standard_vae(), text_encoder, tokenizer)


def sd2_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=96,
        block_out_channels=(64, 128, 128),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=64,
        attention_head_dim=(1, 2, 2),
        use_linear_projection=True,
    )


def sd2_text_encoder(words: int) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=words,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=23,
            num_attention_heads=1,
            hidden_act="gelu",
        )
    )


def standard_vae() -> AutoencoderKL:
    """With the 32 norm groups of all original models."""
    return AutoencoderKL(
        block_out_channels=(32,) * 4,
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        sample_size=256,
    )


def reload(parts: Parts, folder: Path) -> Parts:
    save_folder(parts, folder, dtype=torch.float32)
    return load(folder)


def small_unet(layers: int = 1) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=32,
        block_out_channels=(16, 32, 32),
        layers_per_block=layers,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=1,
        norm_num_groups=8,
    )


def small_vae(layers: int = 1) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=layers,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=256,
    )


def small_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=2,
            max_position_embeddings=77,
            bos_token_id=len(tokenizer) - 2,
            eos_token_id=len(tokenizer) - 1,
            pad_token_id=len(tokenizer) - 1,
        )
    )


def small_tokenizer() -> CLIPTokenizer:
    """Byte-pair encoding with single bytes and a few pairs."""
    alphabet = byte_characters()
    merges = [("r", "e"), ("re", "d</w>"), ("b", "l"), ("bl", "u"), ("blu", "e</w>")]
    words = [*alphabet, *(f"{each}</w>" for each in alphabet), *(a + b for a, b in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={word: number for number, word in enumerate(words)},
        merges=merges,  # type: ignore[arg-type]
        model_max_length=77,
    )


def byte_characters() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [each for each in range(256) if each not in printable]
    return [chr(each) for each in printable] + [chr(256 + n) for n in range(len(others))]
