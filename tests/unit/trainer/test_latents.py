"""Latents are kept in memory, beyond its bound in a file, and else encoded again: equal bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from services.trainer.training import latents
from services.trainer.training.latents import Key, LatentCache
from shared.dataset.buckets import Box, Size
from tests.support.models import random_parts


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    return random_parts().vae.eval()


def key(number: int) -> Key:
    return Key(f"{number}.png", Box(0, number, 64, 64), Size(64, 64), flip=False)


def pixels(number: int) -> Tensor:
    generator = torch.Generator().manual_seed(number)
    return torch.rand((3, 64, 64), generator=generator) * 2 - 1


def test_what_is_kept_in_memory_or_in_the_file_is_what_was_encoded(
    vae: AutoencoderKL, tmp_path: Path
) -> None:
    size = LatentCache(vae, tmp_path).encode(key(0), pixels(0)).nbytes
    cache = LatentCache(vae, tmp_path, memory_bytes=2 * size)
    encoded = [cache.encode(key(number), pixels(number)) for number in range(5)]

    for number, moments in enumerate(encoded):
        found = cache.find(key(number))
        assert found is not None
        assert torch.equal(found, moments)
    assert len(cache._kept) == 2
    assert list(tmp_path.iterdir()) == []  # the file has no name: nothing is left of a killed child


def test_what_is_not_to_be_kept_is_not(vae: AutoencoderKL, tmp_path: Path) -> None:
    cache = LatentCache(vae, tmp_path)
    cache.encode(None, pixels(0))
    assert cache.find(key(0)) is None


def test_without_room_on_the_disk_the_rest_is_encoded_again(
    vae: AutoencoderKL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = LatentCache(vae, tmp_path).encode(key(0), pixels(0)).nbytes
    monkeypatch.setattr(latents, "free_bytes", lambda _: 4 * 2 * size)
    cache = LatentCache(vae, tmp_path, memory_bytes=0)
    for number in range(4):
        cache.encode(key(number), pixels(number))

    assert [cache.find(key(number)) is None for number in range(4)] == [False, False, True, True]


def test_a_disk_that_fills_up_meanwhile_ends_the_keeping_and_not_the_training(
    vae: AutoencoderKL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    cache = LatentCache(vae, tmp_path, memory_bytes=0)
    cache.encode(key(0), pixels(0))
    assert cache.find(key(0)) is not None
    monkeypatch.setattr("os.pwrite", full)
    cache.encode(key(1), pixels(1))

    assert cache.find(key(1)) is None
    assert cache.find(key(0)) is not None
