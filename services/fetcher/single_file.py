"""A whole model in one file, in the layout of the original Stable Diffusion: recognised, tidied.

A file is recognised by the names and shapes of its tensors: each of the three networks must have
exactly the shapes of the configured base model's, whose configurations then fit it.
"""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from services.fetcher.diffusers_folder import WEIGHTS, choose_configs, names_in, tensors_of
from services.fetcher.pickled import read_checkpoint
from services.fetcher.tensors import Source, read_header, sources_in, write
from shared.errors import Refused

SINGLE_FILE = "single_file.safetensors"

PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "cond_stage_model.transformer.",
}
LANDMARKS = {
    "unet": "model.diffusion_model.input_blocks.0.0.weight",
    "vae": "first_stage_model.encoder.conv_in.weight",
    "text_encoder": "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight",
}
OTHERS = {
    "conditioner.embedders.": "Stable Diffusion XL",
    "cond_stage_model.model.": "Stable Diffusion 2",
    "lora_": "a LoRA, which is no whole model",
    "text_encoders.": "a newer kind of model",
}
TEXT = PREFIXES["text_encoder"]
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})

BASE = "the configured base model"
ADVICE = (
    "expected a Stable Diffusion checkpoint of the same architecture as the configured base model;"
    " other architectures are taken as a zipped diffusers folder or a hub id"
)

Shape = tuple[int, ...]


def stage_safetensors(
    file: Path, base: Path, target: Path, shown: str, heard: Callable[[], None]
) -> None:
    """Make ``target`` a folder of the base's configurations and the file's weights.

    Raises:
        Refused: the file is damaged or of another architecture; names ``shown``.
    """
    _stage(sources_in(file, read_header(file, shown)), base, target, shown, heard)


def stage_checkpoint(
    zipped: zipfile.ZipFile, base: Path, target: Path, shown: str, heard: Callable[[], None]
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
    _stage(sources, base, target, shown, heard)


def _stage(
    sources: Mapping[str, Source], base: Path, target: Path, shown: str, heard: Callable[[], None]
) -> None:
    tensors = {_original_name(name): sources[name] for name in sources if _is_wanted(name)}
    recognise(tensors, base, shown, sources)
    target.mkdir(parents=True)
    for name in choose_configs(names_in(base), BASE):
        (target / name).parent.mkdir(exist_ok=True)
        (target / name).write_bytes((base / name).read_bytes())
    write(target / SINGLE_FILE, tensors, heard)


def _is_wanted(name: str) -> bool:
    """A weight of one of the three networks; averages, schedules and optimizers are left behind."""
    return name.startswith(tuple(PREFIXES.values())) and not name.endswith("position_ids")


def _original_name(name: str) -> str:
    """Some tools leave ``text_model.`` out, which stock loaders do not find."""
    rest = name.removeprefix(TEXT)
    if rest == name or rest.startswith("text_model."):
        return name
    return f"{TEXT}text_model.{rest}"


def recognise(
    tensors: Mapping[str, Source], base: Path, shown: str, everything: Iterable[str] = ()
) -> None:
    """Check that the tensors are a model of the base's architecture.

    Raises:
        Refused: says which network is missing or differs, and by what.
    """
    for part in WEIGHTS:
        if LANDMARKS[part] not in tensors:
            raise Refused(f"{shown}: {_what_else(everything, part)}; {ADVICE}")
        expected = _shapes(tensors_of(base, part, BASE), part, "")
        found = _shapes(tensors, part, PREFIXES[part])
        if found != expected:
            raise Refused(f"{shown}: its {part} has {_difference(found, expected)}; {ADVICE}")
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS:
            raise Refused(f"{shown}: {name} is of type {tensor.dtype}; expected floating point")


def _what_else(names: Iterable[str], part: str) -> str:
    for name in names:
        for start, kind in OTHERS.items():
            if name.startswith(start):
                return f"it looks like {kind}"
    return f"it has no {part} in the original layout ({LANDMARKS[part]} is missing)"


def _shapes(tensors: Mapping[str, Any], part: str, prefix: str) -> Counter[Shape]:
    """How many tensors of each shape a network has."""
    return Counter(
        _plain(tensor.shape) if part == "vae" else tensor.shape
        for name, tensor in tensors.items()
        if name.startswith(prefix) and not name.endswith("position_ids")
    )


def _plain(shape: Shape) -> Shape:
    """The VAE's attention is made of 1x1 convolutions in one layout, of matrices in the other."""
    return shape[:2] if shape[2:] == (1, 1) else shape


def _difference(found: Counter[Shape], expected: Counter[Shape]) -> str:
    if found.total() != expected.total():
        return f"{found.total()} tensors where the base has {expected.total()}"
    shape = next(iter(found - expected))
    return f"a tensor of shape {'x'.join(map(str, shape))}, which the base does not have"
