"""Save a model as one file in the original Stable Diffusion's key layout, for stock loaders.

Each network has a map of names, for any number of blocks and layers. The original VAE's attention
consisted of 1x1 convolutions, so its weights get two more dimensions. A file is read again before
it gets its name, so that damage on the way to the disk is found now and not days later.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextModel

from shared.diffusion.files import replacing
from shared.diffusion.loading import Parts
from shared.diffusion.text_layout import is_open_clip, text_layout
from shared.errors import Passing, Refused

State = Mapping[str, Tensor]

UNET, VAE = "model.diffusion_model.", "first_stage_model."
PREFIXES: dict[type, str] = {
    UNet2DConditionModel: UNET, AutoencoderKL: VAE, CLIPTextModel: "cond_stage_model."
}  # fmt: skip
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
"""Of latents, where the configuration has no sample size: the stock pipeline's default."""
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
    """Write the model as one file, atomically; a name in ``.ckpt`` gets torch's pickle.

    Raises:
        Refused: a weight is not finite in this type; names it.
        Passing: the file does not read back as it was written.
    """
    tensors = {name: cpu_tensor(tensor, dtype) for name, tensor in original_layout(parts).items()}
    check_finite(tensors)
    header = {**model_spec(parts, tensors), **(metadata or {})}
    write, read = FORMATS["ckpt" if path.suffix == ".ckpt" else "safetensors"]
    with replacing(path) as temporary:
        write(tensors, temporary, header)
        check_written(tensors, read(temporary), path.name)


def original_layout(parts: Parts) -> dict[str, Tensor]:
    """Every weight under its original name; most share memory with the networks."""
    networks = (parts.unet, parts.vae, parts.text_encoder)
    return {name: tensor for each in networks for name, tensor in layout_of(each).items()}


def layout_of(network: torch.nn.Module) -> dict[str, Tensor]:
    """The same for one network."""
    state = network.state_dict()
    match network:
        case UNet2DConditionModel():
            return {f"{UNET}{name}": each for name, each in unet_layout(state).items()}
        case AutoencoderKL():
            return {f"{VAE}{name}": each for name, each in vae_layout(state).items()}
        case CLIPTextModel():
            return text_layout(network)
    raise TypeError(f"a single file has no {type(network).__name__}")


@torch.no_grad()
def load_in_place(network: torch.nn.Module, file: Path, dtype: torch.dtype) -> bool:
    """Copy a network's weights from a single file, rounded to ``dtype``.

    It copies one tensor at a time from the memory-mapped file. Returns whether it could: False,
    and nothing is changed, where the file has other tensors, or OpenCLIP's, which are put together.

    Raises:
        OSError, SafetensorError: the file cannot be read.
    """
    layout = layout_of(network)
    own = {tensor.data_ptr() for tensor in network.state_dict().values()}
    if not all(tensor.data_ptr() in own for tensor in layout.values()):
        return False
    ours = PREFIXES[type(network)]
    with safe_open(file, "pt") as opened:
        found = {
            name: tuple(opened.get_slice(name).get_shape())
            for name in opened.keys()  # noqa: SIM118 - not a dict
            if name.startswith(ours) and not name.endswith(".position_ids")
        }
        fits = found == {name: tuple(tensor.shape) for name, tensor in layout.items()}
        for name, tensor in layout.items() if fits else ():
            tensor.copy_(opened.get_tensor(name).to(dtype))
    return fits


# --- Writing and verifying --------------------------------------------------------------------


def _write_safetensors(tensors: dict[str, Tensor], path: Path, header: dict[str, str]) -> None:
    save_file(tensors, path, metadata=header)


def _write_ckpt(tensors: dict[str, Tensor], path: Path, header: dict[str, str]) -> None:
    torch.save({"state_dict": tensors, "modelspec": header}, path)


def read_safetensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    with safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118 - not a dict
            yield name, file.get_tensor(name)


def _read_ckpt(path: Path) -> Iterator[tuple[str, Tensor]]:
    yield from torch.load(path, weights_only=True, mmap=True)["state_dict"].items()


FORMATS = {
    "safetensors": (_write_safetensors, read_safetensors),
    "ckpt": (_write_ckpt, _read_ckpt),
}


