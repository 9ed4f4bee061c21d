"""A model as one file in the key layout of the original Stable Diffusion, which stock loaders take.

Three maps of names, one per network, for any number of blocks and layers. The VAE's attention was
made of 1x1 convolutions, so its weights get two more dimensions. A file is read again before it
takes its place: nobody shall find out days later that it was damaged on its way to the disk.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from shared.diffusion.files import replacing
from shared.diffusion.loading import Parts
from shared.diffusion.text_layout import is_open_clip, text_layout
from shared.errors import Passing, Refused

State = Mapping[str, Tensor]

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
SIDE = 64
"""Of latents, where a configuration does not tell: the stock pipeline draws such."""
VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}


def export(
    parts: Parts,
    path: Path,
    *,
    dtype: torch.dtype = torch.float16,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write the model as one file, whole or not at all; a name in ``.ckpt`` gets torch's pickle.

    Raises:
        Refused: a weight is no finite number in this type; names it.
        Passing: the file does not read back as it was written.
    """
    tensors = {name: _as(tensor, dtype) for name, tensor in original_layout(parts).items()}
    _check_finite(tensors)
    described = {**_model_spec(parts, tensors), **(metadata or {})}
    write, read = FORMATS["ckpt" if path.suffix == ".ckpt" else "safetensors"]
    with replacing(path) as temporary:
        write(tensors, temporary, described)
        check_written(tensors, read(temporary), path.name)


def original_layout(parts: Parts) -> dict[str, Tensor]:
    """Every weight under its original name; most share memory with the networks'."""
    return {
        **{
            f"model.diffusion_model.{k}": v for k, v in unet_layout(parts.unet.state_dict()).items()
        },
        **{f"first_stage_model.{k}": v for k, v in vae_layout(parts.vae.state_dict()).items()},
        **text_layout(parts.text_encoder),
    }


# --- Writing and reading again ----------------------------------------------------------------


def _write_safetensors(tensors: dict[str, Tensor], path: Path, described: dict[str, str]) -> None:
    save_file(tensors, path, metadata=described)


def _write_ckpt(tensors: dict[str, Tensor], path: Path, described: dict[str, str]) -> None:
    torch.save({"state_dict": tensors, "modelspec": described}, path)


def _read_safetensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    with safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118 - it is no dict
            yield name, file.get_tensor(name)


def _read_ckpt(path: Path) -> Iterator[tuple[str, Tensor]]:
    yield from torch.load(path, weights_only=True, mmap=True)["state_dict"].items()


FORMATS = {
    "safetensors": (_write_safetensors, _read_safetensors),
    "ckpt": (_write_ckpt, _read_ckpt),
}


def check_written(wanted: State, found: Iterable[tuple[str, Tensor]], shown: str) -> None:
    """Compare what was read with what was to be written, tensor by tensor.

    Raises:
        Passing: a tensor is missing, too many, or of another type, shape or value; names it.
    """
    missing = set(wanted)
    for name, tensor in found:
        missing.discard(name)
        if name not in wanted or not _same(tensor, wanted[name]):
            raise Passing(f"{shown} does not read back as it was written: {name} differs")
    if missing:
        raise Passing(f"{shown} does not read back as it was written: {min(missing)} is missing")


def _same(one: Tensor, other: Tensor) -> bool:
    """To the bit: what is no number equals itself, too."""
    alike = one.dtype == other.dtype and one.shape == other.shape
    return alike and torch.equal(*(each.reshape(-1).view(torch.uint8) for each in (one, other)))


def _check_finite(tensors: State) -> None:
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise Refused(
                f"{name} is no finite number in {tensor.dtype}: the training has diverged, or needs"
                " save_full_precision true. Try a lower lr or clip_grad_norm 1"
            )


# --- Names ------------------------------------------------------------------------------------


def unet_layout(state: State) -> dict[str, Tensor]:
    """UNet2DConditionModel's names as the original's: blocks become one numbered list each way."""
    blocks = _unet_blocks(state)
    return {_unet_name(name, blocks): tensor for name, tensor in state.items()}


def vae_layout(state: State) -> dict[str, Tensor]:
    """AutoencoderKL's names and shapes as the original's."""
    levels = 1 + max(int(found[1]) for found in _matches(r"decoder\.up_blocks\.(\d+)\.", state))
    return dict(_vae_entry(name, tensor, levels) for name, tensor in state.items())


def _unet_blocks(state: State) -> dict[str, str]:
    """``down_blocks.0.resnets.0`` and its like to ``input_blocks.1.0`` and its like."""
    return {**_down_blocks(state), **_up_blocks(state)}


