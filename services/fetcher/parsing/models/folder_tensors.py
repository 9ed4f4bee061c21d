"""Compare the tensors of a diffusers folder's networks with what its configurations ask for.

A lack would show only on a GPU, once the networks are built. Configurations that ask for other
blocks than Stable Diffusion 1 and 2 have are left to the loader there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from msgspec import Struct, field

from services.fetcher.parsing.models.architecture import (
    Shapes,
    TextEncoder,
    UNet,
    Vae,
    shown_shape,
)
from services.fetcher.parsing.models.diffusers_names import (
    current_name,
    diffusers_text_shapes,
    diffusers_unet_shapes,
    diffusers_vae_shapes,
)
from services.fetcher.parsing.models.safetensors_file import (
    BUFFERS,
    TensorEntry,
    check_type,
    ignored_warnings,
)
from shared.errors import Refused

Config = Mapping[str, Any]

DOWN_BLOCKS = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}
"""By name: whether the block attends to the caption."""
UP_BLOCKS = {"CrossAttnUpBlock2D": True, "UpBlock2D": False}
SPARE = {
    "unet": (),
    "vae": ("loss.",),
    "text_encoder": ("text_projection.", "logit_scale", "vision_model.", "visual_projection."),
}
"""How names of harmless further tensors begin."""
ADVICE = "the folder is not whole, or its parts are of two models: download or save it again"


class _UNetConfig(Struct, frozen=True, kw_only=True):
    """The fields that decide on the tensors, with diffusers' defaults."""

    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    down_block_types: tuple[str, ...] = (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D")
    up_block_types: tuple[str, ...] = ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3)
    mid_block_type: str | None = "UNetMidBlock2DCrossAttn"
    layers_per_block: int = 2
    cross_attention_dim: int = 1280
    use_linear_projection: bool = False
    in_channels: int = 4
    out_channels: int = 4
    # Anything else than these adds tensors, takes some away or gives them other shapes.
    addition_embed_type: None = None
    attention_type: str = "default"
    class_embed_type: None = None
    conv_in_kernel: int = 3
    conv_out_kernel: int = 3
    cross_attention_norm: None = None
    dual_cross_attention: bool = False
    encoder_hid_dim: None = None
    encoder_hid_dim_type: None = None
    mid_block_only_cross_attention: bool | None = None
    num_attention_heads: None = None
    num_class_embeds: None = None
    only_cross_attention: bool = False
    resnet_time_scale_shift: str = "default"
    time_cond_proj_dim: None = None
    time_embedding_dim: None = None
    time_embedding_type: str = "positional"
    transformer_layers_per_block: int = 1


_UNET_STANDARD = _UNetConfig()
_UNET_FIXED = (
    "attention_type", "conv_in_kernel", "conv_out_kernel", "dual_cross_attention",
    "only_cross_attention", "resnet_time_scale_shift", "time_embedding_type",
    "transformer_layers_per_block",
)  # fmt: skip


class _VaeConfig(Struct, frozen=True, kw_only=True):
    """The same of an autoencoder."""

    block_out_channels: tuple[int, ...] = (64,)
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
    layers_per_block: int = 1
    latent_channels: int = 4
    in_channels: int = 3
    out_channels: int = 3
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True


class _TextConfig(Struct, frozen=True, kw_only=True):
    """The same of a text encoder, with the defaults of transformers."""

    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    vocab_size: int = 49408
    max_position_embeddings: int = 77
    architectures: list[str] = field(default_factory=lambda: ["CLIPTextModel"])


def check_tensors(
    part: str, entries: Mapping[str, TensorEntry], config: Config, shown: str
) -> list[str]:
    """Check names, shapes and types of a network's tensors; returns warnings.

    ``part`` is the network's folder, ``config`` its configuration.

    Raises:
        Refused: a tensor is missing or cannot be used; names ``shown`` and the tensor.
    """
    found = {
        current_name(part, name): entry
        for name, entry in entries.items()
        if not name.endswith(BUFFERS)
    }
    expected = _EXPECTED[part](config)
    if expected is None:
        for name, entry in found.items():
            check_type(entry.dtype, f"{shown}: {name}")
        return []
    _check_shapes(found, expected, shown)
    for name in expected:
        check_type(found[name].dtype, f"{shown}: {name}")
    extra = [name for name in found if name not in expected and not name.startswith(SPARE[part])]
    return ignored_warnings(extra, shown)


