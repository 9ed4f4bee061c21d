"""Encode prompts for the UNet: up to ten blocks, with emphasis.

``(word:1.2)`` is emphasis; everything else is literal text. compel applies the weights and splits
the prompt into blocks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any

import torch
from compel import EmbeddingsProvider, SplitLongTextMode
from torch import Tensor

from shared.diffusion.loading import Parts
from shared.diffusion.text import encode

MAX_BLOCKS = 10
"""Of 75 tokens each, and a start and an end; the rest of a prompt is cut off."""
MAX_WEIGHT = 2.0
ESCAPED = (r"\(", r"\)")

_NUMBER = r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
_WEIGHT = re.compile(rf":\s*{_NUMBER}\s*\)")
_SYNTAX = re.compile(rf"(\\[()]|\(|\)|{_WEIGHT.pattern})")
"""Possible syntax: an escaped parenthesis, an opening, a closing, a weight."""


@dataclass(frozen=True)
class Fragment:
    """A part of a prompt, and its weight."""

    text: str
    weight: float


class PromptEncoder:
    """Encodes prompts for one model."""

    def __init__(self, parts: Parts, clip_skip: int) -> None:
        """``clip_skip`` as in :func:`shared.diffusion.text.encode`."""
        self._provider = _Provider(parts, clip_skip)
        self.cut: list[str] = []
        """The texts whose ends had no room in ``MAX_BLOCKS``."""

    @torch.inference_mode()
    def embed(self, prompt: str, negative_prompt: str = "") -> tuple[Tensor, Tensor]:
        """Embeddings of both, (1, 77 k, C) each, with k blocks as the longer one needs.

        An empty prompt is one block. The shorter prompt is padded with blocks of the empty prompt.
        Without emphasis a block equals what ``encode`` makes of its tokens, bit for bit.
        """
        positive, negative = (self._embed(text) for text in (prompt, negative_prompt))
        length = max(positive.shape[1], negative.shape[1])
        return self._provider.pad(positive, length), self._provider.pad(negative, length)

    def _embed(self, text: str) -> Tensor:
        embedding = self._provider.embed(text)
        if self._provider.has_cut and text not in self.cut:
            self.cut.append(text)
        return embedding


class _Provider(EmbeddingsProvider):  # type: ignore[misc]
    """compel's weights and blocks with our clip skip, which compel does not offer.

    A token's embedding x with weight w becomes ``empty + w (x - empty)``, where ``empty`` is what
    the empty prompt has at the same position. Phrases between commas or full stops stay in one
    block unless they are longer; so do words.
    """

    def __init__(self, parts: Parts, clip_skip: int) -> None:
        super().__init__(
            parts.tokenizer,
            parts.text_encoder,
            truncate=False,
            split_long_text_mode=SplitLongTextMode.PHRASES,
        )
        self._clip_skip = clip_skip
        self.has_cut = False
        """Whether the newest text was too long."""

    def embed(self, prompt: str) -> Tensor:
        """(1, 77 k, C), k from 1 to ``MAX_BLOCKS``."""
        self.has_cut, fragments = False, parse(prompt)
        ids, weights, _ = self.get_token_ids_and_expand_weights(
            [each.text for each in fragments],
            [each.weight for each in fragments],
            device=self.device,
        )
        embedding: Tensor = self.build_weighted_embedding_tensor(ids, weights)
        return embedding.to(self.text_encoder.dtype)

    def pad(self, embedding: Tensor, length: int) -> Tensor:
        """Pad an embedding to ``length`` tokens with blocks of the empty prompt."""
        missing = (length - embedding.shape[1]) // self.max_token_count
        empty = self.empty_z.to(embedding.dtype)
        return torch.cat([embedding, *[empty] * missing], dim=1)

    def _encode_token_ids_to_embeddings(self, token_ids: Tensor, _mask: None = None) -> Tensor:
        # fp32, because fp16 is too coarse for the weights.
        return encode(self.text_encoder, token_ids, self._clip_skip).float()

    def _chunk_and_pad_token_ids(self, token_ids: list[int], *more: Any, device: Any) -> Any:
        # Cut before splitting, too: for every block the library searches all remaining tokens.
        limit = MAX_BLOCKS * self.max_token_count
        blocks = super()._chunk_and_pad_token_ids(
            token_ids[:limit], *(each[:limit] for each in more), device=device
        )
        self.has_cut |= len(token_ids) > limit or len(blocks[0]) > limit
        return tuple(each[:limit] for each in blocks)


def parse(prompt: str) -> list[Fragment]:
    r"""Split a prompt into fragments; none is empty, and neighbours differ in weight.

    Nested emphases multiply their weights. Every weight and every product is clamped to 0 to
    ``MAX_WEIGHT``. ``\(`` and ``\)`` are literal parentheses. Incomplete emphasis is literal text.
    """
    texts = [each for each in _weighted_texts(_SYNTAX.split(prompt)) if each[1]]
    return [
        Fragment("".join(text for _, text in group), weight)
        for weight, group in groupby(texts, key=itemgetter(0))
    ]


def _weighted_texts(pieces: list[str]) -> Iterator[tuple[float, str]]:
    """Each literal text with its weight, in order."""
    emphases = _emphases(pieces)
    ends = set(emphases.values())
    weights = [1.0]
    for index, piece in enumerate(pieces):
        if index in emphases:
            weights.append(_clamp(weights[-1] * _clamp(float(pieces[emphases[index]][1:-1]))))
        elif index in ends:
            weights.pop()
        else:
            yield weights[-1], piece[1:] if piece in ESCAPED else piece


def _emphases(pieces: list[str]) -> dict[int, int]:
    """Index of each parenthesis that opens an emphasis, with that of the weight that ends it."""
    emphases: dict[int, int] = {}
    openings: list[int] = []
    for index, piece in enumerate(pieces):
        if piece == "(":
            openings.append(index)
        elif openings and piece == ")":
            openings.pop()
        elif openings and _WEIGHT.fullmatch(piece):
            emphases[openings.pop()] = index
    return emphases


def _clamp(weight: float) -> float:
    return min(max(weight, 0.0), MAX_WEIGHT)
