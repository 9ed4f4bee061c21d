"""Helpers to test image generation: small requests, images, and a word that breaks a model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from PIL import Image

from services.inferencer.generation.generate import FailedImage, GeneratedImage
from services.inferencer.order import ImageRequest
from shared.diffusion.loading import Parts
from shared.request import Inference

SIDE = 128
POISON = "z"
"""A word that is one token."""


def small_request(*, seed: int = 5, **fields: Any) -> ImageRequest:
    """One image of the smallest size, two steps."""
    small = {"prompt": "a red wall", "width": SIDE, "height": SIDE, "num_inference_steps": 2}
    return ImageRequest(inference=Inference(**{**small, **fields}), seed=seed)


def drawn_images(outcomes: Iterable[GeneratedImage | FailedImage]) -> list[Image.Image]:
    """The images in the order of the requests; none may have failed."""
    outcomes = sorted(outcomes, key=lambda outcome: outcome.index)
    failed = [each for each in outcomes if isinstance(each, FailedImage)]
    assert failed == []
    return [each.image for each in outcomes if isinstance(each, GeneratedImage)]


def poisoned(parts: Parts) -> Parts:
    """Make the model return NaN for every prompt with the word :data:`POISON`."""
    (token,) = parts.tokenizer(POISON, add_special_tokens=False).input_ids
    with torch.no_grad():
        parts.text_encoder.embeddings.token_embedding.weight[token] = torch.nan
    return parts
