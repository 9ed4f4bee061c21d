"""Save a model as a diffusers folder, with its weights or for those of a single file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor

from shared.diffusion.files import replacing
from shared.diffusion.loading import NO_CHECKER, Parts, load
from shared.diffusion.noise import FROM_PURE_NOISE
from shared.diffusion.single_file import check_written, cpu_tensor
from shared.errors import Passing, Refused
from shared.request import LoraShape
from shared.storage.manifest import LORA_SHAPE, PARAMETERS, SINGLE_FILE

WEIGHTS = "diffusion_pytorch_model.safetensors"
DRAWN_WITH = {**FROM_PURE_NOISE, "clip_sample": False, "skip_prk_steps": True}
"""What this service draws with whatever the base model's scheduler says. With it in the folder, the
stock schedulers draw the same; see docs/schedulers.md."""


def save_folder(parts: Parts, folder: Path, *, dtype: torch.dtype = torch.float16) -> None:
    """Write a diffusers folder with weights of this type, atomically.

    The scheduler's configuration says how this service draws, and is else the base model's. The
    tokenizer gets ``vocab.json`` and ``merges.txt`` beside ``tokenizer.json``, for older
    programs.

    Raises:
        Passing: the folder does not load as it was written.
    """
    with replacing(folder) as temporary:
        _save_configurations(parts, temporary)
        for name, network in (("unet", parts.unet), ("vae", parts.vae)):
            save_file(cpu_weights(network, dtype), temporary / name / WEIGHTS, {"format": "pt"})
        parts.text_encoder.save_pretrained(
            temporary / "text_encoder", state_dict=cpu_weights(parts.text_encoder, dtype)
        )
        check_folder(parts, temporary, dtype)


def save_configurations(parts: Parts, folder: Path, file: Path, *, dtype: torch.dtype) -> None:
    """Write all of a diffusers folder but its weights, atomically.

    It loads with ``file`` in it, as :data:`SINGLE_FILE`: the same model, exported with weights of
    this type.

    Raises:
        Passing: they do not load as the model that they were made of.
    """
    with replacing(folder) as temporary:
        _save_configurations(parts, temporary)
        (temporary / SINGLE_FILE).symlink_to(file.resolve())
        check_folder(parts, temporary, dtype)
        (temporary / SINGLE_FILE).unlink()


def save_beside_lora(parts: Parts, folder: Path, shape: LoraShape | None) -> None:
    """Write what of a model's folder is not the base model's if a LoRA was trained, atomically.

    That is how it is drawn, how many parameters the networks have, and the LoRA's shape.
    """
    with replacing(folder) as temporary:
        stock_scheduler(parts, **DRAWN_WITH).save_pretrained(temporary / "scheduler")
        (temporary / PARAMETERS).write_bytes(msgspec.json.encode(parts.parameters))
        (temporary / LORA_SHAPE).write_bytes(msgspec.json.encode(shape))


def _save_configurations(parts: Parts, folder: Path) -> None:
    stock_pipeline(parts).save_config(folder)
    stock_scheduler(parts, **DRAWN_WITH).save_pretrained(folder / "scheduler")
    parts.tokenizer.save_pretrained(folder / "tokenizer")
    parts.tokenizer.backend_tokenizer.model.save(str(folder / "tokenizer"))
    for name, network in (("unet", parts.unet), ("vae", parts.vae)):
        network.save_config(folder / name)
    parts.text_encoder.config.save_pretrained(folder / "text_encoder")
    (folder / PARAMETERS).write_bytes(msgspec.json.encode(parts.parameters))


def check_folder(parts: Parts, folder: Path, dtype: torch.dtype) -> None:
    """Load a saved folder as a later job will, and compare every weight.

    Raises:
        Passing: it does not load, or a weight differs; names it.
    """
    try:
        saved = load(folder, dtype)
    except Refused as error:
        raise Passing(f"the saved model does not load again: {error}") from error
    for name in ("unet", "vae", "text_encoder"):
        expected = cpu_weights(getattr(parts, name), dtype)
        check_written(expected, getattr(saved, name).state_dict().items(), f"the saved {name}")


def stock_pipeline(parts: Parts) -> StableDiffusionPipeline:
    """The stock pipeline over these parts, without a safety checker."""
    return StableDiffusionPipeline(
        vae=parts.vae,
        text_encoder=parts.text_encoder,
        tokenizer=parts.tokenizer,
        unet=parts.unet,
        scheduler=stock_scheduler(parts),
        **NO_CHECKER,
    )


def stock_scheduler(parts: Parts, **changes: Any) -> Any:
    """The scheduler that the base model names, or DDIM if diffusers has none of that name.

    ``changes`` of its configuration that its class does not know are kept for others.
    """
    import diffusers  # noqa: PLC0415 - looked up by the name in the configuration

    kind = getattr(diffusers, str(parts.scheduler_config.get("_class_name")), DDIMScheduler)
    return kind.from_config({**parts.scheduler_config, **changes})


def cpu_weights(network: torch.nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """A network's weights, each as :func:`cpu_tensor` makes it."""
    return {name: cpu_tensor(tensor, dtype) for name, tensor in network.state_dict().items()}
