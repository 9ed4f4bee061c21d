"""Choose and validate the files of a Stable Diffusion model in a diffusers folder."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from services.fetcher.model_files import REQUIRED, SUFFIXES, TOKENIZER, VOCABULARIES, WEIGHTS
from services.fetcher.parsing.models.folder_tensors import check_tensors
from services.fetcher.parsing.models.safetensors_file import (
    TensorEntry,
    read_header,
    refuse_lfs_pointer,
)
from shared.errors import Refused

MAX_CONFIG_BYTES = 16 << 20
CONFIGS = (
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "unet/config.json",
    "vae/config.json",
)
"""Configurations whose numbers decide how much is built on the GPU."""
MAX_NUMBER = 1 << 20
"""Upper bound for their numbers; the largest real one is the vocabulary, under 50,000."""
MAX_LAYERS = 64
"""Stable Diffusion 2's text encoder has 24."""
MAX_LIST_LENGTH = 32
"""A network has only a few levels."""
LONGER_LISTS = {"trained_betas": 1000}
"""Lists that may be longer: one entry per noise step."""
LATENT_CHANNELS = 4
"""Input channels of a text-to-image UNet."""
MODEL_KINDS = {
    5: "a depth model",
    7: "an upscaler",
    8: "a model for edits",
    9: "an inpainting model",
}
"""By the UNet's input channels."""
PREDICTION_TYPES = ("epsilon", "v_prediction", "v-prediction")

ADVICE = "save the model with safe serialization (safetensors)"


class OpenedModel(NamedTuple):
    """A model's files in its folder, by name."""

    files: list[str]
    warnings: list[str]


def choose_files(names: Collection[str], shown: str) -> list[str]:
    """The files of a folder that belong to the model.

    Raises:
        Refused: a part is missing, or exists only as a pickle; names ``shown``.
    """
    return [
        *choose_configs(names, shown),
        *(weights_in(names, part, shown) for part in WEIGHTS),
    ]


def choose_configs(names: Collection[str], shown: str) -> list[str]:
    """The model's files except the weights: configurations, tokenizer, scheduler.

    Raises:
        Refused: one is missing; names ``shown``.
    """
    missing = next((name for name in REQUIRED if name not in names), None)
    if missing:
        raise Refused(f"{shown}: {missing} is missing; expected a whole diffusers folder")
    if not any(vocabulary <= set(names) for vocabulary in VOCABULARIES):
        raise Refused(f"{shown}: tokenizer/ lacks vocab.json and merges.txt (or tokenizer.json)")
    return [*REQUIRED, *(name for name in TOKENIZER if name in names)]


def weights_in(names: Collection[str], part: str, shown: str) -> str:
    """The file with the weights of a part.

    Raises:
        Refused: it is missing, or exists only as a pickle; names ``shown``.
    """
    for suffix in SUFFIXES:
        if (name := WEIGHTS[part] + suffix) in names:
            return name
    pickled = any(name.startswith(f"{part}/") and name.endswith(".bin") for name in names)
    what = "only pickled weights (.bin), which are not taken" if pickled else "no weights"
    raise Refused(f"{shown}: {part} has {what}; expected {WEIGHTS[part]}.safetensors; {ADVICE}")


def read_tensors(folder: Path, part: str, shown: str) -> dict[str, TensorEntry]:
    """The tensor entries of one network of a valid folder, by name."""
    return read_header(folder / weights_in(names_in(folder), part, shown), f"{shown}: {part}")


def validate_diffusers_folder(
    folder: Path, shown: str, reading: Callable[[str], None]
) -> OpenedModel:
    """Validate a model folder; files that do not belong to the model are ignored.

    ``reading`` is called with each file's name, before it is opened.

    Raises:
        Refused: a part is missing, pickled, damaged or of another kind; names ``shown``.
    """
    files = choose_files(names_in(folder), shown)
    entries: dict[str, dict[str, TensorEntry]] = {}
    for name in files:
        reading(name)
        if name.endswith(".safetensors"):
            entries[name] = read_header(folder / name, f"{shown}: {name}")
        elif name.endswith(".json"):
            read_config(folder / name, f"{shown}: {name}")
    for name in CONFIGS:
        _check_numbers(read_config(folder / name, f"{shown}: {name}"), f"{shown}: {name}")
    kind = read_config(folder / "model_index.json", shown).get("_class_name")
    if kind != "StableDiffusionPipeline":
        raise Refused(f"{shown}: it is a {kind}; expected a StableDiffusionPipeline")
    _check_fit(folder, shown)
    warnings = []
    for name, each in entries.items():
        part = name.partition("/")[0]
        config = read_config(folder / part / "config.json", f"{shown}: {part}/config.json")
        warnings += check_tensors(part, each, config, f"{shown}: {name}")
    return OpenedModel(files, warnings)


