"""What a training with masks learns, and what it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image
from torch import Tensor

from services.fetcher.models.configured_model import TINY_FOLDER
from services.trainer.training.train import train
from shared.dataset.manifest import Manifest, Picture
from shared.diffusion.loading import Parts, load
from tests.support.training import SIDE, RecordingCallbacks, training_order, whole_model

COLOURS = ("red", "blue", "yellow", "black")
TIMESTEPS = (300, 600, 900)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Left of each the colour that its caption names, right of it always the same green."""
    folder, found = tmp_path / "pictures", []
    folder.mkdir()
    left = (0, 0, SIDE // 2, SIDE)
    for colour in COLOURS:
        picture, mask = Image.new("RGB", (SIDE, SIDE), "green"), Image.new("L", (SIDE, SIDE), 0)
        picture.paste(colour, left)
        mask.paste(255, left)
        picture.save(folder / f"{colour}.png")
        mask.save(folder / f"mask-{colour}.png")
        found.append(
            Picture(
                file=f"{colour}.png", caption=f"a {colour} wall", width=SIDE, height=SIDE,
                mask=f"mask-{colour}.png",
            )
        )  # fmt: skip
    Manifest(pictures=tuple(found)).write(folder)
    return folder


@torch.inference_mode()
def errors(parts: Parts, folder: Path) -> tuple[float, float]:
    """The mean squared error of the predicted noise, left and right, over fixed noise."""
    generator = torch.Generator().manual_seed(1)
    scheduler = DDPMScheduler.from_config(parts.scheduler_config)
    found = []
    for picture in Manifest.read(folder).pictures:
        latents = encoded(parts, folder / picture.file)
        ids = parts.tokenizer(picture.caption, padding="max_length", return_tensors="pt").input_ids
        hidden = parts.text_encoder(ids).last_hidden_state
        for timestep in map(torch.tensor, ([each] for each in TIMESTEPS)):
            noise = torch.randn(latents.shape, generator=generator)
            noisy = scheduler.add_noise(latents, noise, timestep)
            found.append((parts.unet(noisy, timestep, hidden).sample - noise).square())
    left, right = torch.cat(found).chunk(2, dim=-1)
    return left.mean().item(), right.mean().item()


def encoded(parts: Parts, file: Path) -> Tensor:
    with Image.open(file) as image:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1
    latents: Tensor = parts.vae.encode(pixels).latent_dist.mean * parts.vae.config.scaling_factor
    return latents


@pytest.mark.long
def test_a_training_with_masks_learns_what_they_show_and_not_the_background(
    pictures: Path, tmp_path: Path
) -> None:
    def trained(name: str, **options: Any) -> tuple[float, float]:
        order = training_order(
            tmp_path / name, dataset=pictures, base=TINY_FOLDER, batch_size=4, max_epochs=40,
            **options,
        )  # fmt: skip
        return errors(load(whole_model(train(order, RecordingCallbacks()))), pictures)

    before = errors(load(TINY_FOLDER), pictures)

    whole = trained("whole")
    masked = trained("masked", masked_loss=True, unmasked_weight=0.0)

    assert whole[1] < before[1]
    assert masked[1] > 2 * whole[1]
    assert masked[0] < whole[0]
