"""Recognise and convert a whole model in one file, in Stable Diffusion's original layout.

The names and shapes of a few tensors give the architecture, and so what all others must be. Stable
Diffusion 1 and 2 of any size are accepted.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar

from services.fetcher.model_files import WEIGHTS
from services.fetcher.parsing.models.architecture import (
    Shape,
    Shapes,
    TextEncoder,
    UnknownArchitecture,
    read_clip,
    read_open_clip,
    read_unet,
    read_vae,
    text_shapes,
    unet_shapes,
    vae_shapes,
)
from services.fetcher.parsing.models.diffusers_configs import Architecture, write_configs
from services.fetcher.parsing.models.diffusers_folder import check_channels
from services.fetcher.parsing.models.pickle_reader import read_checkpoint
from services.fetcher.parsing.models.prediction_type import (
    ZERO_SNR_MARKER,
    declared_prediction_type,
    guess_prediction_type,
)
from services.fetcher.parsing.models.safetensors_file import (
    TensorSource,
    read_header,
    read_metadata,
    tensor_sources,
    write_safetensors,
)
from shared.errors import Refused

SINGLE_FILE = "single_file.safetensors"

CLIP = "cond_stage_model.transformer."
OPEN_CLIP = "cond_stage_model.model."
PREFIXES = {"unet": "model.diffusion_model.", "vae": "first_stage_model."}
LANDMARKS = {
    "unet": ("model.diffusion_model.input_blocks.0.0.weight",),
    "vae": ("first_stage_model.encoder.conv_in.weight",),
    "text_encoder": (
        f"{CLIP}text_model.embeddings.token_embedding.weight",
        f"{OPEN_CLIP}token_embedding.weight",
    ),
}
OTHER_KINDS = {
    "conditioner.embedders.": "Stable Diffusion XL",
    "text_encoders.": "Stable Diffusion 3 or a newer kind of model",
    "model.diffusion_model.joint_blocks.": "Stable Diffusion 3",
    "model.diffusion_model.double_blocks.": "Flux",
    "double_blocks.": "Flux",
    "joint_blocks.": "Stable Diffusion 3",
    "control_model.": "a ControlNet, which is no whole model",
    "lora_": "a LoRA, which is no whole model",
    "unet.down_blocks.": "a LoRA, which is no whole model",
    "unet.up_blocks.": "a LoRA, which is no whole model",
    "down_blocks.": "one part of a diffusers folder; give the whole folder, zipped",
    "emb_params": "a textual inversion, which is no whole model",
    "string_to_param": "a textual inversion, which is no whole model",
}
ATTENTION = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out", "group_norm": "norm"}
"""Names in the VAE's attention as some tools write them; the usual loaders do not know these."""
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})

ADVICE = (
    "expected a whole Stable Diffusion 1 or 2 checkpoint in the original layout, a zipped diffusers"
    " folder, or a hub id"
)

T = TypeVar("T")
Tensors = Mapping[str, TensorSource]


def stage_safetensors(
    file: Path, base: Path, target: Path, shown: str, keepalive: Callable[[], None]
) -> None:
    """Write configurations and the file's weights into the folder ``target``.

    The tokenizer comes from the folder ``base``.

    Raises:
        Refused: the file is damaged or is not a Stable Diffusion 1 or 2; names ``shown``.
    """
    sources = tensor_sources(file, read_header(file, shown))
    architecture, tensors = recognise(sources, read_metadata(file), shown)
    write_configs(architecture, base, target, shown)
    write_safetensors(target / SINGLE_FILE, tensors, keepalive)


def stage_checkpoint(
    zipped: zipfile.ZipFile, base: Path, target: Path, shown: str, keepalive: Callable[[], None]
) -> None:
    """Like :func:`stage_safetensors`, from an open ``.ckpt``; tensors are copied byte for byte."""
    try:
        checkpoint = read_checkpoint(zipped)
    except Refused as error:
        raise Refused(f"{shown}: {error}") from None
    sources = {
        name: TensorSource(
            dtype=tensor.dtype, shape=tensor.shape, copy=partial(checkpoint.copy, tensor)
        )
        for name, tensor in checkpoint.tensors.items()
    }
    architecture, tensors = recognise(sources, checkpoint.metadata, shown)
    write_configs(architecture, base, target, shown)
    write_safetensors(target / SINGLE_FILE, tensors, keepalive)