def _check_shapes(found: Mapping[str, TensorEntry], expected: Shapes, shown: str) -> None:
    missing = sorted(name for name in expected if name not in found)
    if missing:
        raise Refused(
            f"{shown}: {len(missing)} of the {len(expected)} tensors that its config.json asks for"
            f" are missing, the first {missing[0]}; {ADVICE}"
        )
    for name, shape in expected.items():
        if found[name].shape != shape:
            raise Refused(
                f"{shown}: {name} has shape {shown_shape(found[name].shape)}, its config.json asks"
                f" for {shown_shape(shape)}; {ADVICE}"
            )


def _unet_shapes(raw: Config) -> Shapes | None:
    """None: not a UNet of Stable Diffusion 1 or 2."""
    try:
        config = msgspec.convert(dict(raw), _UNetConfig)
    except msgspec.ValidationError:
        return None
    attends = tuple(DOWN_BLOCKS.get(name) for name in config.down_block_types)
    mirrored = tuple(UP_BLOCKS.get(name) for name in reversed(config.up_block_types))
    is_standard = all(
        getattr(config, name) == getattr(_UNET_STANDARD, name) for name in _UNET_FIXED
    )
    if (
        not is_standard
        or None in attends
        or mirrored != attends
        or len(attends) != len(config.block_out_channels)
        or config.mid_block_type not in (None, _UNET_STANDARD.mid_block_type)
        or not _are_sizes(*config.block_out_channels, config.layers_per_block)
    ):
        return None
    shapes = diffusers_unet_shapes(
        UNet(
            channels=config.block_out_channels,
            cross_attention=tuple(map(bool, attends)),
            layers_per_block=config.layers_per_block,
            cross_attention_dim=config.cross_attention_dim,
            linear_projection=config.use_linear_projection,
            in_channels=config.in_channels,
            out_channels=config.out_channels,
        )
    )
    if config.mid_block_type is None:  # as in distilled models
        return {name: shape for name, shape in shapes.items() if not name.startswith("mid_block.")}
    return shapes


def _vae_shapes(raw: Config) -> Shapes | None:
    vae = vae_of(raw)
    return None if vae is None else diffusers_vae_shapes(vae)


def vae_of(raw: Config) -> Vae | None:
    """The architecture of an autoencoder; None: not one of Stable Diffusion 1 or 2."""
    try:
        config = msgspec.convert(dict(raw), _VaeConfig)
    except msgspec.ValidationError:
        return None
    levels = len(config.block_out_channels)
    if (
        config.down_block_types != ("DownEncoderBlock2D",) * levels
        or config.up_block_types != ("UpDecoderBlock2D",) * levels
        or (config.in_channels, config.out_channels) != (3, 3)
        or not (config.use_quant_conv and config.use_post_quant_conv)
        or not config.mid_block_add_attention
        or not _are_sizes(*config.block_out_channels, config.layers_per_block)
    ):
        return None
    return Vae(
        channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
    )


def _text_shapes(raw: Config) -> Shapes | None:
    """None: not CLIP's text encoder."""
    try:
        config = msgspec.convert(dict(raw), _TextConfig)
    except msgspec.ValidationError:
        return None
    if not any(name.startswith("CLIPText") for name in config.architectures):
        return None
    return diffusers_text_shapes(
        TextEncoder(
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            layers=config.num_hidden_layers,
            vocab_size=config.vocab_size,
            max_positions=config.max_position_embeddings,
            open_clip=False,
        )
    )


_EXPECTED: dict[str, Callable[[Config], Shapes | None]] = {
    "unet": _unet_shapes,
    "vae": _vae_shapes,
    "text_encoder": _text_shapes,
}


def _are_sizes(*numbers: int) -> bool:
    return len(numbers) > 1 and all(number > 0 for number in numbers)
