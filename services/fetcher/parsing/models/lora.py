"""Read a LoRA from elsewhere, and write it as the project's own are: one file in kohya's layout.

Tools name the layers of a LoRA differently. What remains of a name without its network, its dots
and what it is (down, up or alpha) is the layer's name in diffusers' layout or in the original one,
and the base model's architecture gives all of these, with the shapes that fit.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from math import inf, prod
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from msgspec.structs import replace

from services.fetcher.parsing.models.architecture import (
    Shape,
    TextEncoder,
    UNet,
    shown_shape,
    text_shapes,
    unet_shapes,
)
from services.fetcher.parsing.models.diffusers_folder import read_config
from services.fetcher.parsing.models.diffusers_names import TEXT_PREFIX, diffusers_unet_shapes
from services.fetcher.parsing.models.peft_config import (
    ALPHA_ELSEWHERE,
    PeftConfig,
    peft_configs,
)
from services.fetcher.parsing.models.safetensors_file import (
    CHUNK_BYTES,
    LENGTH_BYTES,
    TRAINABLE,
    TensorSource,
    check_type,
    read_header,
    read_metadata,
    read_values,
    tensor_sources,
    write_safetensors,
)
from shared.dataset.manifest import short
from shared.errors import Refused
from shared.request import LoraShape
from shared.storage.manifest import LORA

DOWN, UP, ALPHA = "lora_down.weight", "lora_up.weight", "alpha"
ENDS = re.compile(
    r"\.lora_(?P<part>down|up)\.weight$|\.lora_(?P<letter>[AB])(\.default)?\.weight$"
    r"|([._]lora|\.lora_linear_layer)\.(?P<old>down|up)\.weight$|\.(?P<alpha>alpha)$"
)
"""Of tensors' names: kohya's, peft's (and diffusers' today), diffusers' before peft, kohya's."""
OLD_ATTENTION = re.compile(r"(?<=\.self_attn\.)to_(q|k|v|out)$")
"""Of the text encoder's layers, as diffusers named them at first, like the UNet's."""
PARTS = {"down": DOWN, "A": DOWN, "up": UP, "B": UP, "alpha": ALPHA}
STARTS = {
    "unet": re.compile(r"lora_unet_|(base_model\.model\.)?(unet\.)?"),
    "text_encoder": re.compile(r"lora_te1?_|(base_model\.model\.)?(text_encoder\.)?"),
}
"""Of the names of each network's tensors."""
KOHYA = {"unet": "lora_unet_", "text_encoder": "lora_te_text_model_"}
OTHER_KINDS = (
    (r".*(dora_scale|lora_magnitude_vector)", "a DoRA"),
    (r".*\.hada_", "a LoHa"),
    (r".*\.lokr_", "a LoKr"),
    (r".*\.lora_mid\.", "a LoCon with Tucker decomposition"),
    (r"lora_te2_|text_encoder_2\.|.*transformer_blocks[._][1-9]", "a LoRA for SDXL"),
    (
        r"transformer\.|lora_transformer_|.*(double|joint)_blocks",
        "a LoRA for SD 3, Flux or the like",
    ),
)
"""By how a tensor's name begins."""
MOST_RANK = 1280
"""No layer of Stable Diffusion 1 or 2 could use more."""
NUMBERS = (*TRAINABLE, "I64", "I32")
"""Types of an alpha."""
MODEL_HASH = "sshs_model_hash"
"""In the header: what stable-diffusion-webui knows a LoRA by."""
HASH = re.compile(r"[0-9a-fA-F]{64}")
"""Anything else, in the text of an image, would be read as other settings."""
EXPECTED = (
    "expected a LoRA for Stable Diffusion 1 or 2, as kohya's tools, diffusers or peft write it"
)


class LayerOfBase(NamedTuple):
    """A layer that a LoRA may add to."""

    name: str
    """In kohya's files."""
    shape: Shape
    """Of its weights."""


class AddedLayer(NamedTuple):
    """What a file adds to a layer, as kohya's tools write it."""

    down: TensorSource
    """(rank, in), or (rank, in, height, width) for a convolution."""
    up: TensorSource
    """(out, rank), or (out, rank, 1, 1)."""
    alpha: float

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def is_wide(self) -> bool:
        """Whether it adds to a convolution of more than one pixel."""
        return self.down.shape[2:] not in ((), (1, 1))


class ReadLora(NamedTuple):
    """What a file has been found to hold."""

    shape: LoraShape
    warnings: list[str]


def is_lora(names: Iterable[str]) -> bool:
    """Whether a file with tensors of these names is a LoRA, or one of its kin."""
    kin = [pattern for pattern, kind in OTHER_KINDS if "LoRA for" not in kind]
    for name in names:
        end = ENDS.search(name)
        if (end and not end["alpha"]) or any(re.match(pattern, name) for pattern in kin):
            return True
    return False


