"""Read a base model's tokenizer and network sizes, without torch, for the pre-flight report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path

import msgspec
from msgspec import Struct
from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.normalizers import NFC, Lowercase, Replace
from tokenizers.normalizers import Sequence as Normalizers
from tokenizers.pre_tokenizers import ByteLevel, Split
from tokenizers.pre_tokenizers import Sequence as PreTokenizers

from services.fetcher.model_files import WEIGHTS
from services.fetcher.parsing.models.diffusers_folder import read_config, read_tensors
from services.fetcher.parsing.models.safetensors_file import TensorEntry, read_header
from services.fetcher.parsing.models.single_file import PREFIXES
from shared.errors import Refused
from shared.storage.manifest import SINGLE_FILE

SHOWN = "the base model"
SPECIAL_TOKENS = ("<|startoftext|>", "<|endoftext|>")
TEXT_PREFIX = "cond_stage_model."
"""The text encoder in a single file, for Stable Diffusion 1 and 2."""
WORD_PATTERN = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)
"""CLIP's definition of a word (Radford et al. 2021): letters, one digit, or other characters."""


def count_parameters(folder: Path) -> dict[str, int]:
    """The number of parameters of each network of a model, from its files' headers.

    Raises:
        Refused: a file is damaged.
    """
    if (folder / SINGLE_FILE).exists():
        tensors = read_header(folder / SINGLE_FILE, SHOWN)
        prefixes = {**PREFIXES, "text_encoder": TEXT_PREFIX}
        return {part: _count_elements(tensors, prefix) for part, prefix in prefixes.items()}
    return {part: _count_elements(read_tensors(folder, part, SHOWN), "") for part in WEIGHTS}


def _count_elements(tensors: Mapping[str, TensorEntry], prefix: str) -> int:
    return sum(prod(one.shape) for name, one in tensors.items() if name.startswith(prefix))


def count_tokens(folder: Path, captions: Sequence[str]) -> list[int]:
    """The number of tokens of each caption, without the start and end tokens.

    Raises:
        Refused: the model's tokenizer cannot be read.
    """
    tokenizer = read_tokenizer(folder / "tokenizer")
    return [len(one.ids) for one in tokenizer.encode_batch(captions, add_special_tokens=False)]


def read_tokenizer(folder: Path) -> Tokenizer:
    """Build a CLIP tokenizer from the vocabulary and the merges of a folder's tokenizer files.

    Normalization and word splitting are CLIP's own, whatever ``tokenizer.json`` says of them: a few
    of its normalizers can multiply a caption without end.

    Raises:
        Refused: the files are damaged.
    """
    try:
        vocabulary, merges = _read_pairs(folder)
        pairs = BPE(
            vocab=vocabulary, merges=merges, end_of_word_suffix="</w>", unk_token=SPECIAL_TOKENS[-1]
        )
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - the library raises nothing more specific
        raise Refused(f"{SHOWN}: tokenizer/ cannot be read ({error})") from None
    tokenizer = Tokenizer(pairs)
    tokenizer.add_special_tokens([*SPECIAL_TOKENS])
    tokenizer.normalizer = Normalizers([NFC(), Replace(Regex(r"\s+"), " "), Lowercase()])
    words = Split(Regex(WORD_PATTERN), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = PreTokenizers([words, ByteLevel(add_prefix_space=False)])
    return tokenizer


def _read_pairs(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The vocabulary and the merges, from ``tokenizer.json`` or from the two older files."""
    whole = folder / "tokenizer.json"
    if whole.exists():
        model = msgspec.convert(read_config(whole, SHOWN), _Tokenizer).model
        return model.vocab, [_pair(merge) for merge in model.merges]
    vocabulary = msgspec.convert(read_config(folder / "vocab.json", SHOWN), dict[str, int])
    lines = (folder / "merges.txt").read_text().splitlines()
    return vocabulary, [_pair(line) for line in lines if line and not line.startswith("#version")]


def _pair(merge: str | tuple[str, str]) -> tuple[str, str]:
    """A merge's two halves; older files have them in one text."""
    first, second = merge.split(" ") if isinstance(merge, str) else merge
    return first, second


class _Model(Struct):
    vocab: dict[str, int]
    merges: list[str | tuple[str, str]]


class _Tokenizer(Struct):
    """The part of the tokenizers library's format that is used."""

    model: _Model