def _down_blocks(state: State) -> dict[str, str]:
    names, number = {}, 1
    for block in range(_count("down_blocks", state)):
        prefix = f"down_blocks.{block}"
        for layer in range(_count(f"{prefix}.resnets", state)):
            names[f"{prefix}.resnets.{layer}"] = f"input_blocks.{number}.0"
            names[f"{prefix}.attentions.{layer}"] = f"input_blocks.{number}.1"
            number += 1
        if _count(f"{prefix}.downsamplers", state):
            names[f"{prefix}.downsamplers.0.conv"] = f"input_blocks.{number}.0.op"
            number += 1
    return names


def _up_blocks(state: State) -> dict[str, str]:
    """An upsampler stands in the last layer's place list, after its attention if there is one."""
    names, number = {}, 0
    for block in range(_count("up_blocks", state)):
        prefix = f"up_blocks.{block}"
        for layer in range(_count(f"{prefix}.resnets", state)):
            names[f"{prefix}.resnets.{layer}"] = f"output_blocks.{number}.0"
            names[f"{prefix}.attentions.{layer}"] = f"output_blocks.{number}.1"
            number += 1
        place = 2 if _count(f"{prefix}.attentions", state) else 1
        names[f"{prefix}.upsamplers.0.conv"] = f"output_blocks.{number - 1}.{place}.conv"
    return names


def _unet_name(name: str, blocks: Mapping[str, str]) -> str:
    ends = next((end for end in UNET_ENDS if name.startswith(f"{end}.")), None)
    place = ends or ".".join(name.split(".")[: 5 if "samplers" in name else 4])
    new, rest = UNET_ENDS.get(place) or blocks[place], name.removeprefix(f"{place}.")
    if ".resnets." not in name:
        return f"{new}.{rest}"
    part, kind = rest.rsplit(".", 1)
    return f"{new}.{RESNET[part]}.{kind}"


def _vae_entry(name: str, tensor: Tensor, levels: int) -> tuple[str, Tensor]:
    rules: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
        (r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2"),
        (r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample"),
        (r"up_blocks\.(\d+)\.", lambda found: f"up.{levels - 1 - int(found[1])}."),
        (r"(up\.\d+)\.resnets\.(\d+)", r"\1.block.\2"),
        (r"(up\.\d+)\.upsamplers\.0", r"\1.upsample"),
        (r"mid_block\.resnets\.(\d+)", lambda found: f"mid.block_{int(found[1]) + 1}"),
        (r"conv_shortcut", "nin_shortcut"),
        (r"conv_norm_out", "norm_out"),
    )
    if ".mid_block.attentions.0." in name:
        return _vae_attention(name, tensor)
    for pattern, new in rules:
        name = re.sub(pattern, new, name)
    return name, tensor


def _vae_attention(name: str, tensor: Tensor) -> tuple[str, Tensor]:
    place, part = name.split(".mid_block.attentions.0.")
    part, kind = part.rsplit(".", 1)
    is_convolution = kind == "weight" and part != "group_norm"
    shaped = tensor[:, :, None, None] if is_convolution else tensor
    return f"{place}.mid.attn_1.{VAE_ATTENTION[part]}.{kind}", shaped


def _count(prefix: str, state: State) -> int:
    """How many numbered children a name has."""
    found = _matches(rf"{re.escape(prefix)}\.(\d+)\.", state)
    return 1 + max((int(each[1]) for each in found), default=-1)


def _matches(pattern: str, state: State) -> list[re.Match[str]]:
    return [found for name in state if (found := re.match(pattern, name))]


def _as(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.detach().to("cpu", dtype if tensor.is_floating_point() else None).contiguous()


def _model_spec(parts: Parts, tensors: State) -> dict[str, str]:
    """What the ModelSpec standard (1.0.0) asks of a file's header."""
    latents = parts.unet.config.sample_size or SIDE
    side = int(latents) * 2 ** (len(parts.vae.config.block_out_channels) - 1)
    architecture, implementation = architecture_of(parts)
    return {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": architecture,
        "modelspec.implementation": implementation,
        "modelspec.prediction_type": "v" if parts.prediction_type == "v_prediction" else "epsilon",
        "modelspec.resolution": f"{side}x{side}",
        "modelspec.hash_sha256": f"0x{sha256_of_tensors(tensors)}",
    }


def architecture_of(parts: Parts) -> tuple[str, str]:
    """ModelSpec's name for the architecture, and where the original's code is."""
    if not is_open_clip(parts.text_encoder.config):
        return "stable-diffusion-v1", "https://github.com/CompVis/stable-diffusion"
    kind = "768-v" if parts.prediction_type == "v_prediction" else "512"
    return f"stable-diffusion-v2-{kind}", "https://github.com/Stability-AI/stablediffusion"


def sha256_of_tensors(tensors: State) -> str:
    """The sha256 of a safetensors file past its header, given tensors of one type."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(_bytes(tensors[name]))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> Any:
    return tensor.reshape(-1).view(torch.uint8).numpy().data
