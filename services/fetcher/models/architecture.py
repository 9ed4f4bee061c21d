"""The geometry of a Stable Diffusion in the original layout: read off its tensors, and back.

Each network has a reader, from names and shapes to a few numbers, and a maker, from the numbers to
every name and shape that such a network has. A file is a Stable Diffusion if it has exactly those.
Names are those inside the network, without its prefix.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count

from msgspec import Struct

Shape = tuple[int, ...]
Shapes = dict[str, Shape]
Known = Mapping[str, Shape]

EMBEDDED = 4
"""The time's embedding, and a transformer's inner layer, are so many times as wide."""
IMAGE_CHANNELS = 3
LEVELS = 8
"""Of a network, at most; Stable Diffusion has four."""
LAYERS = 64
"""Of a level or of a text encoder, at most; OpenCLIP's ViT-H has 24."""
WIDEST = 1 << 20
"""Any other number, at most; the largest there is, of words, is below 50,000."""
WHOLE_TOWER = 24
"""Blocks of OpenCLIP's ViT-H; Stable Diffusion 2 uses all but the last."""


class Unknown(Exception):
    """The tensors are not of such a network; the text says why."""


class UNet(Struct, frozen=True, kw_only=True):
    channels: tuple[int, ...]
    """Of each level, from the finest."""
    attended: tuple[bool, ...]
    """Whether a level attends to the caption."""
    layers: int
    """Per level on the way down; one more on the way up."""
    context: int
    """Width of the text encoder's states."""
    linear: bool
    """Whether transformers are entered by a matrix (SD 2) or by a convolution (SD 1)."""
    takes: int
    gives: int


class Vae(Struct, frozen=True, kw_only=True):
    channels: tuple[int, ...]
    layers: int
    latent: int


class Text(Struct, frozen=True, kw_only=True):
    width: int
    inner: int
    layers: int
    """Those that are used."""
    words: int
    positions: int
    open_clip: bool
    """Whether it is OpenCLIP's tower (SD 2) rather than OpenAI's (SD 1)."""


# --- From shapes to numbers -------------------------------------------------------------------


def read_unet(known: Known) -> UNet:
    """Raises Unknown: a tensor that tells the geometry is missing."""
    levels = _levels(known)
    if not all(len(level) == len(levels[0]) > 0 for level in levels):
        raise Unknown("levels with different numbers of layers")
    _check_counts(len(levels), len(levels[0]))
    attended = tuple(f"input_blocks.{level[0]}.1.norm.weight" in known for level in levels)
    if not any(attended):
        raise Unknown("no cross-attention")
    block = f"input_blocks.{levels[attended.index(True)][0]}.1"
    return UNet(
        channels=tuple(
            shape_of(known, f"input_blocks.{level[-1]}.0.in_layers.2.weight", 4)[0]
            for level in levels
        ),
        attended=attended,
        layers=len(levels[0]),
        context=shape_of(known, f"{block}.transformer_blocks.0.attn2.to_k.weight", 2)[1],
        linear=len(shape_of(known, f"{block}.proj_in.weight")) == 2,  # noqa: PLR2004 - a matrix
        takes=shape_of(known, "input_blocks.0.0.weight", 4)[1],
        gives=shape_of(known, "out.2.weight", 4)[0],
    )


def _levels(known: Known) -> list[list[int]]:
    """The numbers of the input blocks, split where one only makes the picture smaller."""
    levels: list[list[int]] = [[]]
    for number in count(1):
        if f"input_blocks.{number}.0.op.weight" in known:
            levels.append([])
        elif f"input_blocks.{number}.0.in_layers.2.weight" in known:
            levels[-1].append(number)
        else:
            return levels
    raise AssertionError("numbers do not end")