def stage_lora(
    file: Path, base: Path, target: Path, shown: str, keepalive: Callable[[], None]
) -> ReadLora:
    """Write the LoRA into the new folder ``target``, under the name that it has in a model.

    ``base`` has the configurations of the model that it is for.

    Raises:
        Refused: it is damaged, of another kind, or for another model; names ``shown``.
    """
    sources = tensor_sources(file, read_header(file, shown))
    for pattern, kind in OTHER_KINDS:
        if any(re.match(pattern, name) for name in sources):
            raise Refused(f"{shown}: it is {kind}; {EXPECTED}")
    metadata = read_metadata(file)
    layers = _added_layers(sources, _layers_of(base), peft_configs(metadata, STARTS, shown), shown)
    tensors: dict[str, TensorSource] = {}
    for name, layer in layers.items():
        tensors[f"{name}.{DOWN}"], tensors[f"{name}.{UP}"] = layer.down, layer.up
        tensors[f"{name}.{ALPHA}"] = _scalar(layer.alpha)
    for name, tensor in tensors.items():
        if not np.isfinite(read_values(tensor)).all():
            raise Refused(f"{shown}: {name} has a value that is not finite")
        keepalive()
    target.mkdir()
    told = metadata.get(MODEL_HASH, "")
    kept = {MODEL_HASH: told if HASH.fullmatch(told) else _sha256_of_tensors(file)}
    write_safetensors(target / LORA, tensors, keepalive, kept)
    of_peft = all(name.startswith("base_model.") for name in sources)
    return ReadLora(_shape(layers.values()), [ALPHA_ELSEWHERE.format(shown)] * of_peft)


def _layers_of(base: Path) -> dict[str, dict[str, LayerOfBase]]:
    """A model's layers, by network and by each of their names with underscores in place of dots."""
    try:
        unet = _unet(read_config(base / "unet/config.json", "the base model's unet"))
        text = _text(read_config(base / "text_encoder/config.json", "the base model's text"))
    except (KeyError, TypeError) as error:
        raise Refused(f"the base model's configuration has no usable {error}") from None
    names = zip(diffusers_unet_shapes(unet).items(), unet_shapes(unet), strict=True)
    of_unet = {
        alias: LayerOfBase(KOHYA["unet"] + _underscored(name), shape)
        for (name, shape), original in names
        if _has_layer(name, shape)
        for alias in (_underscored(name), _underscored(original))
    }
    of_text = {}
    for name, shape in text_shapes(text).items():
        if ".layers." in name and _has_layer(name, shape):
            alias = _underscored(name.removeprefix(TEXT_PREFIX))
            of_text[alias] = LayerOfBase(KOHYA["text_encoder"] + alias, shape)
    return {"unet": of_unet, "text_encoder": of_text}


def _has_layer(name: str, shape: Shape) -> bool:
    return name.endswith(".weight") and len(shape) > 1


def _underscored(name: str) -> str:
    return name.removesuffix(".weight").replace(".", "_")


def _unet(config: Mapping[str, Any]) -> UNet:
    return UNet(
        channels=tuple(config["block_out_channels"]),
        cross_attention=tuple("CrossAttn" in kind for kind in config["down_block_types"]),
        layers_per_block=config["layers_per_block"],
        cross_attention_dim=config["cross_attention_dim"],
        linear_projection=config.get("use_linear_projection", False),
        in_channels=config["in_channels"],
        out_channels=config["out_channels"],
    )


def _text(config: Mapping[str, Any]) -> TextEncoder:
    """In diffusers' layout OpenCLIP's text encoder has the names of OpenAI's."""
    return TextEncoder(
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        layers=config["num_hidden_layers"],
        vocab_size=config["vocab_size"],
        max_positions=config["max_position_embeddings"],
        open_clip=False,
    )


def _added_layers(
    sources: Mapping[str, TensorSource],
    known: Mapping[str, Mapping[str, LayerOfBase]],
    peft: Mapping[str, PeftConfig],
    shown: str,
) -> dict[str, AddedLayer]:
    """What is added to each layer, by kohya's names."""
    found: dict[LayerOfBase, dict[str, TensorSource]] = {}
    alphas: dict[LayerOfBase, Callable[[int], float]] = {}
    for name, source in sources.items():
        end = ENDS.search(name)
        place = _place(name[: end.start()], known) if end else None
        if end is None:
            raise Refused(f"{shown}: {short(name)} is of no kind that is read here; {EXPECTED}")
        if place is None:
            raise Refused(
                f"{shown}: {short(name)}: the base model has no such layer; it is for another kind"
                f" of model, or for another base model, which base names; {EXPECTED}"
            )
        network, inside = place
        layer = known[network][_alias(inside)]
        part = PARTS[next(filter(None, end.group("part", "letter", "old", "alpha")))]
        if part in found.setdefault(layer, {}):
            raise Refused(f"{shown}: {name}: the layer is in it twice")
        found[layer][part] = source
        alphas[layer] = partial(peft[network].alpha_of, inside)
    return {
        layer.name: _added(layer, parts, alphas[layer], shown) for layer, parts in found.items()
    }