def recognise(
    sources: Tensors, metadata: Mapping[str, str], shown: str
) -> tuple[Architecture, dict[str, TensorSource]]:
    """Find the architecture, and the tensors that belong to it.

    Raises:
        Refused: says which network is missing or differs, and by what.
    """
    tensors = {_original_name(name): source for name, source in sources.items()}
    _check_landmarks(tensors, shown)
    unet_tensors, vae_tensors = (_network_tensors(tensors, prefix) for prefix in PREFIXES.values())
    unet = _read_network("unet", read_unet, unet_tensors, shown)
    check_channels(unet.in_channels, shown)
    vae = _read_network("vae", read_vae, vae_tensors, shown)
    prefix, text_tensors, text = _text_encoder(tensors, shown)
    used = {
        **_validated(PREFIXES["unet"], unet_tensors, unet_shapes(unet), shown),
        **_validated(PREFIXES["vae"], vae_tensors, vae_shapes(vae), shown),
        **_validated(prefix, text_tensors, text_shapes(text), shown),
    }
    if unet.cross_attention_dim != text.hidden_size:
        raise Refused(
            f"{shown}: its unet takes captions of width {unet.cross_attention_dim}, its text"
            f" encoder gives {text.hidden_size}; {ADVICE}"
        )
    prediction_type = declared_prediction_type(metadata, tensors.keys(), shown)
    if prediction_type is None:
        prediction_type = guess_prediction_type(unet_tensors) if text.open_clip else "epsilon"
    return (
        Architecture(
            unet=unet,
            vae=vae,
            text=text,
            prediction_type=prediction_type,
            zero_snr=ZERO_SNR_MARKER in tensors,
        ),
        used,
    )


def _original_name(name: str) -> str:
    """The original name of a tensor that some tools name differently."""
    rest = name.removeprefix(CLIP)
    if rest != name and not rest.startswith("text_model."):
        return f"{CLIP}text_model.{rest}"
    parent, attention, part = name.partition(".mid.attn_1.")
    if not attention:
        return name
    other = next((other for other in ATTENTION if part.startswith(f"{other}.")), None)
    return f"{parent}{attention}{ATTENTION[other]}{part.removeprefix(other)}" if other else name


def _check_landmarks(tensors: Tensors, shown: str) -> None:
    if kind := _detect_other_kind(tensors):
        raise Refused(f"{shown}: it looks like {kind}; {ADVICE}")
    for part in WEIGHTS:
        if not any(name in tensors for name in LANDMARKS[part]):
            raise Refused(
                f"{shown}: it has no {part} in the original layout"
                f" ({' and '.join(LANDMARKS[part])} missing); {ADVICE}"
            )


def _detect_other_kind(names: Iterable[str]) -> str | None:
    for name in names:
        for start, kind in OTHER_KINDS.items():
            if name.startswith(start):
                return kind
    return None


def _network_tensors(tensors: Tensors, prefix: str) -> dict[str, TensorSource]:
    """A network's weights, by their names inside it; without buffers."""
    return {
        name.removeprefix(prefix): source
        for name, source in tensors.items()
        if name.startswith(prefix) and not name.endswith(("position_ids", "attn_mask"))
    }


def _text_encoder(tensors: Tensors, shown: str) -> tuple[str, dict[str, TensorSource], TextEncoder]:
    """The text encoder's prefix, its used weights, and its architecture."""
    if clip := _network_tensors(tensors, CLIP):
        return CLIP, clip, _read_network("text_encoder", read_clip, clip, shown)
    open_clip = _network_tensors(tensors, OPEN_CLIP)
    text = _read_network("text_encoder", read_open_clip, open_clip, shown)
    unused = ("text_projection", "logit_scale", f"transformer.resblocks.{text.layers}.")
    used = {name: each for name, each in open_clip.items() if not name.startswith(unused)}
    return OPEN_CLIP, used, text


def _read_network(part: str, read: Callable[[Shapes], T], tensors: Tensors, shown: str) -> T:
    try:
        return read({name: tensor.shape for name, tensor in tensors.items()})
    except UnknownArchitecture as error:
        raise Refused(f"{shown}: its {part} cannot be recognised: {error}; {ADVICE}") from None


def _validated(
    prefix: str, found: Tensors, expected: Shapes, shown: str
) -> dict[str, TensorSource]:
    """The network's tensors by their full names, after checking all names, shapes and types."""
    if difference := _difference(found, expected):
        raise Refused(f"{shown}: {prefix}{difference}; {ADVICE}")
    for name, tensor in found.items():
        if tensor.dtype not in FLOATS:
            raise Refused(
                f"{shown}: {prefix}{name} is of type {tensor.dtype}; expected floating point"
            )
    return {prefix + name: tensor for name, tensor in found.items()}


def _difference(found: Tensors, expected: Shapes) -> str | None:
    for name, shape in expected.items():
        if name not in found:
            return f"{name} is missing"
        if _without_1x1(name, found[name].shape) != _without_1x1(name, shape):
            return f"{name} has shape {_shown(found[name].shape)}, expected {_shown(shape)}"
    extra = next((name for name in found if name not in expected), None)
    return f"{extra} is not known in Stable Diffusion" if extra else None


def _without_1x1(name: str, shape: Shape) -> Shape:
    """The VAE's attention has 1x1 convolutions in one layout and matrices in the other."""
    return shape[:2] if ".mid.attn_1." in name and shape[2:] == (1, 1) else shape


def _shown(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "()"
