"""What a job may name as its model, and the files of a model in diffusers' layout."""

from __future__ import annotations

from pathlib import Path

from shared.request import DEFAULT_BASE

EXPECTED = (
    f"expected {DEFAULT_BASE}, a hub id such as org/name, or the URL of a hub page, a zipped"
    " diffusers folder, a .safetensors or a .ckpt file"
)
MAX_MODEL_BYTES = 16 << 30
"""Of what is fetched of a model, from a URL or from the hub."""
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""How the small text begins that Git keeps in place of a large file."""
LFS_ADVICE = (
    "a Git LFS pointer, which only stands for the file: in a URL use .../resolve/... in place of"
    " .../raw/..., in a clone run `git lfs pull`"
)
WEIGHTS = {
    "unet": "unet/diffusion_pytorch_model",
    "vae": "vae/diffusion_pytorch_model",
    "text_encoder": "text_encoder/model",
}
SUFFIXES = (".safetensors", ".fp16.safetensors")
REQUIRED = (
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
LORA_FILE = "pytorch_lora_weights.safetensors"
"""As diffusers names it in a repository of its own."""
VOCABULARIES = ({"tokenizer/tokenizer.json"}, {"tokenizer/vocab.json", "tokenizer/merges.txt"})
"""Either set of files is a tokenizer's whole vocabulary."""


def lacks(folder: Path, *, weights: bool = True) -> str | None:
    """The first file that a model needs and its diffusers folder lacks; None: none.

    Without ``weights`` of its configurations and its tokenizer alone.
    """
    if missing := next((name for name in REQUIRED if not (folder / name).is_file()), None):
        return missing
    if not any(all((folder / name).is_file() for name in names) for names in VOCABULARIES):
        return "tokenizer/vocab.json and merges.txt (or tokenizer.json)"
    stems = WEIGHTS.values() if weights else ()
    return next((f"{stem}{SUFFIXES[0]}" for stem in stems if not weights_at(folder / stem)), None)


def weights_at(stem: Path) -> Path | None:
    """The file with a network's weights, by its path without a suffix; None: there is none."""
    files = (stem.with_name(f"{stem.name}{suffix}") for suffix in SUFFIXES)
    return next((file for file in files if file.is_file()), None)
