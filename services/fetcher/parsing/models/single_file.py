"""Recognise and convert a whole model in one file, in Stable Diffusion's original layout.

The names and shapes of a few tensors give the architecture, and so what all others must be. Stable
Diffusion 1 and 2 of any size are accepted.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

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
    shown_shape,
    text_shapes,
    unet_shapes,
    vae_shapes,
)
from services.fetcher.parsing.models.diffusers_configs import Architecture, write_configs
from services.fetcher.parsing.models.diffusers_folder import check_channels
from services.fetcher.parsing.models.lent_vae import lent_vae
from services.fetcher.parsing.models.pickle_reader import read_checkpoint
from services.fetcher.parsing.models.prediction_type import (
    ZERO_SNR_MARKER,
    declared_prediction_type,
    guess_prediction_type,
)
from services.fetcher.parsing.models.safetensors_file import (
    BUFFERS,
    TensorSource,
    check_type,
    ignored_warnings,
    read_header,
    read_metadata,
    tensor_sources,
    write_safetensors,
)
from shared.errors import Refused
from shared.storage.manifest import SINGLE_FILE

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
    "lora_": "a LoRA, but in none of the layouts that are taken: kohya's, diffusers', peft's",
    "unet.": "a LoRA, but in none of the layouts that are taken: kohya's, diffusers', peft's",
    "down_blocks.": "one part of a diffusers folder; give the whole folder, zipped",
    "emb_params": "a textual inversion, which is no whole model",
    "string_to_param": "a textual inversion, which is no whole model",
}
HARMLESS = {
    "vae": ("loss.", "model_ema."),
    "clip": ("text_projection.", "logit_scale", "vision_model.", "visual_projection."),
    "open_clip": ("text_projection", "logit_scale", "visual."),
}
"""What the networks were trained with or cut out of, by how its names begin inside the network; it
is ignored without a word, like the averages under ``model_ema.``."""
SIGNS = {
    r"label_emb\.": "a model that draws from images or classes too, such as unCLIP",
    r".*\.transformer_blocks\.[1-9]": "a model with deeper transformers, such as SDXL",
    r".*\.(fuser|motion_modules?|temporal_transformer)\.": "a model with another kind of attention",
    r"(encoder\.down|decoder\.up)\.\d+\.attn\.": "an autoencoder with more attention",
}
"""Names inside a network of what it computes with, and what has it."""
ATTENTION = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out", "group_norm": "norm"}
"""Names in the VAE's attention as some tools write them; the usual loaders do not know these."""
ADVICE = (
    "expected a whole Stable Diffusion 1 or 2 checkpoint in the original layout, a zipped diffusers"
    " folder, or a hub id"
)

T = TypeVar("T")
Tensors = Mapping[str, TensorSource]


