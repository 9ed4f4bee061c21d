"""What tests of drawing share: small entries, the images alone, and a word no model survives."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from PIL import Image

from services.inferencer.generation.generate import Drawing, Failure
from services.inferencer.order import ImageRequest
from shared.diffusion.loading import Parts
from shared.request import Inference

SIDE = 128
POISON = "z"
"""A word that is one token."""


def small_entry(*, seed: int = 5, **fields: Any) -> ImageRequest:
    """One of the smallest images, two steps."""
    small = {"prompt": "a red wall", "width": SIDE, "height": SIDE, "num_inference_steps": 2}
    return ImageRequest(inference=Inference(**{**small, **fields}), seed=seed)


def drawn_images(outcomes: Iterable[Drawing | Failure]) -> list[Image.Image]:
    """The images in the order of the entries, all of which must have been drawn."""
    outcomes = sorted(outcomes, key=lambda outcome: outcome.index)
    failed = [each for each in outcomes if isinstance(each, Failure)]
    assert failed == []
    return [each.image for each in outcomes if isinstance(each, Drawing)]


def poisoned(parts: Parts) -> Parts:
    """Not a number for every prompt that has the word :data:`POISON`, sound for all others."""
    (token,) = parts.tokenizer(POISON, add_special_tokens=False).input_ids
    with torch.no_grad():
        parts.text_encoder.embeddings.token_embedding.weight[token] = torch.nan
    return parts
