"""What a Stable Diffusion model as a diffusers folder consists of."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import msgspec

from services.fetcher.tensors import Entry, read_header
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
            _read_config(folder / name, f"{shown}: {name}")
    kind = _read_config(folder / "model_index.json", shown).get("_class_name")
    if kind != "StableDiffusionPipeline":
        raise Refused(f"{shown}: it is a {kind}; expected a StableDiffusionPipeline")
    return files


def _read_config(path: Path, shown: str) -> dict[str, Any]:
    if path.stat().st_size > CONFIG_BYTES:
        raise Refused(f"{shown}: more than {CONFIG_BYTES} bytes")
    try:
        config: dict[str, Any] = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise Refused(f"{shown}: not a JSON object ({error})") from None
    return config


def names_in(folder: Path) -> list[str]:
    """All files of a folder, as names inside it."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path.relative_to(folder).as_posix() for path in files)


def tensors_of(folder: Path, part: str, shown: str) -> dict[str, Entry]:
    """The tensors of one network of a valid folder, by name."""
    return read_header(folder / _weights(names_in(folder), part, shown), f"{shown}: {part}")