def _place(name: str, known: Mapping[str, Mapping[str, LayerOfBase]]) -> tuple[str, str] | None:
    """The network that a layer belongs to, and its name there; None: it belongs to none."""
    for network, start in STARTS.items():
        if begins := start.match(name):
            inside = re.sub(r"\.processor\.to_out$", ".to_out.0", name[begins.end() :])
            inside = OLD_ATTENTION.sub(r"\1_proj", inside.replace(".processor.", "."))
            if _alias(inside) in known[network]:
                return network, inside
    return None


def _alias(inside: str) -> str:
    return inside.replace(".", "_").removeprefix("text_model_")


def _added(
    layer: LayerOfBase,
    parts: Mapping[str, TensorSource],
    alpha_of: Callable[[int], float],
    shown: str,
) -> AddedLayer:
    for part in (DOWN, UP):
        if part not in parts:
            raise Refused(f"{shown}: it lacks {layer.name}.{part}")
        check_type(parts[part].dtype, f"{shown}: {layer.name}.{part}")
    down, up = parts[DOWN], parts[UP]
    out, *inputs = layer.shape
    rank = down.shape[0] if down.shape else 1
    if not 1 <= rank <= MOST_RANK:
        raise Refused(f"{shown}: {layer.name}.{DOWN} is of rank {rank}; expected 1 to {MOST_RANK}")
    if up.shape[:1] == (out,) and up.shape[1:2] != (rank,):
        raise Refused(
            f"{shown}: {layer.name}.{UP} is {shown_shape(up.shape)}, but {DOWN} beside it is of"
            f" rank {rank}: the file is damaged"
        )
    ones = (1,) * (len(inputs) - 1)
    expected = {DOWN: (rank, *inputs), UP: (out, rank, *ones)}
    for part, shape in expected.items():
        # A convolution of one pixel may be written as a matrix.
        if parts[part].shape != shape and _narrow(parts[part].shape) != _narrow(shape):
            raise Refused(
                f"{shown}: its {layer.name}.{part} is {shown_shape(parts[part].shape)}, but the"
                f" base model needs {shown_shape(shape)}: it is for another base model; name that"
                " one with base"
            )
    alpha = _alpha(parts.get(ALPHA), f"{shown}: {layer.name}.{ALPHA}")
    return AddedLayer(
        down=replace(down, shape=expected[DOWN]),
        up=replace(up, shape=expected[UP]),
        alpha=alpha_of(rank) if alpha is None else alpha,
    )


def _narrow(shape: Shape) -> Shape:
    return shape[:2] if shape[2:] == (1, 1) else shape


def _alpha(source: TensorSource | None, shown: str) -> float | None:
    """None: the file does not say."""
    if source is None:
        return None
    if source.dtype not in NUMBERS or prod(source.shape) != 1:
        raise Refused(
            f"{shown}: expected one number, got {source.dtype} {shown_shape(source.shape)}"
        )
    if not 0 < (alpha := float(read_values(source)[0])) < inf:
        raise Refused(f"{shown}: expected a number above 0, got {alpha:g}")
    return alpha


def _scalar(value: float) -> TensorSource:
    data = np.array(value, "<f4").tobytes()

    def copy(out: BinaryIO) -> None:
        out.write(data)

    return TensorSource(dtype="F32", shape=(), copy=copy)


def _sha256_of_tensors(file: Path) -> str:
    """As stable-diffusion-webui computes it where the header has none."""
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(LENGTH_BYTES), "little")
        opened.seek(LENGTH_BYTES + length)
        while chunk := opened.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _shape(layers: Iterable[AddedLayer]) -> LoraShape:
    """That of most layers; a file from elsewhere may have several."""
    narrow, wide = Counter[tuple[int, float]](), Counter[int]()
    for each in layers:
        if each.is_wide:
            wide[each.rank] += 1
        else:
            narrow[each.rank, each.alpha] += 1
    rank, alpha = narrow.most_common(1)[0][0] if narrow else (1, 1.0)
    return LoraShape(rank=rank, alpha=alpha, conv_rank=wide.most_common(1)[0][0] if wide else 0)