def read_vae(known: Known) -> Vae:
    """Raises Unknown: a tensor that tells the geometry is missing."""
    levels = _counted(known, "encoder.down.{}.block.0.conv1.weight")
    layers = _counted(known, "encoder.down.0.block.{}.conv1.weight")
    _check_counts(levels, layers)
    if not all(f"encoder.down.{level}.block.{layers - 1}.conv1.weight" in known
               for level in range(levels)):  # fmt: skip
        raise Unknown("levels with different numbers of layers")
    return Vae(
        channels=tuple(
            shape_of(known, f"encoder.down.{level}.block.0.conv1.weight", 4)[0]
            for level in range(levels)
        ),
        layers=layers,
        latent=shape_of(known, "decoder.conv_in.weight", 4)[1],
    )


def read_clip(known: Known) -> Text:
    """OpenAI's text encoder. Raises Unknown: a tensor that tells the geometry is missing."""
    words, width = shape_of(known, "text_model.embeddings.token_embedding.weight", 2)
    return Text(
        width=width,
        inner=shape_of(known, "text_model.encoder.layers.0.mlp.fc1.weight", 2)[0],
        layers=_layers(known, "text_model.encoder.layers.{}.mlp.fc1.weight"),
        words=words,
        positions=shape_of(known, "text_model.embeddings.position_embedding.weight", 2)[0],
        open_clip=False,
    )


