"""What a base model tells of a job before any GPU time: captions in tokens, networks in numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path

from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.normalizers import NFC, Lowercase, Replace
from tokenizers.normalizers import Sequence as Normalizers
from tokenizers.pre_tokenizers import ByteLevel, Split
from tokenizers.pre_tokenizers import Sequence as PreTokenizers

from services.fetcher.models.diffusers_folder import WEIGHTS, tensors_of
from services.fetcher.models.safetensors_file import TensorEntry, read_header
from services.fetcher.models.single_file import PREFIXES, SINGLE_FILE
from shared.errors import Refused
from shared.ports import ObjectStore
from shared.storage.folders import read_manifest

BASE = "the base model"
HALF_PRECISION = 2
"""Bytes of a parameter."""
MARKS = ("<|startoftext|>", "<|endoftext|>")
TEXT_PREFIX = "cond_stage_model."
"""Of Stable Diffusion 1's and 2's text encoders alike, in a single file."""
WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)
"""What CLIP takes for a word (Radford et al. 2021): letters, one digit, or other signs together."""


def parameters_of(folder: Path) -> dict[str, int]:
    """How many parameters each network of a model has, by the headers of its files.

    Raises:
        Refused: a file is damaged.
    """
    if (folder / SINGLE_FILE).exists():
        tensors = read_header(folder / SINGLE_FILE, BASE)
        prefixes = {**PREFIXES, "text_encoder": TEXT_PREFIX}
        return {part: _count(tensors, prefix) for part, prefix in prefixes.items()}
    return {part: _count(tensors_of(folder, part, BASE), "") for part in WEIGHTS}


def _count(tensors: Mapping[str, TensorEntry], prefix: str) -> int:
    return sum(prod(one.shape) for name, one in tensors.items() if name.startswith(prefix))


async def stored_parameters(store: ObjectStore, prefix: str) -> dict[str, int]:
    """The same of a diffusers folder in the store, by its sizes, as if in half precision.

    So our own trainer saves models; for one of full precision this is twice too many.
    """
    files = (await read_manifest(store, prefix)).files
    return {
        part: sum(one.bytes for one in files if one.name.startswith(name)) // HALF_PRECISION
        for part, name in WEIGHTS.items()
    }


async def fetch_tokenizer(store: ObjectStore, prefix: str, folder: Path) -> None:
    """Fetch a stored model's ``tokenizer/`` into a folder."""
    for file in (await read_manifest(store, prefix)).files:
        if file.name.startswith("tokenizer/"):
            await store.download(f"{prefix}/{file.name}", folder / file.name)


def token_counts(folder: Path, captions: Sequence[str]) -> list[int]:
    """How many tokens each caption has for the model, without the marks at its ends.

    Raises:
        Refused: the model's tokenizer cannot be read.
    """
    tokenizer = read_tokenizer(folder / "tokenizer")
    return [len(one.ids) for one in tokenizer.encode_batch(captions, add_special_tokens=False)]


def read_tokenizer(folder: Path) -> Tokenizer:
    """A CLIP tokenizer from ``tokenizer.json``, or from ``vocab.json`` and ``merges.txt``.

    Raises:
        Refused: it is damaged.
    """
    whole = folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(whole)) if whole.exists() else _from_vocabulary(folder)
    except Exception as error:  # noqa: BLE001 - the library raises nothing more particular
        raise Refused(f"{BASE}: tokenizer/ cannot be read ({error})") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _from_vocabulary(folder: Path) -> Tokenizer:
    """The steps that CLIP takes before its byte pairs, which the two files do not tell."""
    pairs = BPE.from_file(
        str(folder / "vocab.json"),
        str(folder / "merges.txt"),
        end_of_word_suffix="</w>",
        unk_token=MARKS[-1],
    )
    tokenizer = Tokenizer(pairs)
    tokenizer.add_special_tokens([*MARKS])
    tokenizer.normalizer = Normalizers([NFC(), Replace(Regex(r"\s+"), " "), Lowercase()])
    words = Split(Regex(WORDS), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = PreTokenizers([words, ByteLevel(add_prefix_space=False)])
    return tokenizer
