"""A model from memory to a diffusers folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor

from shared.diffusion.files import replacing
from shared.diffusion.loading import NO_CHECKER, Parts, load
from shared.diffusion.single_file import check_written
from shared.errors import Passing, Refused

WEIGHTS = "diffusion_pytorch_model.safetensors"


def save_folder(parts: Parts, folder: Path, *, dtype: torch.dtype = torch.float16) -> None:
    """Write a diffusers folder with weights of this type, whole or not at all.

    The tokenizer gets its ``vocab.json`` and ``merges.txt`` beside ``tokenizer.json``, for older
    programs.

    Raises:
        Passing: the folder does not load again as it was written.
    """
    with replacing(folder) as temporary:
        pipeline(parts).save_config(temporary)
        parts_scheduler(parts).save_pretrained(temporary / "scheduler")
        _save_tokenizer(parts, temporary / "tokenizer")
        for name, network in (("unet", parts.unet), ("vae", parts.vae)):
            network.save_config(temporary / name)
            save_file(cast(network, dtype), temporary / name / WEIGHTS, {"format": "pt"})
        parts.text_encoder.save_pretrained(
            temporary / "text_encoder", state_dict=cast(parts.text_encoder, dtype)
        )
        check_folder(parts, temporary, dtype)


def check_folder(parts: Parts, folder: Path, dtype: torch.dtype) -> None:
    """Load a saved folder as a job that starts from it will, and compare every weight.

    Raises:
        Passing: it does not load, or a weight is not what was to be written; names it.
    """
    try:
        saved = load(folder, dtype)
    except Refused as error:
        raise Passing(f"the saved model does not load again: {error}") from error
    for name in ("unet", "vae", "text_encoder"):
        wanted = cast(getattr(parts, name), dtype)
        check_written(wanted, getattr(saved, name).state_dict().items(), f"the saved {name}")


def pipeline(parts: Parts) -> StableDiffusionPipeline:
    """The stock pipeline over these parts; it has no safety checker."""
    return StableDiffusionPipeline(
        vae=parts.vae,
        text_encoder=parts.text_encoder,
        tokenizer=parts.tokenizer,
        unet=parts.unet,
        scheduler=parts_scheduler(parts),
        **NO_CHECKER,
    )


def parts_scheduler(parts: Parts) -> Any:
    """The base model's own scheduler, or DDIM where it names none that is known."""
    import diffusers  # noqa: PLC0415 - looked up by the name in the configuration

    kind = getattr(diffusers, str(parts.scheduler_config.get("_class_name")), DDIMScheduler)
    return kind.from_config(parts.scheduler_config)


def _save_tokenizer(parts: Parts, folder: Path) -> None:
    parts.tokenizer.save_pretrained(folder)
    parts.tokenizer.backend_tokenizer.model.save(str(folder))


def cast(network: torch.nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """A network's weights on the CPU, the floating ones of this type."""
    return {
        name: tensor.detach().to("cpu", dtype if tensor.is_floating_point() else None).contiguous()
        for name, tensor in network.state_dict().items()
    }
