"""A whole model in one file, in the layout of the original Stable Diffusion: recognised, tidied.

A file is recognised by the names and shapes of its tensors: from a few of them follows what all the
others must be. Stable Diffusion 1 and 2 are taken, of any size.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar

from services.fetcher.models.architecture import (
    Shape,
    Shapes,
    Text,
    Unknown,
    read_clip,
    read_open_clip,
    read_unet,
    read_vae,
    text_shapes,
    unet_shapes,
    vae_shapes,
)
from services.fetcher.models.diffusers_configs import Geometry, write_configurations
from services.fetcher.models.diffusers_folder import WEIGHTS, check_channels
from services.fetcher.models.pickle_reader import read_checkpoint
from services.fetcher.models.prediction_type import ZERO_SNR_MARKER, guessed, spoken
from services.fetcher.models.safetensors_file import (
    Source,
    read_header,
    read_metadata,
    sources_in,
    write,
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
OTHERS = {
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
"""Names that some tools leave in the VAE's attention, which stock loaders do not find."""
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})

ADVICE = (
    "expected a whole Stable Diffusion 1 or 2 checkpoint in the original layout, a zipped diffusers"
    " folder, or a hub id"
)

T = TypeVar("T")
Tensors = Mapping[str, Source]


def stage_safetensors(
    file: Path, base: Path, target: Path, shown: str, keepalive: Callable[[], None]
) -> None:
    """Make ``target`` a folder of configurations and the file's weights.

    The words of the tokenizer come from the folder ``base``.

    Raises:
        Refused: the file is damaged or is no Stable Diffusion 1 or 2; names ``shown``.
    """
    sources = sources_in(file, read_header(file, shown))
    geometry, tensors = recognise(sources, read_metadata(file), shown)
    write_configurations(geometry, base, target, shown)
    write(target / SINGLE_FILE, tensors, keepalive)


def stage_checkpoint(
    zipped: zipfile.ZipFile, base: Path, target: Path, shown: str, keepalive: Callable[[], None]
) -> None:
    """As :func:`stage_safetensors`, from an open ``.ckpt``; tensors are copied byte for byte."""
    try:
        checkpoint = read_checkpoint(zipped)
    except Refused as error:
        raise Refused(f"{shown}: {error}") from None
    sources = {
        name: Source(dtype=tensor.dtype, shape=tensor.shape, copy=partial(checkpoint.copy, tensor))
        for name, tensor in checkpoint.tensors.items()
    }
    geometry, tensors = recognise(sources, checkpoint.metadata, shown)
    write_configurations(geometry, base, target, shown)
    write(target / SINGLE_FILE, tensors, keepalive)


def recognise(
    sources: Tensors, metadata: Mapping[str, str], shown: str
) -> tuple[Geometry, dict[str, Source]]:
    """What kind of Stable Diffusion the tensors are, and those of them that make it.

    Raises:
        Refused: says which network is missing or differs, and by what.
    """
    named = {_original_name(name): each for name, each in sources.items()}
    _check_landmarks(named, shown)
    unet_part, vae_part = (_inside(named, prefix) for prefix in PREFIXES.values())
    unet = _network("unet", read_unet, unet_part, shown)
    check_channels(unet.takes, shown)
    vae = _network("vae", read_vae, vae_part, shown)
    prefix, text_part, text = _text_encoder(named, shown)
    wanted = {
        **_checked(PREFIXES["unet"], unet_part, unet_shapes(unet), shown),
        **_checked(PREFIXES["vae"], vae_part, vae_shapes(vae), shown),
        **_checked(prefix, text_part, text_shapes(text), shown),
    }
    if unet.context != text.width:
        raise Refused(
            f"{shown}: its unet takes captions of width {unet.context}, its text encoder gives"
            f" {text.width}; {ADVICE}"
        )
    predicts = spoken(metadata, named.keys(), shown)
    return (
        Geometry(
            unet=unet,
            vae=vae,
            text=text,
            predicts=predicts or (guessed(unet_part) if text.open_clip else "epsilon"),
            zero_snr=ZERO_SNR_MARKER in named,
        ),
        wanted,
    )


def _original_name(name: str) -> str:
    """Evens out what some tools write, and stock loaders do not find."""
    rest = name.removeprefix(CLIP)
    if rest != name and not rest.startswith("text_model."):
        return f"{CLIP}text_model.{rest}"
    place, found, part = name.partition(".mid.attn_1.")
    if not found:
        return name
    old = next((old for old in ATTENTION if part.startswith(f"{old}.")), None)
    return f"{place}{found}{ATTENTION[old]}{part.removeprefix(old)}" if old else name


def _check_landmarks(named: Tensors, shown: str) -> None:
    if kind := _another_kind(named):
        raise Refused(f"{shown}: it looks like {kind}; {ADVICE}")
    for part in WEIGHTS:
        if not any(name in named for name in LANDMARKS[part]):
            raise Refused(
                f"{shown}: it has no {part} in the original layout"
                f" ({' and '.join(LANDMARKS[part])} missing); {ADVICE}"
            )


def _another_kind(names: Iterable[str]) -> str | None:
    for name in names:
        for start, kind in OTHERS.items():
            if name.startswith(start):
                return kind
    return None


def _inside(named: Tensors, prefix: str) -> dict[str, Source]:
    """A network's weights by the names inside it; averages, schedules and buffers are not there."""
    return {
        name.removeprefix(prefix): each
        for name, each in named.items()
        if name.startswith(prefix) and not name.endswith(("position_ids", "attn_mask"))
    }


def _text_encoder(named: Tensors, shown: str) -> tuple[str, dict[str, Source], Text]:
    """Which of the two it is, and its weights; of OpenCLIP's those that are used."""
    if part := _inside(named, CLIP):
        return CLIP, part, _network("text_encoder", read_clip, part, shown)
    part = _inside(named, OPEN_CLIP)
    text = _network("text_encoder", read_open_clip, part, shown)
    unused = ("text_projection", "logit_scale", f"transformer.resblocks.{text.layers}.")
    used = {name: each for name, each in part.items() if not name.startswith(unused)}
    return OPEN_CLIP, used, text


def _network(
    part: str, read: Callable[[Mapping[str, Shape]], T], tensors: Tensors, shown: str
) -> T:
    try:
        return read({name: tensor.shape for name, tensor in tensors.items()})
    except Unknown as error:
        raise Refused(f"{shown}: its {part} cannot be recognised: {error}; {ADVICE}") from None


def _checked(prefix: str, found: Tensors, expected: Shapes, shown: str) -> dict[str, Source]:
    """The network's tensors by their whole names, once each has been found to be as it must."""
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
        if _plain(name, found[name].shape) != _plain(name, shape):
            return f"{name} has shape {_shown(found[name].shape)}, expected {_shown(shape)}"
    more = next((name for name in found if name not in expected), None)
    return f"{more} is not known in Stable Diffusion" if more else None


def _plain(name: str, shape: Shape) -> Shape:
    """The VAE's attention is made of 1x1 convolutions in one layout, of matrices in the other."""
    return shape[:2] if ".mid.attn_1." in name and shape[2:] == (1, 1) else shape


def _shown(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "()"