class NeedsBase(Exception):
    """A single file has no tokenizer: it gets that of a base model with as many words."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__(f"a tokenizer of {vocab_size} words")
        self.vocab_size = vocab_size


class SingleFile(NamedTuple):
    """What a single file holds."""

    architecture: Architecture
    tensors: dict[str, TensorSource]
    """Those that are used, by their original names; without an autoencoder if it has none."""
    warnings: list[str]


def stage_safetensors(
    file: Path, base: Path | None, target: Path, shown: str, keepalive: Callable[[], None]
) -> list[str]:
    """Write configurations and the file's weights into the folder ``target``; returns warnings.

    The tokenizer comes from the folder ``base``, and so does the autoencoder of a file without one.

    Raises:
        NeedsBase: the file can be used, and ``base`` is None.
        Refused: the file is damaged or is not a Stable Diffusion 1 or 2; names ``shown``.
    """
    sources = tensor_sources(file, read_header(file, shown))
    recognised = recognise(sources, read_metadata(file), shown)
    return _write(recognised, base, target, shown, keepalive)


def stage_checkpoint(
    zipped: zipfile.ZipFile,
    base: Path | None,
    target: Path,
    shown: str,
    keepalive: Callable[[], None],
) -> list[str]:
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
    recognised = recognise(sources, checkpoint.metadata, shown)
    return _write(recognised, base, target, shown, keepalive)


def _write(
    single: SingleFile, base: Path | None, target: Path, shown: str, keepalive: Callable[[], None]
) -> list[str]:
    if base is None:
        raise NeedsBase(single.architecture.text.vocab_size)
    tensors, warnings = single.tensors, single.warnings
    if single.architecture.vae is None:
        tensors = tensors | lent_vae(base, SINGLE_FILE, PREFIXES["vae"], shown)
        warnings = [*warnings, f"{shown}: it has no VAE, and gets the configured base model's"]
    write_configs(single.architecture, base, target, shown)
    write_safetensors(target / SINGLE_FILE, tensors, keepalive)
    return warnings


def recognise(sources: Tensors, metadata: Mapping[str, str], shown: str) -> SingleFile:
    """Find the architecture, and the tensors that belong to it.

    Raises:
        Refused: says which network is missing or differs, and by what.
    """
    tensors = {_original_name(name): source for name, source in sources.items()}
    unet_tensors = _network_tensors(tensors, PREFIXES["unet"])
    vae_tensors = _network_tensors(tensors, PREFIXES["vae"], HARMLESS["vae"])
    _check_landmarks(tensors, shown, [part for part in WEIGHTS if part != "vae" or vae_tensors])
    unet = _read_network("unet", read_unet, unet_tensors, shown)
    check_channels(unet.in_channels, shown)
    vae = _read_network("vae", read_vae, vae_tensors, shown) if vae_tensors else None
    prefix, text_tensors, text = _text_encoder(tensors, shown)
    used = {
        **_validated(PREFIXES["unet"], unet_tensors, unet_shapes(unet), shown),
        **_validated(PREFIXES["vae"], vae_tensors, vae_shapes(vae) if vae else {}, shown),
        **_validated(prefix, text_tensors, text_shapes(text), shown),
    }
    found = (
        (PREFIXES["unet"], unet_tensors),
        (PREFIXES["vae"], vae_tensors),
        (prefix, text_tensors),
    )
    extra = [start + name for start, each in found for name in each if start + name not in used]
    if unet.cross_attention_dim != text.hidden_size:
        raise Refused(
            f"{shown}: its unet takes captions of width {unet.cross_attention_dim}, its text"
            f" encoder gives {text.hidden_size}; {ADVICE}"
        )
    prediction_type = declared_prediction_type(metadata, tensors.keys(), shown)
    if prediction_type is None:
        prediction_type = guess_prediction_type(unet_tensors) if text.open_clip else "epsilon"
    architecture = Architecture(
        unet=unet,
        vae=vae,
        text=text,
        prediction_type=prediction_type,
        zero_snr=ZERO_SNR_MARKER in tensors,
    )
    return SingleFile(architecture, used, ignored_warnings(extra, shown))


def _original_name(name: str) -> str:
    """The original name of a tensor that some tools name differently."""
    rest = name.removeprefix(CLIP)
    if rest != name and not rest.startswith(("text_model.", *HARMLESS["clip"])):
        return f"{CLIP}text_model.{rest}"
    parent, attention, part = name.partition(".mid.attn_1.")
    if not attention:
        return name
    other = next((other for other in ATTENTION if part.startswith(f"{other}.")), None)
    return f"{parent}{attention}{ATTENTION[other]}{part.removeprefix(other)}" if other else name


def _check_landmarks(tensors: Tensors, shown: str, parts: Iterable[str]) -> None:
    if kind := _detect_other_kind(tensors):
        raise Refused(f"{shown}: it looks like {kind}; {ADVICE}")
    for part in parts:
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


def _network_tensors(
    tensors: Tensors, prefix: str, harmless: tuple[str, ...] = ()
) -> dict[str, TensorSource]:
    """A network's weights, by their names inside it; without buffers and what is ``harmless``."""
    starts = tuple(prefix + each for each in harmless)
    return {
        name.removeprefix(prefix): source
        for name, source in tensors.items()
        if name.startswith(prefix) and not name.endswith(BUFFERS) and not name.startswith(starts)
    }


def _text_encoder(tensors: Tensors, shown: str) -> tuple[str, dict[str, TensorSource], TextEncoder]:
    """The text encoder's prefix, its used weights, and its architecture."""
    if clip := _network_tensors(tensors, CLIP, HARMLESS["clip"]):
        return CLIP, clip, _read_network("text_encoder", read_clip, clip, shown)
    whole = _network_tensors(tensors, OPEN_CLIP)
    text = _read_network("text_encoder", read_open_clip, whole, shown)
    unused = (*HARMLESS["open_clip"], f"transformer.resblocks.{text.layers}.")
    return OPEN_CLIP, _network_tensors(tensors, OPEN_CLIP, unused), text


def _read_network(part: str, read: Callable[[Shapes], T], tensors: Tensors, shown: str) -> T:
    try:
        return read({name: tensor.shape for name, tensor in tensors.items()})
    except UnknownArchitecture as error:
        raise Refused(f"{shown}: its {part} cannot be recognised: {error}; {ADVICE}") from None


def _validated(
    prefix: str, found: Tensors, expected: Shapes, shown: str
) -> dict[str, TensorSource]:
    """The expected tensors by their full names, after checking their shapes and types."""
    if difference := _difference(found, expected):
        raise Refused(f"{shown}: {prefix}{difference}; {ADVICE}")
    for name in expected:
        check_type(found[name].dtype, f"{shown}: {prefix}{name}")
    return {prefix + name: found[name] for name in expected}


def _difference(found: Tensors, expected: Shapes) -> str | None:
    for name, shape in expected.items():
        if name not in found:
            return f"{name} is missing"
        if _without_1x1(name, found[name].shape) != _without_1x1(name, shape):
            return (
                f"{name} has shape {shown_shape(found[name].shape)}, expected {shown_shape(shape)}"
            )
    for name in found.keys() - expected.keys():
        if kind := next((kind for sign, kind in SIGNS.items() if re.match(sign, name)), None):
            return f"{name} is not known in Stable Diffusion 1 or 2: this is {kind}"
    return None


def _without_1x1(name: str, shape: Shape) -> Shape:
    """The VAE's attention has 1x1 convolutions in one layout and matrices in the other."""
    return shape[:2] if ".mid.attn_1." in name and shape[2:] == (1, 1) else shape
