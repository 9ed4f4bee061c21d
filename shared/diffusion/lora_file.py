"""Write a LoRA as one file in kohya's layout, and read it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from shared.diffusion.files import replacing
from shared.diffusion.loading import Parts
from shared.diffusion.lora import ALPHA, PREFIXES, Lora, lora_of
from shared.diffusion.single_file import (
    architecture_of,
    check_finite,
    check_written,
    cpu_tensor,
    model_spec,
    read_safetensors,
    sha256_of_tensors,
)
from shared.diffusion.text_layout import is_open_clip
from shared.errors import Refused
from shared.request import LoraShape


def export_lora(
    loras: Mapping[str, Lora],
    parts: Parts,
    path: Path,
    *,
    dtype: torch.dtype = torch.float16,
    shape: LoraShape,
    metadata: Mapping[str, str],
) -> None:
    """Write the LoRAs of the networks as one file, atomically; it is read again before it counts.

    ``metadata`` is added to the header that A1111, ComfyUI and model sites read.

    Raises:
        Refused: a weight is not finite in this type; names it.
        Passing: the file does not read back as it was written.
    """
    tensors = lora_tensors(loras, dtype)
    check_finite(tensors)
    header = {**_kohya_header(parts, shape, tensors), **lora_spec(parts, tensors), **metadata}
    with replacing(path) as temporary:
        save_file(tensors, temporary, header)
        check_written(tensors, read_safetensors(temporary), path.name)


def lora_tensors(loras: Mapping[str, Lora], dtype: torch.dtype) -> dict[str, Tensor]:
    """All of a file's tensors: weights of this type, and each layer's alpha in fp32."""
    return {
        name: cpu_tensor(tensor, torch.float32 if name.endswith(f".{ALPHA}") else dtype)
        for lora in loras.values()
        for name, tensor in lora.state_dict().items()
    }


def attach(parts: Parts, file: Path) -> dict[str, Lora]:
    """Add a file's LoRA to the networks of a model; by network, those that it has one for.

    Raises:
        Refused: the file cannot be read, or does not fit the model; says why.
    """
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise Refused(f"the LoRA cannot be read: {error}") from error
    prefixes = tuple(PREFIXES.values())
    if strangers := sorted(name for name in tensors if not name.startswith(prefixes)):
        raise Refused(f"the LoRA has {strangers[0]}, which no layer of the model is named")
    found = {kind: lora_of(kind, getattr(parts, kind), tensors) for kind in PREFIXES}
    return {kind: lora.to(getattr(parts, kind).device) for kind, lora in found.items() if lora}


def lora_spec(parts: Parts, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """ModelSpec's header: the base model's architecture, as a LoRA."""
    spec = model_spec(parts, tensors)
    return spec | {"modelspec.architecture": f"{architecture_of(parts)[0]}/lora"}


def _kohya_header(parts: Parts, shape: LoraShape, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    is_v2 = is_open_clip(parts.text_encoder.config)
    version = "sd_v2" if is_v2 else "sd_v1"
    is_v = parts.prediction_type == "v_prediction"
    header = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(shape.rank),
        "ss_network_alpha": f"{shape.alpha:g}",
        "ss_v2": str(is_v2),
        "ss_base_model_version": f"{version}_v" if is_v else version,
        "sshs_model_hash": sha256_of_tensors(tensors),
    }
    if shape.conv_rank:
        conv = {
            "conv_dim": str(shape.conv_rank),
            "conv_alpha": f"{shape.alpha * shape.conv_rank / shape.rank:g}",
        }
        header["ss_network_args"] = msgspec.json.encode(conv).decode()
    return header
