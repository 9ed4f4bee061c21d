"""Architecture of Stable Diffusion's networks in the original layout, from tensor shapes and back.

For each network one function reads its architecture from the names and shapes of a few tensors,
and another gives all names and shapes of such a network. A file is a Stable Diffusion if it has
exactly these. Names are those inside the network, without its prefix.
"""

from __future__ import annotations

from itertools import count

from msgspec import Struct

Shape = tuple[int, ...]
Shapes = dict[str, Shape]

EXPANSION = 4
"""How many times wider the time embedding and a transformer's feed-forward layer are."""
IMAGE_CHANNELS = 3
MATRIX_DIMENSIONS = 2
MAX_LEVELS = 8
"""Of a network; Stable Diffusion has four."""
MAX_LAYERS = 64
"""Of a level or of a text encoder; OpenCLIP's ViT-H has 24."""
MAX_SIZE = 1 << 20
"""Upper bound for any other dimension; the largest real one is the vocabulary, under 50,000."""
VIT_H_BLOCKS = 24
"""Blocks of OpenCLIP's ViT-H; Stable Diffusion 2 uses all but the last."""


class UnknownArchitecture(Exception):
    """The tensors do not make such a network; the text says why."""


class UNet(Struct, frozen=True, kw_only=True):
    channels: tuple[int, ...]
    """Of each level, the highest resolution first."""
    cross_attention: tuple[bool, ...]
    """Which levels attend to the caption."""
    layers_per_block: int
    """Of the encoder; a decoder block has one more."""
    cross_attention_dim: int
    """The text encoder's hidden size."""
    linear_projection: bool
    """Whether a transformer's input projection is a matrix (SD 2) or a 1x1 convolution (SD 1)."""
    in_channels: int
    out_channels: int


class Vae(Struct, frozen=True, kw_only=True):
    channels: tuple[int, ...]
    layers_per_block: int
    latent_channels: int


class TextEncoder(Struct, frozen=True, kw_only=True):
    hidden_size: int
    intermediate_size: int
    layers: int
    """Only those whose output is used."""
    vocab_size: int
    max_positions: int
    open_clip: bool
    """Whether it is OpenCLIP's (SD 2) or OpenAI's (SD 1)."""


def shown_shape(shape: Shape) -> str:
    """A tensor's shape for people: ``320x4x3x3``."""
    return "x".join(map(str, shape)) or "()"


# --- From shapes to architecture --------------------------------------------------------------


def read_unet(shapes: Shapes) -> UNet:
    """Raises UnknownArchitecture: a tensor is missing, or its shape is out of range."""
    levels = _read_levels(shapes)
    if not all(len(level) == len(levels[0]) > 0 for level in levels):
        raise UnknownArchitecture("levels with different numbers of layers")
    _check_counts(len(levels), len(levels[0]))
    cross_attention = tuple(f"input_blocks.{level[0]}.1.norm.weight" in shapes for level in levels)
    if not any(cross_attention):
        raise UnknownArchitecture("no cross-attention")
    block = f"input_blocks.{levels[cross_attention.index(True)][0]}.1"
    attention = f"{block}.transformer_blocks.0.attn2"
    return UNet(
        channels=tuple(
            shape_of(shapes, f"input_blocks.{level[-1]}.0.in_layers.2.weight", 4)[0]
            for level in levels
        ),
        cross_attention=cross_attention,
        layers_per_block=len(levels[0]),
        cross_attention_dim=shape_of(shapes, f"{attention}.to_k.weight", 2)[1],
        linear_projection=len(shape_of(shapes, f"{block}.proj_in.weight")) == MATRIX_DIMENSIONS,
        in_channels=shape_of(shapes, "input_blocks.0.0.weight", 4)[1],
        out_channels=shape_of(shapes, "out.2.weight", 4)[0],
    )


def _read_levels(shapes: Shapes) -> list[list[int]]:
    """The numbers of the input blocks by level; a downsampling block ends each level."""
    levels: list[list[int]] = [[]]
    for number in count(1):
        if f"input_blocks.{number}.0.op.weight" in shapes:
            levels.append([])
        elif f"input_blocks.{number}.0.in_layers.2.weight" in shapes:
            levels[-1].append(number)
        else:
            return levels
    raise AssertionError("numbers do not end")