def check_written(expected: State, found: Iterable[tuple[str, Tensor]], file: str) -> None:
    """Compare what was read with what was written, tensor by tensor.

    Raises:
        Passing: a tensor is missing, unexpected, or of another type, shape or value; names it.
    """
    missing = set(expected)
    for name, tensor in found:
        missing.discard(name)
        if name not in expected or not _same(tensor, expected[name]):
            raise Passing(f"{file} does not read back as it was written: {name} differs")
    if missing:
        raise Passing(f"{file} does not read back as it was written: {min(missing)} is missing")


def _same(one: Tensor, other: Tensor) -> bool:
    """Compare the bits, so that NaN equals itself."""
    is_alike = one.dtype == other.dtype and one.shape == other.shape
    return is_alike and torch.equal(*(each.reshape(-1).view(torch.uint8) for each in (one, other)))


def check_finite(tensors: State) -> None:
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise Refused(
                f"{name} is no finite number in {tensor.dtype}: the training has diverged, or needs"
                " save_full_precision true. Try a lower lr or clip_grad_norm 1"
            )


# --- Names ------------------------------------------------------------------------------------


def unet_layout(state: State) -> dict[str, Tensor]:
    """Rename UNet2DConditionModel's weights; the original numbers all blocks down, and all up."""
    blocks = {**_down_blocks(state), **_up_blocks(state)}
    return {_unet_name(name, blocks): tensor for name, tensor in state.items()}


def vae_layout(state: State) -> dict[str, Tensor]:
    """Rename and reshape AutoencoderKL's weights as in the original."""
    levels = 1 + max(int(found[1]) for found in _matches(r"decoder\.up_blocks\.(\d+)\.", state))
    return dict(_vae_entry(name, tensor, levels) for name, tensor in state.items())


def _down_blocks(state: State) -> dict[str, str]:
    """``down_blocks.0.resnets.0`` to ``input_blocks.1.0``, and so on."""
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
    """An upsampler belongs to its last layer's block, after the attention if there is one."""
    names, number = {}, 0
    for block in range(_count("up_blocks", state)):
        prefix = f"up_blocks.{block}"
        for layer in range(_count(f"{prefix}.resnets", state)):
            names[f"{prefix}.resnets.{layer}"] = f"output_blocks.{number}.0"
            names[f"{prefix}.attentions.{layer}"] = f"output_blocks.{number}.1"
            number += 1
        index = 2 if _count(f"{prefix}.attentions", state) else 1
        names[f"{prefix}.upsamplers.0.conv"] = f"output_blocks.{number - 1}.{index}.conv"
    return names


def _unet_name(name: str, blocks: Mapping[str, str]) -> str:
    end = next((end for end in UNET_ENDS if name.startswith(f"{end}.")), None)
    prefix = end or ".".join(name.split(".")[: 5 if "samplers" in name else 4])
    new, rest = UNET_ENDS.get(prefix) or blocks[prefix], name.removeprefix(f"{prefix}.")
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
    prefix, part = name.split(".mid_block.attentions.0.")
    part, kind = part.rsplit(".", 1)
    is_convolution = kind == "weight" and part != "group_norm"
    reshaped = tensor[:, :, None, None] if is_convolution else tensor
    return f"{prefix}.mid.attn_1.{VAE_ATTENTION[part]}.{kind}", reshaped


def _count(prefix: str, state: State) -> int:
    """How many numbered children a name has."""
    found = _matches(rf"{re.escape(prefix)}\.(\d+)\.", state)
    return 1 + max((int(each[1]) for each in found), default=-1)


def _matches(pattern: str, state: State) -> list[re.Match[str]]:
    return [found for name in state if (found := re.match(pattern, name))]


def cpu_tensor(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A contiguous tensor on the CPU, converted to ``dtype`` unless it holds integers."""
    return tensor.detach().to("cpu", dtype if tensor.is_floating_point() else None).contiguous()


def model_spec(parts: Parts, tensors: State) -> dict[str, str]:
    """The header that the ModelSpec standard (1.0.0) requires."""
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
    """ModelSpec's name for the architecture, and the URL of the original code."""
    if not is_open_clip(parts.text_encoder.config):
        return "stable-diffusion-v1", "https://github.com/CompVis/stable-diffusion"
    kind = "768-v" if parts.prediction_type == "v_prediction" else "512"
    return f"stable-diffusion-v2-{kind}", "https://github.com/Stability-AI/stablediffusion"


def sha256_of_tensors(tensors: State) -> str:
    """The sha256 of a safetensors file after its header: the widest types come first there."""
    digest = hashlib.sha256()
    for name in sorted(tensors, key=lambda name: (-tensors[name].itemsize, name)):
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
