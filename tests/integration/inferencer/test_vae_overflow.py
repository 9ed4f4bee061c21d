"""A VAE that overflows in half precision: its images are drawn all the same."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch

from services.inferencer.generation.batching_pipeline import BatchingPipeline
from services.inferencer.generation.generate import FailedImage, generate
from services.inferencer.generation.model_files import NETWORKS, Fingerprint, ModelFiles
from services.inferencer.generation.pipeline_cache import CachedPipeline
from shared.diffusion.loading import Parts
from tests.support.drawing import POISON, drawn_images, poisoned, small_request
from tests.support.models import random_parts

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning"),
]

ROUNDING = 1.0
"""Of 255: the weights were rounded to fp16 before."""
LARGE = 4e5
"""Times this, values within the decoder pass fp16's largest, 65,504; its next norm undoes it."""


def overflowing() -> Parts:
    parts = random_parts()
    with torch.no_grad():
        parts.vae.decoder.mid_block.resnets[0].conv1.weight.mul_(LARGE)
    return parts


class Files:
    """A model of which only the VAE differs from others, and nothing is read."""

    lora = None

    def __init__(self, vae: Fingerprint) -> None:
        self._vae = vae

    def fingerprint(self, name: str) -> Fingerprint:
        return self._vae if name == "vae" else (name,)

    def load_into(self, _network: torch.nn.Module, _name: str) -> None:
        pass

    def with_scheduler(self, parts: Parts) -> Parts:
        return parts


def half(parts: Parts) -> BatchingPipeline:
    """Its VAE decodes in fp16, as on a card."""
    pipeline = BatchingPipeline.from_parts(parts)
    pipeline.pipe.vae.to(torch.float16)
    return pipeline


def drawn(pipeline: BatchingPipeline, **fields: Any) -> list[Any]:
    request = small_request(**fields)
    return list(generate(pipeline, [request], clip_skip=0, on_step=lambda *_: None))


def test_sound_latents_whose_pixels_overflow_are_decoded_in_fp32() -> None:
    (ours,) = drawn_images(drawn(half(overflowing())))
    (full,) = drawn_images(drawn(BatchingPipeline.from_parts(overflowing())))

    assert np.abs(np.asarray(ours, float) - np.asarray(full, float)).max() <= ROUNDING


def test_of_a_batch_only_what_overflows_is_decoded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = half(random_parts())
    vae, latents = pipeline.pipe.vae, torch.randn(3, 4, 16, 16, generator=torch.manual_seed(0))
    alone = [pipeline.decode(each[None])[0] for each in latents]
    decode, seen = vae.decode, []

    def overflowing_once(scaled: torch.Tensor, **options: Any) -> Any:
        seen.append((len(scaled), scaled.dtype))
        (pixels,) = decode(scaled, **options)
        if len(seen) == 1:
            pixels[1] = torch.inf
        return (pixels,)

    monkeypatch.setattr(vae, "decode", overflowing_once)
    first, second, third = pipeline.decode(latents)

    assert seen == [(3, torch.float16), (1, torch.float32)]
    assert torch.equal(first, alone[0])
    assert torch.equal(third, alone[2])
    assert torch.allclose(second, alone[1].float(), atol=0.01)
    pipeline.decode(latents)
    assert seen[2:] == [(3, torch.float32)]


def test_a_model_that_comes_again_is_known_to_overflow() -> None:
    pipeline = half(overflowing())
    drawn(pipeline)
    cached = CachedPipeline(pipeline, {name: (name,) for name in NETWORKS})
    other, same = Files(("another",)), Files(("vae",))

    cached.load(cast("ModelFiles", other), [])
    assert pipeline.pipe.vae.dtype == torch.float16
    cached.load(cast("ModelFiles", same), [])
    assert pipeline.pipe.vae.dtype == torch.float32


def test_that_is_remembered_until_the_vae_gets_other_weights() -> None:
    pipeline = half(overflowing())
    drawn(pipeline)
    assert pipeline.pipe.vae.dtype == torch.float32

    pipeline.forget_overflow()
    assert pipeline.pipe.vae.dtype == torch.float16


def test_an_overflow_is_seen_beside_an_image_of_unsound_latents() -> None:
    pipeline = half(overflowing())
    latents = torch.randn(2, 4, 16, 16, generator=torch.manual_seed(0))
    latents[1] = torch.nan

    sound, unsound = pipeline.decode(latents)

    assert torch.isfinite(sound).all()
    assert not torch.isfinite(unsound).all()


def test_a_conversion_that_ran_out_of_memory_halfway_is_completed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pipeline, latents = half(overflowing()), torch.ones(1, 4, 16, 16)
    vae, convert = pipeline.pipe.vae, type(pipeline.pipe.vae).to

    def some(_vae: Any, dtype: torch.dtype) -> None:
        vae.encoder.to(dtype)
        raise torch.OutOfMemoryError

    monkeypatch.setattr(vae, "to", some.__get__(vae))
    with pytest.raises(torch.OutOfMemoryError):
        pipeline.decode(latents)
    monkeypatch.setattr(vae, "to", convert.__get__(vae))

    assert torch.isfinite(pipeline.decode(latents)[0]).all()


def test_a_vae_that_does_not_overflow_goes_on_in_half_precision() -> None:
    pipeline = half(random_parts())
    drawn_images(drawn(pipeline))
    assert pipeline.pipe.vae.dtype == torch.float16


def test_latents_that_are_no_numbers_still_blame_the_training() -> None:
    pipeline = half(poisoned(random_parts()))

    (failure,) = drawn(pipeline, prompt=f"red {POISON}")

    assert isinstance(failure, FailedImage)
    assert "the trained model has diverged" in failure.reason
    assert pipeline.pipe.vae.dtype == torch.float16