def read_vae(shapes: Shapes) -> Vae:
    """Raises UnknownArchitecture: a tensor is missing, or its shape is out of range."""
    levels = _count(shapes, "encoder.down.{}.block.0.conv1.weight")
    layers = _count(shapes, "encoder.down.0.block.{}.conv1.weight")
    _check_counts(levels, layers)
    if not all(f"encoder.down.{level}.block.{layers - 1}.conv1.weight" in shapes
               for level in range(levels)):  # fmt: skip
        raise UnknownArchitecture("levels with different numbers of layers")
    return Vae(
        channels=tuple(
            shape_of(shapes, f"encoder.down.{level}.block.0.conv1.weight", 4)[0]
            for level in range(levels)
        ),
        layers_per_block=layers,
        latent_channels=shape_of(shapes, "decoder.conv_in.weight", 4)[1],
    )


def read_clip(shapes: Shapes) -> TextEncoder:
    """Read OpenAI's text encoder.

    Raises:
        UnknownArchitecture: a tensor is missing, or its shape is out of range.
    """
    vocab_size, width = shape_of(shapes, "text_model.embeddings.token_embedding.weight", 2)
    return TextEncoder(
        hidden_size=width,
        intermediate_size=shape_of(shapes, "text_model.encoder.layers.0.mlp.fc1.weight", 2)[0],
        layers=_count_layers(shapes, "text_model.encoder.layers.{}.mlp.fc1.weight"),
        vocab_size=vocab_size,
        max_positions=shape_of(shapes, "text_model.embeddings.position_embedding.weight", 2)[0],
        open_clip=False,
    )