def read_open_clip(known: Known) -> Text:
    """OpenCLIP's text encoder, without a last block that is never used.

    The original files hold the whole tower and its projection; some tools write neither.
    Raises Unknown: a tensor that tells the geometry is missing.
    """
    words, width = shape_of(known, "token_embedding.weight", 2)
    blocks = _layers(known, "transformer.resblocks.{}.mlp.c_fc.weight")
    is_whole = blocks == WHOLE_TOWER or ("text_projection" in known and blocks != WHOLE_TOWER - 1)
    return Text(
        width=width,
        inner=shape_of(known, "transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
        layers=blocks - is_whole,
        words=words,
        positions=shape_of(known, "positional_embedding", 2)[0],
        open_clip=True,
    )


def shape_of(known: Known, name: str, dimensions: int | None = None) -> Shape:
    """The shape of a tensor that has to be there, with so many dimensions."""
    if name not in known:
        raise Unknown(f"{name} is missing")
    shape = known[name]
    if dimensions is not None and len(shape) != dimensions:
        raise Unknown(f"{name} has shape {'x'.join(map(str, shape))}")
    if not all(0 < size <= WIDEST for size in shape):
        raise Unknown(f"{name} has shape {'x'.join(map(str, shape))}; at most {WIDEST} each")
    return shape


def _layers(known: Known, pattern: str) -> int:
    layers = _counted(known, pattern)
    _check_counts(1, layers)
    return layers


def _check_counts(levels: int, layers: int) -> None:
    """A level is as many layers wide, and every layer is many tensors."""
    if levels > LEVELS or layers > LAYERS:
        raise Unknown(f"{levels} levels of {layers} layers; at most {LEVELS} of {LAYERS} are taken")


def _counted(known: Known, pattern: str) -> int:
    """How many numbers from 0 on give a name that is there."""
    return next(number for number in count() if pattern.format(number) not in known)


# --- From numbers to shapes -------------------------------------------------------------------


def unet_shapes(unet: UNet) -> Shapes:
    """Every tensor of such a UNet."""
    first, widest = unet.channels[0], unet.channels[-1]
    embedded = EMBEDDED * first
    return {
        **_dense("time_embed.0", embedded, first),
        **_dense("time_embed.2", embedded, embedded),
        **_way_down(unet),
        **_resnet("middle_block.0", widest, widest, embedded),
        **_transformer("middle_block.1", widest, unet),
        **_resnet("middle_block.2", widest, widest, embedded),
        **_way_up(unet),
        **_norm("out.0", first),
        **_conv("out.2", unet.gives, first),
    }


def _way_down(unet: UNet) -> Shapes:
    number, now = 1, unet.channels[0]
    shapes = _conv("input_blocks.0.0", now, unet.takes)
    for level, out in enumerate(unet.channels):
        for _ in range(unet.layers):
            shapes |= _layer(f"input_blocks.{number}", now, out, unet, level)
            number, now = number + 1, out
        if level < len(unet.channels) - 1:
            shapes |= _conv(f"input_blocks.{number}.0.op", out, out)
            number += 1
    return shapes


def _kept(unet: UNet) -> list[int]:
    """Channels of what each input block hands over to the output block opposite it."""
    kept = [unet.channels[0]]
    for level, out in enumerate(unet.channels):
        kept += [out] * (unet.layers + (level < len(unet.channels) - 1))
    return kept


def _way_up(unet: UNet) -> Shapes:
    shapes: Shapes = {}
    number, now, kept = 0, unet.channels[-1], _kept(unet)
    for level, out in reversed(list(enumerate(unet.channels))):
        for layer in range(unet.layers + 1):
            name = f"output_blocks.{number}"
            shapes |= _layer(name, now + kept.pop(), out, unet, level)
            if level and layer == unet.layers:
                shapes |= _conv(f"{name}.{1 + unet.attended[level]}.conv", out, out)
            number, now = number + 1, out
    return shapes


def _layer(name: str, takes: int, gives: int, unet: UNet, level: int) -> Shapes:
    shapes = _resnet(f"{name}.0", takes, gives, EMBEDDED * unet.channels[0])
    if unet.attended[level]:
        shapes |= _transformer(f"{name}.1", gives, unet)
    return shapes


def _resnet(name: str, takes: int, gives: int, embedded: int) -> Shapes:
    skip = {} if takes == gives else _conv(f"{name}.skip_connection", gives, takes, 1)
    return {
        **_norm(f"{name}.in_layers.0", takes),
        **_conv(f"{name}.in_layers.2", gives, takes),
        **_dense(f"{name}.emb_layers.1", gives, embedded),
        **_norm(f"{name}.out_layers.0", gives),
        **_conv(f"{name}.out_layers.3", gives, gives),
        **skip,
    }


def _transformer(name: str, width: int, unet: UNet) -> Shapes:
    door = _dense if unet.linear else _conv_of_one
    block, inner = f"{name}.transformer_blocks.0", EMBEDDED * width
    return {
        **_norm(f"{name}.norm", width),
        **door(f"{name}.proj_in", width, width),
        **_attention(f"{block}.attn1", width, width),
        **_attention(f"{block}.attn2", width, unet.context),
        **_dense(f"{block}.ff.net.0.proj", 2 * inner, width),
        **_dense(f"{block}.ff.net.2", width, inner),
        **_norm(f"{block}.norm1", width),
        **_norm(f"{block}.norm2", width),
        **_norm(f"{block}.norm3", width),
        **door(f"{name}.proj_out", width, width),
    }


def _attention(name: str, width: int, context: int) -> Shapes:
    return {
        f"{name}.to_q.weight": (width, width),
        f"{name}.to_k.weight": (width, context),
        f"{name}.to_v.weight": (width, context),
        **_dense(f"{name}.to_out.0", width, width),
    }


def vae_shapes(vae: Vae) -> Shapes:
    """Every tensor of such an autoencoder."""
    first, widest, both = vae.channels[0], vae.channels[-1], 2 * vae.latent
    shapes = {
        **_conv("encoder.conv_in", first, IMAGE_CHANNELS),
        **_vae_middle("encoder", widest),
        **_norm("encoder.norm_out", widest),
        **_conv("encoder.conv_out", both, widest),
        **_conv("quant_conv", both, both, 1),
        **_conv("post_quant_conv", vae.latent, vae.latent, 1),
        **_conv("decoder.conv_in", widest, vae.latent),
        **_vae_middle("decoder", widest),
        **_norm("decoder.norm_out", first),
        **_conv("decoder.conv_out", IMAGE_CHANNELS, first),
    }
    for level, out in enumerate(vae.channels):
        finer, coarser = max(level - 1, 0), min(level + 1, len(vae.channels) - 1)
        shapes |= _vae_level(f"encoder.down.{level}", vae.channels[finer], out, vae.layers)
        shapes |= _vae_level(f"decoder.up.{level}", vae.channels[coarser], out, vae.layers + 1)
        if coarser > level:
            shapes |= _conv(f"encoder.down.{level}.downsample.conv", out, out)
        if level:
            shapes |= _conv(f"decoder.up.{level}.upsample.conv", out, out)
    return shapes


def _vae_level(name: str, takes: int, gives: int, layers: int) -> Shapes:
    shapes = _vae_resnet(f"{name}.block.0", takes, gives)
    for layer in range(1, layers):
        shapes |= _vae_resnet(f"{name}.block.{layer}", gives, gives)
    return shapes


def _vae_resnet(name: str, takes: int, gives: int) -> Shapes:
    skip = {} if takes == gives else _conv(f"{name}.nin_shortcut", gives, takes, 1)
    return {
        **_norm(f"{name}.norm1", takes),
        **_conv(f"{name}.conv1", gives, takes),
        **_norm(f"{name}.norm2", gives),
        **_conv(f"{name}.conv2", gives, gives),
        **skip,
    }


def _vae_middle(name: str, width: int) -> Shapes:
    shapes = _norm(f"{name}.mid.attn_1.norm", width)
    for part in ("q", "k", "v", "proj_out"):
        shapes |= _conv(f"{name}.mid.attn_1.{part}", width, width, 1)
    for number in (1, 2):
        shapes |= _vae_resnet(f"{name}.mid.block_{number}", width, width)
    return shapes


def text_shapes(text: Text) -> Shapes:
    """Every tensor of such a text encoder that is used."""
    return _open_clip_shapes(text) if text.open_clip else _clip_shapes(text)


def _clip_shapes(text: Text) -> Shapes:
    width = text.width
    shapes = {
        "text_model.embeddings.token_embedding.weight": (text.words, width),
        "text_model.embeddings.position_embedding.weight": (text.positions, width),
        **_norm("text_model.final_layer_norm", width),
    }
    for layer in range(text.layers):
        name = f"text_model.encoder.layers.{layer}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= _dense(f"{name}.self_attn.{part}", width, width)
        shapes |= _norm(f"{name}.layer_norm1", width) | _norm(f"{name}.layer_norm2", width)
        shapes |= _dense(f"{name}.mlp.fc1", text.inner, width)
        shapes |= _dense(f"{name}.mlp.fc2", width, text.inner)
    return shapes


def _open_clip_shapes(text: Text) -> Shapes:
    width = text.width
    shapes = {
        "token_embedding.weight": (text.words, width),
        "positional_embedding": (text.positions, width),
        **_norm("ln_final", width),
    }
    for layer in range(text.layers):
        name = f"transformer.resblocks.{layer}"
        shapes |= {
            f"{name}.attn.in_proj_weight": (3 * width, width),
            f"{name}.attn.in_proj_bias": (3 * width,),
            **_dense(f"{name}.attn.out_proj", width, width),
            **_norm(f"{name}.ln_1", width),
            **_norm(f"{name}.ln_2", width),
            **_dense(f"{name}.mlp.c_fc", text.inner, width),
            **_dense(f"{name}.mlp.c_proj", width, text.inner),
        }
    return shapes


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _dense(name: str, gives: int, takes: int) -> Shapes:
    return {f"{name}.weight": (gives, takes), f"{name}.bias": (gives,)}


def _conv(name: str, gives: int, takes: int, side: int = 3) -> Shapes:
    return {f"{name}.weight": (gives, takes, side, side), f"{name}.bias": (gives,)}


def _conv_of_one(name: str, gives: int, takes: int) -> Shapes:
    return _conv(name, gives, takes, 1)
