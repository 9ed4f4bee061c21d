"""Load a Stable Diffusion model from a folder, offline, with errors that help the user."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from safetensors import SafetensorError
from transformers import CLIPTextModel, CLIPTokenizer

from shared.diffusion.noise import PredictionType, prediction_type
from shared.errors import Refused
from shared.storage.manifest import SINGLE_FILE

NO_CHECKER = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
LOAD_ERRORS = (
    OSError, ValueError, KeyError, RuntimeError, NotImplementedError, TypeError, SafetensorError
)  # fmt: skip
"""What the loaders raise for a bad file; a missing key ends in ``NotImplementedError``."""


@dataclass(frozen=True)
class Parts:
    """The parts of a Stable Diffusion model."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler_config: dict[str, Any]
    prediction_type: PredictionType

    @property
    def parameters(self) -> dict[str, int]:
        """How many each network has."""
        networks: dict[str, torch.nn.Module] = {
            "unet": self.unet, "text_encoder": self.text_encoder, "vae": self.vae
        }  # fmt: skip
        return {
            name: sum(weight.numel() for weight in network.parameters())
            for name, network in networks.items()
        }

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> Parts:
        """Move all networks to the device, and convert them to ``dtype`` if it is given."""
        networks: tuple[torch.nn.Module, ...] = (self.unet, self.vae, self.text_encoder)
        for network in networks:
            network.to(device, dtype)
        return self


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Parts:
    """Load a diffusers folder, or a folder of configurations with ``single_file.safetensors``.

    Raises:
        Refused: something is missing, incomplete or of another kind; names the part.
    """
    single = folder / SINGLE_FILE
    parts = _load_single(single, dtype) if single.exists() else _load_folder(folder, dtype)
    _check_tokenizer(parts)
    for network in (parts.unet, parts.vae, parts.text_encoder):
        network.eval()
    return parts


def _load_folder(folder: Path, dtype: torch.dtype) -> Parts:
    config = load_scheduler_config(folder)
    return Parts(
        unet=_network(UNet2DConditionModel, folder, "unet", dtype),
        vae=_network(AutoencoderKL, folder, "vae", dtype),
        text_encoder=_network(CLIPTextModel, folder, "text_encoder", dtype),
        tokenizer=_tokenizer(folder),
        scheduler_config=config,
        prediction_type=prediction_type(config),
    )


def _load_single(file: Path, dtype: torch.dtype) -> Parts:
    config = load_scheduler_config(file.parent)
    try:
        pipeline = StableDiffusionPipeline.from_single_file(
            str(file),
            config=str(file.parent),
            local_files_only=True,
            torch_dtype=dtype,
            **NO_CHECKER,
        )
    except LOAD_ERRORS as error:
        raise Refused(f"the base model cannot be loaded: {_reason(error)}") from error
    return Parts(
        unet=pipeline.unet,
        vae=pipeline.vae,
        text_encoder=pipeline.text_encoder,
        tokenizer=_tokenizer(file.parent),
        scheduler_config=config,
        prediction_type=prediction_type(config),
    )


def _network(kind: Any, folder: Path, name: str, dtype: torch.dtype) -> Any:
    """Load a network, and refuse missing weights, which the library would leave random."""
    precision = {"dtype": dtype} if kind is CLIPTextModel else {"torch_dtype": dtype}
    try:
        network, info = kind.from_pretrained(
            folder / name,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            variant=_variant(folder / name),
            **precision,
        )
    except LOAD_ERRORS as error:
        raise Refused(f"the base model's {name} cannot be loaded: {_reason(error)}") from error
    if missing := sorted(info["missing_keys"]):
        raise Refused(
            f"the base model's {name} lacks {len(missing)} weights, the first {missing[0]}"
        )
    return network


def _variant(folder: Path) -> str | None:
    """``fp16`` where the folder has no other files."""
    files = list(folder.glob("*.safetensors"))
    return "fp16" if files and all(".fp16" in file.name for file in files) else None


def load_scheduler_config(folder: Path) -> dict[str, Any]:
    """The configuration of a model's scheduler.

    Raises:
        Refused: it cannot be read.
    """
    try:
        config: Mapping[str, Any] = DDPMScheduler.load_config(
            folder / "scheduler", local_files_only=True
        )
    except LOAD_ERRORS as error:
        raise Refused(f"the base model's scheduler cannot be loaded: {_reason(error)}") from error
    return dict(config)


def _tokenizer(folder: Path) -> CLIPTokenizer:
    try:
        tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(
            folder / "tokenizer", local_files_only=True
        )
    except LOAD_ERRORS as error:
        raise Refused(f"the base model's tokenizer cannot be loaded: {_reason(error)}") from error
    return tokenizer


def _check_tokenizer(parts: Parts) -> None:
    """A tokenizer without its files loads empty, and would make all captions the same."""
    known, embedded = len(parts.tokenizer), parts.text_encoder.config.vocab_size
    if known != embedded:
        raise Refused(
            f"the base model's tokenizer has {known} tokens, its text encoder embeds {embedded};"
            " expected tokenizer/vocab.json and merges.txt (or tokenizer.json) of the same model"
        )
    longest = parts.text_encoder.config.max_position_embeddings
    parts.tokenizer.model_max_length = min(parts.tokenizer.model_max_length, longest)


def _reason(error: Exception) -> str:
    if "meta tensor" in str(error):
        return "weights are missing from the file"
    return " ".join(str(error).split())[:500]
