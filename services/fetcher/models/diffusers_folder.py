"""What a Stable Diffusion model as a diffusers folder consists of."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from services.fetcher.models.safetensors_file import TensorEntry, read_header
from shared.errors import Refused

WEIGHTS = {
    "unet": "unet/diffusion_pytorch_model",
    "vae": "vae/diffusion_pytorch_model",
    "text_encoder": "text_encoder/model",
}
SUFFIXES = (".safetensors", ".fp16.safetensors")
NEEDED = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "unet/config.json",
    "vae/config.json",
)
TOKENIZER = (
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
)
VOCABULARIES = ({"tokenizer/tokenizer.json"}, {"tokenizer/vocab.json", "tokenizer/merges.txt"})
CONFIG_BYTES = 16 << 20
NUMBERED = (
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "unet/config.json",
    "vae/config.json",
)
"""Configurations whose numbers say how much is built on the GPU."""
LARGEST = 1 << 20
"""Of their numbers; the largest there is, of words, is below 50,000."""
MOST_LAYERS = 64
"""Stable Diffusion 2's text encoder has 24."""
MOST_LISTED = 32
"""Of a list's entries: levels of a network are a handful."""
LISTS = {"trained_betas": 1000}
"""Lists that may be longer, one entry per step of noise."""
LATENT = 4
"""Channels of a latent, which are all that the UNet of a model for text takes."""
KINDS = {5: "a depth model", 7: "an upscaler", 8: "a model for edits", 9: "an inpainting model"}
"""By what their UNets take."""
PREDICTIONS = ("epsilon", "v_prediction", "v-prediction")

ADVICE = "save the model with safe serialization (safetensors)"


def choose_files(names: Collection[str], shown: str) -> list[str]:
    """Of a folder's files, those that make the model.

    Raises:
        Refused: a part is missing, or there only as a pickle; names ``shown``.
    """
    return [*choose_configs(names, shown), *(_weights(names, part, shown) for part in WEIGHTS)]


def choose_configs(names: Collection[str], shown: str) -> list[str]:
    """Of a folder's files, those beside the weights: configurations, tokenizer, scheduler.

    Raises:
        Refused: one is missing; names ``shown``.
    """
    missing = next((name for name in NEEDED if name not in names), None)
    if missing:
        raise Refused(f"{shown}: {missing} is missing; expected a whole diffusers folder")
    if not any(vocabulary <= set(names) for vocabulary in VOCABULARIES):
        raise Refused(f"{shown}: tokenizer/ lacks vocab.json and merges.txt (or tokenizer.json)")
    return [*NEEDED, *(name for name in TOKENIZER if name in names)]


def _weights(names: Collection[str], part: str, shown: str) -> str:
    for suffix in SUFFIXES:
        if (name := WEIGHTS[part] + suffix) in names:
            return name
    pickled = any(name.startswith(f"{part}/") and name.endswith(".bin") for name in names)
    what = "only pickled weights (.bin), which are not taken" if pickled else "no weights"
    raise Refused(f"{shown}: {part} has {what}; expected {WEIGHTS[part]}.safetensors; {ADVICE}")


def tensors_of(folder: Path, part: str, shown: str) -> dict[str, TensorEntry]:
    """The tensors of one network of a valid folder, by name."""
    return read_header(folder / _weights(names_in(folder), part, shown), f"{shown}: {part}")


def validate_diffusers_folder(folder: Path, shown: str) -> list[str]:
    """The files that make the model, as names inside the folder; others in it do not matter.

    Raises:
        Refused: a part is missing, pickled, damaged or of another kind; names ``shown``.
    """
    files = choose_files(names_in(folder), shown)
    for name in files:
        if name.endswith(".safetensors"):
            read_header(folder / name, f"{shown}: {name}")
        elif name.endswith(".json"):
            read_config(folder / name, f"{shown}: {name}")
    for name in NUMBERED:
        _check_numbers(read_config(folder / name, f"{shown}: {name}"), f"{shown}: {name}")
    kind = read_config(folder / "model_index.json", shown).get("_class_name")
    if kind != "StableDiffusionPipeline":
        raise Refused(f"{shown}: it is a {kind}; expected a StableDiffusionPipeline")
    _check_fit(folder, shown)
    return files


def _check_numbers(config: dict[str, Any], shown: str) -> None:
    """That nothing asks for more memory or time than any Stable Diffusion takes."""
    waiting: list[tuple[str, object]] = [*config.items()]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.items()
        elif isinstance(value, list):
            _check_most(f"{shown}: the length of {name}", len(value), LISTS.get(name, MOST_LISTED))
            waiting += ((name, each) for each in value)
        elif isinstance(value, int | float):
            _check_most(f"{shown}: {name}", value, MOST_LAYERS if "layers" in name else LARGEST)


def _check_most(shown: str, value: float, most: int) -> None:
    if not -most <= value <= most:
        raise Refused(f"{shown} is {str(value)[:40]}; at most {most} is taken")


def _check_fit(folder: Path, shown: str) -> None:
    """That the parts fit one another and can be trained, as far as configurations tell."""
    unet = read_config(folder / "unet/config.json", f"{shown}: unet/config.json")
    text = read_config(folder / "text_encoder/config.json", f"{shown}: text_encoder/config.json")
    check_channels(unet.get("in_channels", LATENT), shown)
    if text.get("hidden_size") != unet.get("cross_attention_dim"):
        raise Refused(
            f"{shown}: its unet takes captions of width {unet.get('cross_attention_dim')}, its text"
            f" encoder gives {text.get('hidden_size')}; expected parts of one model"
        )
    known, embedded = vocabulary_of(folder, shown), text.get("vocab_size")
    if known != embedded:
        raise Refused(
            f"{shown}: its tokenizer has {known} words, its text encoder embeds {embedded};"
            " expected tokenizer/ of the same model"
        )
    _check_prediction(folder, shown)


def check_channels(takes: object, shown: str) -> None:
    """That a UNet takes nothing but latents.

    Raises:
        Refused: says what kind of model takes as many channels.
    """
    if takes != LATENT:
        kind = KINDS.get(takes, "another kind of model") if isinstance(takes, int) else "no UNet"
        raise Refused(
            f"{shown}: its unet takes {takes} channels, so it is {kind}; expected one for drawing"
            f" from text, which takes {LATENT}"
        )


def _check_prediction(folder: Path, shown: str) -> None:
    name = "scheduler/scheduler_config.json"
    predicts = read_config(folder / name, f"{shown}: {name}").get("prediction_type", "epsilon")
    if predicts not in PREDICTIONS:
        raise Refused(
            f"{shown}: {name} has prediction_type {predicts!r}; expected epsilon or v_prediction"
        )


def vocabulary_of(folder: Path, shown: str) -> int:
    """How many words a folder's tokenizer knows."""
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
    """As much of the tokenizers library's format as counts words."""

    model: _Model
    added_tokens: list[_Added] = []


def read_config(path: Path, shown: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        Refused: it is none, or too large; names ``shown``.
    """
    if path.stat().st_size > CONFIG_BYTES:
        raise Refused(f"{shown}: more than {CONFIG_BYTES} bytes")
    try:
        config: dict[str, Any] = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError) as error:
        raise Refused(f"{shown}: not a JSON object ({error})") from None
    return config


def names_in(folder: Path) -> list[str]:
    """All files of a folder, as names inside it."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path.relative_to(folder).as_posix() for path in files)