def _check_numbers(config: dict[str, Any], shown: str) -> None:
    """Refuse numbers with which a model would need far too much memory or time."""
    unchecked: list[tuple[str, object]] = [*config.items()]
    while unchecked:
        name, value = unchecked.pop()
        if isinstance(value, dict):
            unchecked += value.items()
        elif isinstance(value, list):
            _check_limit(
                f"{shown}: the length of {name}",
                len(value),
                LONGER_LISTS.get(name, MAX_LIST_LENGTH),
            )
            unchecked += ((name, each) for each in value)
        elif isinstance(value, int | float):
            _check_limit(f"{shown}: {name}", value, MAX_LAYERS if "layers" in name else MAX_NUMBER)


def _check_limit(shown: str, value: float, limit: int) -> None:
    if not -limit <= value <= limit:
        raise Refused(f"{shown} is {str(value)[:40]}; at most {limit} is taken")


def _check_fit(folder: Path, shown: str) -> None:
    """Refuse parts that do not fit together or cannot be trained, by their configurations."""
    unet = read_config(folder / "unet/config.json", f"{shown}: unet/config.json")
    text = read_config(folder / "text_encoder/config.json", f"{shown}: text_encoder/config.json")
    check_channels(unet.get("in_channels", LATENT_CHANNELS), shown)
    if text.get("hidden_size") != unet.get("cross_attention_dim"):
        raise Refused(
            f"{shown}: its unet takes captions of width {unet.get('cross_attention_dim')}, its text"
            f" encoder gives {text.get('hidden_size')}; expected parts of one model"
        )
    in_tokenizer, in_encoder = vocabulary_of(folder, shown), text.get("vocab_size")
    if in_tokenizer != in_encoder:
        raise Refused(
            f"{shown}: its tokenizer has {in_tokenizer} words, its text encoder embeds"
            f" {in_encoder}; expected tokenizer/ of the same model"
        )
    _check_prediction(folder, shown)


def check_channels(in_channels: object, shown: str) -> None:
    """Check that a UNet takes only latents.

    Raises:
        Refused: says what kind of model has this number of input channels.
    """
    if in_channels != LATENT_CHANNELS:
        kind = "no UNet"
        if isinstance(in_channels, int):
            kind = MODEL_KINDS.get(in_channels, "another kind of model")
        raise Refused(
            f"{shown}: its unet takes {in_channels} channels, so it is {kind}; expected one for"
            f" drawing from text, which takes {LATENT_CHANNELS}"
        )


def _check_prediction(folder: Path, shown: str) -> None:
    name = "scheduler/scheduler_config.json"
    kind = read_config(folder / name, f"{shown}: {name}").get("prediction_type", "epsilon")
    if kind not in PREDICTION_TYPES:
        raise Refused(
            f"{shown}: {name} has prediction_type {kind!r}; expected epsilon or v_prediction"
        )


def vocabulary_of(folder: Path, shown: str) -> int:
    """The size of a folder's tokenizer vocabulary."""
    whole = folder / "tokenizer/tokenizer.json"
    if not whole.exists():
        return len(read_config(folder / "tokenizer/vocab.json", f"{shown}: tokenizer/vocab.json"))
    try:
        tokenizer = msgspec.convert(read_config(whole, f"{shown}: {whole.name}"), _Tokenizer)
    except msgspec.ValidationError as error:
        raise Refused(f"{shown}: tokenizer/tokenizer.json: {error}") from None
    return len({*tokenizer.model.vocab, *(each.content for each in tokenizer.added_tokens)})


class _Model(Struct):
    vocab: dict[str, int]


class _Added(Struct):
    content: str


class _Tokenizer(Struct):
    """The part of the tokenizers library's format that has the vocabulary."""

    model: _Model
    added_tokens: list[_Added] = []


def read_config(path: Path, shown: str) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        Refused: not a JSON object, or too large; names ``shown``.
    """
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise Refused(f"{shown}: more than {MAX_CONFIG_BYTES} bytes")
    try:
        config: dict[str, Any] = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError) as error:
        refuse_lfs_pointer(path, shown)
        raise Refused(f"{shown}: not a JSON object ({error})") from None
    return config


def names_in(folder: Path) -> list[str]:
    """The paths of all files in a folder, relative to it."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path.relative_to(folder).as_posix() for path in files)