def read_open_clip(shapes: Shapes) -> TextEncoder:
    """Read OpenCLIP's text encoder, without its last block, which Stable Diffusion does not use.

    The original files have this block and the projection after it; some tools write neither.

    Raises:
        UnknownArchitecture: a tensor is missing, or its shape is out of range.
    """
    vocab_size, width = shape_of(shapes, "token_embedding.weight", 2)
    blocks = _count_layers(shapes, "transformer.resblocks.{}.mlp.c_fc.weight")
    is_whole = blocks == VIT_H_BLOCKS or (
        "text_projection" in shapes and blocks != VIT_H_BLOCKS - 1
    )
    return TextEncoder(
        hidden_size=width,
        intermediate_size=shape_of(shapes, "transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
        layers=blocks - is_whole,
        vocab_size=vocab_size,
        max_positions=shape_of(shapes, "positional_embedding", 2)[0],
        open_clip=True,
    )


def shape_of(shapes: Shapes, name: str, dimensions: int | None = None) -> Shape:
    """The shape of a required tensor; ``dimensions`` is how many it must have."""
    if name not in shapes:
        raise UnknownArchitecture(f"{name} is missing")
    shape = shapes[name]
    if dimensions is not None and len(shape) != dimensions:
        raise UnknownArchitecture(f"{name} has shape {'x'.join(map(str, shape))}")
    if not all(0 < size <= MAX_SIZE for size in shape):
        raise UnknownArchitecture(
            f"{name} has shape {'x'.join(map(str, shape))}; at most {MAX_SIZE} each"
        )
    return shape


def _count_layers(shapes: Shapes, pattern: str) -> int:
    layers = _count(shapes, pattern)
    _check_counts(1, layers)
    return layers


def _check_counts(levels: int, layers: int) -> None:
    """Few names could otherwise stand for millions of tensors: levels times layers."""
    if levels > MAX_LEVELS or layers > MAX_LAYERS:
        raise UnknownArchitecture(
            f"{levels} levels of {layers} layers; at most {MAX_LEVELS} of {MAX_LAYERS} are taken"
        )


def _count(shapes: Shapes, pattern: str) -> int:
    """How many consecutive numbers from 0 give the name of a tensor."""
    return next(number for number in count() if pattern.format(number) not in shapes)


# --- From architecture to shapes --------------------------------------------------------------


def unet_shapes(unet: UNet) -> Shapes:
    """All tensors of such a UNet."""
    first, widest = unet.channels[0], unet.channels[-1]
    time_width = EXPANSION * first
    return {
        **_linear("time_embed.0", time_width, first),
        **_linear("time_embed.2", time_width, time_width),
        **_down_blocks(unet),
        **_resnet("middle_block.0", widest, widest, time_width),
        **_transformer("middle_block.1", widest, unet),
        **_resnet("middle_block.2", widest, widest, time_width),
        **_up_blocks(unet),
        **_norm("out.0", first),
        **_conv("out.2", unet.out_channels, first),
    }


def _down_blocks(unet: UNet) -> Shapes:
    number, channels = 1, unet.channels[0]
    shapes = _conv("input_blocks.0.0", channels, unet.in_channels)
    for level, out in enumerate(unet.channels):
        for _ in range(unet.layers_per_block):
            shapes |= _layer(f"input_blocks.{number}", channels, out, unet, level)
            number, channels = number + 1, out
        if level < len(unet.channels) - 1:
            shapes |= _conv(f"input_blocks.{number}.0.op", out, out)
            number += 1
    return shapes


def _skip_channels(unet: UNet) -> list[int]:
    """Channels of the skip connections, one from each input block."""
    skip_channels = [unet.channels[0]]
    for level, out in enumerate(unet.channels):
        skip_channels += [out] * (unet.layers_per_block + (level < len(unet.channels) - 1))
    return skip_channels


def _up_blocks(unet: UNet) -> Shapes:
    shapes: Shapes = {}
    number, channels, skip_channels = 0, unet.channels[-1], _skip_channels(unet)
    for level, out in reversed(list(enumerate(unet.channels))):
        for layer in range(unet.layers_per_block + 1):
            name = f"output_blocks.{number}"
            shapes |= _layer(name, channels + skip_channels.pop(), out, unet, level)
            if level and layer == unet.layers_per_block:
                shapes |= _conv(f"{name}.{1 + unet.cross_attention[level]}.conv", out, out)
            number, channels = number + 1, out
    return shapes


def _layer(name: str, in_channels: int, out_channels: int, unet: UNet, level: int) -> Shapes:
    shapes = _resnet(f"{name}.0", in_channels, out_channels, EXPANSION * unet.channels[0])
    if unet.cross_attention[level]:
        shapes |= _transformer(f"{name}.1", out_channels, unet)
    return shapes


def _resnet(name: str, in_channels: int, out_channels: int, time_width: int) -> Shapes:
    skip = (
        {}
        if in_channels == out_channels
        else _conv(f"{name}.skip_connection", out_channels, in_channels, 1)
    )
    return {
        **_norm(f"{name}.in_layers.0", in_channels),
        **_conv(f"{name}.in_layers.2", out_channels, in_channels),
        **_linear(f"{name}.emb_layers.1", out_channels, time_width),
        **_norm(f"{name}.out_layers.0", out_channels),
        **_conv(f"{name}.out_layers.3", out_channels, out_channels),
        **skip,
    }


def _transformer(name: str, width: int, unet: UNet) -> Shapes:
    projection = _linear if unet.linear_projection else _conv_1x1
    block, inner = f"{name}.transformer_blocks.0", EXPANSION * width
    return {
        **_norm(f"{name}.norm", width),
        **projection(f"{name}.proj_in", width, width),
        **_attention(f"{block}.attn1", width, width),
        **_attention(f"{block}.attn2", width, unet.cross_attention_dim),
        **_linear(f"{block}.ff.net.0.proj", 2 * inner, width),
        **_linear(f"{block}.ff.net.2", width, inner),
        **_norm(f"{block}.norm1", width),
        **_norm(f"{block}.norm2", width),
        **_norm(f"{block}.norm3", width),
        **projection(f"{name}.proj_out", width, width),
    }


def _attention(name: str, width: int, context: int) -> Shapes:
    return {
        f"{name}.to_q.weight": (width, width),
        f"{name}.to_k.weight": (width, context),
        f"{name}.to_v.weight": (width, context),
        **_linear(f"{name}.to_out.0", width, width),
    }


def vae_shapes(vae: Vae) -> Shapes:
    """All tensors of such an autoencoder."""
    first, widest = vae.channels[0], vae.channels[-1]
    moments = 2 * vae.latent_channels  # mean and log-variance
    shapes = {
        **_conv("encoder.conv_in", first, IMAGE_CHANNELS),
        **_vae_middle("encoder", widest),
        **_norm("encoder.norm_out", widest),
        **_conv("encoder.conv_out", moments, widest),
        **_conv("quant_conv", moments, moments, 1),
        **_conv("post_quant_conv", vae.latent_channels, vae.latent_channels, 1),
        **_conv("decoder.conv_in", widest, vae.latent_channels),
        **_vae_middle("decoder", widest),
        **_norm("decoder.norm_out", first),
        **_conv("decoder.conv_out", IMAGE_CHANNELS, first),
    }
    for level, out in enumerate(vae.channels):
        finer, coarser = max(level - 1, 0), min(level + 1, len(vae.channels) - 1)
        shapes |= _vae_level(
            f"encoder.down.{level}", vae.channels[finer], out, vae.layers_per_block
        )
        shapes |= _vae_level(
            f"decoder.up.{level}", vae.channels[coarser], out, vae.layers_per_block + 1
        )
        if coarser > level:
            shapes |= _conv(f"encoder.down.{level}.downsample.conv", out, out)
        if level:
            shapes |= _conv(f"decoder.up.{level}.upsample.conv", out, out)
    return shapes


def _vae_level(name: str, in_channels: int, out_channels: int, layers: int) -> Shapes:
    shapes = _vae_resnet(f"{name}.block.0", in_channels, out_channels)
    for layer in range(1, layers):
        shapes |= _vae_resnet(f"{name}.block.{layer}", out_channels, out_channels)
    return shapes


def _vae_resnet(name: str, in_channels: int, out_channels: int) -> Shapes:
    skip = (
        {}
        if in_channels == out_channels
        else _conv(f"{name}.nin_shortcut", out_channels, in_channels, 1)
    )
    return {
        **_norm(f"{name}.norm1", in_channels),
        **_conv(f"{name}.conv1", out_channels, in_channels),
        **_norm(f"{name}.norm2", out_channels),
        **_conv(f"{name}.conv2", out_channels, out_channels),
        **skip,
    }


def _vae_middle(name: str, width: int) -> Shapes:
    shapes = _norm(f"{name}.mid.attn_1.norm", width)
    for part in ("q", "k", "v", "proj_out"):
        shapes |= _conv(f"{name}.mid.attn_1.{part}", width, width, 1)
    for number in (1, 2):
        shapes |= _vae_resnet(f"{name}.mid.block_{number}", width, width)
    return shapes


def text_shapes(text: TextEncoder) -> Shapes:
    """All used tensors of such a text encoder."""
    return _open_clip_shapes(text) if text.open_clip else _clip_shapes(text)


def _clip_shapes(text: TextEncoder) -> Shapes:
    width = text.hidden_size
    shapes = {
        "text_model.embeddings.token_embedding.weight": (text.vocab_size, width),
        "text_model.embeddings.position_embedding.weight": (text.max_positions, width),
        **_norm("text_model.final_layer_norm", width),
    }
    for layer in range(text.layers):
        name = f"text_model.encoder.layers.{layer}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= _linear(f"{name}.self_attn.{part}", width, width)
        shapes |= _norm(f"{name}.layer_norm1", width) | _norm(f"{name}.layer_norm2", width)
        shapes |= _linear(f"{name}.mlp.fc1", text.intermediate_size, width)
        shapes |= _linear(f"{name}.mlp.fc2", width, text.intermediate_size)
    return shapes


def _open_clip_shapes(text: TextEncoder) -> Shapes:
    width = text.hidden_size
    shapes = {
        "token_embedding.weight": (text.vocab_size, width),
        "positional_embedding": (text.max_positions, width),
        **_norm("ln_final", width),
    }
    for layer in range(text.layers):
        name = f"transformer.resblocks.{layer}"
        shapes |= {
            f"{name}.attn.in_proj_weight": (3 * width, width),
            f"{name}.attn.in_proj_bias": (3 * width,),
            **_linear(f"{name}.attn.out_proj", width, width),
            **_norm(f"{name}.ln_1", width),
            **_norm(f"{name}.ln_2", width),
            **_linear(f"{name}.mlp.c_fc", text.intermediate_size, width),
            **_linear(f"{name}.mlp.c_proj", width, text.intermediate_size),
        }
    return shapes


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _linear(name: str, out_channels: int, in_channels: int) -> Shapes:
    return {f"{name}.weight": (out_channels, in_channels), f"{name}.bias": (out_channels,)}


def _conv(name: str, out_channels: int, in_channels: int, kernel: int = 3) -> Shapes:
    return {
        f"{name}.weight": (out_channels, in_channels, kernel, kernel),
        f"{name}.bias": (out_channels,),
    }


def _conv_1x1(name: str, out_channels: int, in_channels: int) -> Shapes:
    return _conv(name, out_channels, in_channels, kernel=1)
