"""Prompts as the UNet takes them: of any length up to ten blocks, with emphasis, or empty.

A prompt says ``(word:1.2)`` for emphasis; everything else in it is literal text. The weighing and
the blocks are compel's.
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

BLOCKS = 10
"""Of 75 tokens each, and a start and an end; what comes after them is cut off."""
STRONGEST = 2.0
ESCAPED = (r"\(", r"\)")

_NUMBER = r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
_WEIGHT = re.compile(rf":\s*{_NUMBER}\s*\)")
_SIGN = re.compile(rf"(\\[()]|\(|\)|{_WEIGHT.pattern})")
"""What may mean more than its letters: an escaped parenthesis, an opening, a closing, a weight."""


@dataclass(frozen=True)
class Fragment:
    """A part of a prompt, and how much it counts."""

    text: str
    weight: float


class Prompts:
    """Makes embeddings of prompts for one model."""

    def __init__(self, parts: Parts, clip_skip: int) -> None:
        """``clip_skip`` as in :func:`shared.diffusion.text.encode`."""
        self._encoder = _Encoder(parts, clip_skip)

    @torch.inference_mode()
    def embed(self, prompt: str, negative_prompt: str = "") -> tuple[Tensor, Tensor]:
        """Both as (1, 77 k, C), with k blocks as the longer one needs; an empty one counts as 1.

        The shorter one is filled up with blocks of the empty prompt. Without emphasis a block is
        bit for bit what ``encode`` makes of its tokens.
        """
        wanted, unwanted = self._encoder.embed(prompt), self._encoder.embed(negative_prompt)
        length = max(wanted.shape[1], unwanted.shape[1])
        return self._encoder.fill(wanted, length), self._encoder.fill(unwanted, length)


class _Encoder(EmbeddingsProvider):  # type: ignore[misc]
    """compel's weights and blocks around our clip skip, which its own modes cannot do.

    A token of weight w is moved to ``empty + w (it - empty)``, where ``empty`` is what the empty
    prompt has in its place. Phrases between commas or full stops are kept in one block, and words
    in any case, unless they are longer than a block.
    """

    def __init__(self, parts: Parts, clip_skip: int) -> None:
        super().__init__(
            parts.tokenizer,
            parts.text_encoder,
            truncate=False,
            split_long_text_mode=SplitLongTextMode.PHRASES,
        )
        self._clip_skip = clip_skip

    def embed(self, prompt: str) -> Tensor:
        """(1, 77 k, C), k from 1 to ``BLOCKS``."""
        fragments = parse(prompt)
        ids, weights, _ = self.get_token_ids_and_expand_weights(
            [each.text for each in fragments],
            [each.weight for each in fragments],
            device=self.device,
        )
        embedding: Tensor = self.build_weighted_embedding_tensor(ids, weights)
        return embedding.to(self.text_encoder.dtype)

    def fill(self, embedding: Tensor, length: int) -> Tensor:
        """An embedding with so many tokens, by blocks of the empty prompt."""
        missing = (length - embedding.shape[1]) // self.max_token_count
        empty = self.empty_z.to(embedding.dtype)
        return torch.cat([embedding, *[empty] * missing], dim=1)

    def _encode_token_ids_to_embeddings(self, token_ids: Tensor, _mask: None = None) -> Tensor:
        # In fp32, in which there is room for the weights.
        return encode(self.text_encoder, token_ids, self._clip_skip).float()

    def _chunk_and_pad_token_ids(self, token_ids: list[int], *more: Any, device: Any) -> Any:
        # Cut before as well: for every block the library looks through all that is left.
        most = BLOCKS * self.max_token_count
        blocks = super()._chunk_and_pad_token_ids(
            token_ids[:most], *(each[:most] for each in more), device=device
        )
        return tuple(each[:most] for each in blocks)


def parse(prompt: str) -> list[Fragment]:
    r"""A prompt's fragments, none of them empty; neighbours differ in weight.

    Emphases may lie in one another: their weights are multiplied. Every weight and every product
    is held between 0 and ``STRONGEST``. ``\(`` and ``\)`` are parentheses and nothing more. What
    is not a whole emphasis is literal.
    """
    pieces = [piece for piece in _pieces(_SIGN.split(prompt)) if piece[1]]
    return [
        Fragment("".join(text for _, text in group), weight)
        for weight, group in groupby(pieces, key=itemgetter(0))
    ]


def _pieces(signs: list[str]) -> Iterator[tuple[float, str]]:
    """Each literal text with its weight, in order."""
    emphases = _emphases(signs)
    ends = set(emphases.values())
    weights = [1.0]
    for place, sign in enumerate(signs):
        if place in emphases:
            weights.append(_held(weights[-1] * _held(float(signs[emphases[place]][1:-1]))))
        elif place in ends:
            weights.pop()
        else:
            yield weights[-1], sign[1:] if sign in ESCAPED else sign


def _emphases(signs: list[str]) -> dict[int, int]:
    """Places of the parentheses that open an emphasis, and of the weights that end it."""
    emphases: dict[int, int] = {}
    openings: list[int] = []
    for place, sign in enumerate(signs):
        if sign == "(":
            openings.append(place)
        elif openings and sign == ")":
            openings.pop()
        elif openings and _WEIGHT.fullmatch(sign):
            emphases[openings.pop()] = place
    return emphases


def _held(weight: float) -> float:
    return min(max(weight, 0.0), STRONGEST)
