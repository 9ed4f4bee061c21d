"""Read a base model's tokenizer and network sizes, without torch, for the pre-flight report."""

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

from services.fetcher.parsing.models.diffusers_folder import WEIGHTS, read_tensors
from services.fetcher.parsing.models.safetensors_file import TensorEntry, read_header
from services.fetcher.parsing.models.single_file import PREFIXES, SINGLE_FILE
from shared.errors import Refused
from shared.ports import ObjectStore
from shared.storage.folders import read_manifest

SHOWN = "the base model"
FP16_BYTES = 2
"""Per parameter."""
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


async def stored_parameters(store: ObjectStore, prefix: str) -> dict[str, int]:
    """The same for a diffusers folder in the store, from file sizes, assuming half precision.

    Our trainer saves models so; for a full-precision model the result is twice too high.
    """
    files = (await read_manifest(store, prefix)).files
    return {
        part: sum(one.bytes for one in files if one.name.startswith(name)) // FP16_BYTES
        for part, name in WEIGHTS.items()
    }


async def fetch_tokenizer(store: ObjectStore, prefix: str, folder: Path) -> None:
    """Download a stored model's ``tokenizer/`` into a folder."""
    for file in (await read_manifest(store, prefix)).files:
        if file.name.startswith("tokenizer/"):
            await store.download(f"{prefix}/{file.name}", folder / file.name)


def count_tokens(folder: Path, captions: Sequence[str]) -> list[int]:
    """The number of tokens of each caption, without the start and end tokens.

    Raises:
        Refused: the model's tokenizer cannot be read.
    """
    tokenizer = read_tokenizer(folder / "tokenizer")
    return [len(one.ids) for one in tokenizer.encode_batch(captions, add_special_tokens=False)]


def read_tokenizer(folder: Path) -> Tokenizer:
    """Read a CLIP tokenizer from ``tokenizer.json``, or from ``vocab.json`` and ``merges.txt``.

    Raises:
        Refused: it is damaged.
    """
    whole = folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(whole)) if whole.exists() else _build_tokenizer(folder)
    except Exception as error:  # noqa: BLE001 - the library raises nothing more specific
        raise Refused(f"{SHOWN}: tokenizer/ cannot be read ({error})") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _build_tokenizer(folder: Path) -> Tokenizer:
    """Add CLIP's normalization and word splitting, which the two files do not contain."""
    pairs = BPE.from_file(
        str(folder / "vocab.json"),
        str(folder / "merges.txt"),
        end_of_word_suffix="</w>",
        unk_token=SPECIAL_TOKENS[-1],
    )
    tokenizer = Tokenizer(pairs)
    tokenizer.add_special_tokens([*SPECIAL_TOKENS])
    tokenizer.normalizer = Normalizers([NFC(), Replace(Regex(r"\s+"), " "), Lowercase()])
    words = Split(Regex(WORD_PATTERN), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = PreTokenizers([words, ByteLevel(add_prefix_space=False)])
    return tokenizer
