"""Tokenize and encode captions and prompts."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer


def tokenize(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> Tensor:
    """Token ids, (B, 77) for CLIP: a start, at most 75 tokens of the caption, padded with ends."""
    encoded = tokenizer(
        list(captions),
        padding="max_length",
        truncation=True,
        max_length=tokenizer.model_max_length,
        return_tensors="pt",
    )
    ids: Tensor = encoded.input_ids
    return ids


def encode(text_encoder: CLIPTextModel, ids: Tensor, clip_skip: int) -> Tensor:
    """The caption's hidden states, (B, 77, C).

    ``clip_skip`` 0 and 1 take the last layer, k the k-th from the end. The final layer norm is
    always applied, since the UNet was trained on normed states.
    """
    ids = ids.to(text_encoder.device)
    if clip_skip <= 1:
        last: Tensor = text_encoder(ids).last_hidden_state
        return last
    states = text_encoder(ids, output_hidden_states=True).hidden_states
    normed: Tensor = text_encoder.final_layer_norm(states[-clip_skip])
    return normed
