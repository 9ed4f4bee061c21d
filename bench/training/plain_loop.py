"""The peer: a loop as diffusers' train_text_to_image.py and EveryDream2 have it.

The same pictures in the same batches, read by one thread ahead; the VAE is part of each step, the
crop is a new one in each epoch, the rate is constant, and the optimizer is bitsandbytes' own:
``python -m bench.training.plain_loop CASE FOLDER``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from time import perf_counter

import torch
from bitsandbytes.optim.adamw import AdamW8bit
from diffusers import DDPMScheduler
from msgspec.structs import replace
from torch import Tensor

from bench.pairs import Figures, report
from bench.peak import peak_bytes
from bench.shares import Shares
from bench.training.scene import EVERY, SEED, request
from services.trainer.training.batches import read_pixels
from shared.dataset.manifest import Manifest
from shared.dataset.plan import Batch, EpochConfig, augment, plan_epoch
from shared.dataset.validation import split
from shared.diffusion.loading import Parts, load
from shared.request import Train

SHARES = Shares()
GeneratorOf = Callable[[int, Batch], torch.Generator]
"""A batch's own, by its epoch."""


def main(name: str, folder: Path) -> None:
    parts = load(folder / "base")
    parts.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    report(learn(parts, folder / "data", request(EVERY[name]), SEED))


def learn(
    parts: Parts,
    dataset: Path,
    train: Train,
    seed: int,
    generator_of: GeneratorOf | None = None,
) -> Figures:
    """Train the networks of ``parts``, on the device where they are.

    Noise and timesteps come from one generator, or from each batch's own.
    """
    device = parts.unet.device
    parts.vae.requires_grad_(requires_grad=False).eval()
    learning = (parts.unet.train(), parts.text_encoder.train())
    optimizer = AdamW8bit(  # type: ignore[no-untyped-call]
        chain(*(each.parameters() for each in learning)), lr=train.lr, weight_decay=0.01
    )
    scheduler = DDPMScheduler.from_config(parts.scheduler_config)
    generator = torch.Generator(device).manual_seed(seed)

    began, first, images = perf_counter(), 0.0, 0
    for epoch, batch, reading in read_ahead(dataset, train, seed):
        pixels, captions = reading.result()
        drawn_by = generator_of(epoch, batch) if generator_of else generator
        step(parts, optimizer, scheduler, drawn_by, pixels=pixels.to(device), captions=captions)
        images += len(captions)
        first = first or perf_counter()
    if device.type == "cuda":
        torch.cuda.synchronize()
    ended = perf_counter()
    return Figures(
        seconds=ended - began, images=images, first_step_seconds=first - began,
        peak_bytes=peak_bytes(), shares=SHARES.seconds,
    )  # fmt: skip


def step(
    parts: Parts,
    optimizer: torch.optim.Optimizer,
    scheduler: DDPMScheduler,
    generator: torch.Generator,
    *,
    pixels: Tensor,
    captions: list[str],
) -> None:
    device, on_card = pixels.device, pixels.is_cuda
    with torch.autocast(device.type, torch.bfloat16, enabled=on_card):
        with torch.no_grad(), SHARES.of("encoding"):
            latents = parts.vae.encode(pixels).latent_dist.sample(generator)
        latents = latents * parts.vae.config.scaling_factor
        noise = torch.randn(latents.shape, generator=generator, device=device)
        timesteps = torch.randint(0, 1000, (len(latents),), generator=generator, device=device)
        noisy = scheduler.add_noise(latents, noise, timesteps)
        ids = parts.tokenizer(
            captions, padding="max_length", truncation=True, max_length=77, return_tensors="pt"
        ).input_ids
        hidden = parts.text_encoder(ids.to(device)).last_hidden_state
        predicted = parts.unet(noisy, timesteps, hidden).sample
    loss = torch.nn.functional.mse_loss(predicted.float(), noise.float())
    loss.backward()  # type: ignore[no-untyped-call]
    with SHARES.of("optimizer"):
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def read_ahead(
    folder: Path, train: Train, seed: int
) -> Iterator[tuple[int, Batch, Future[tuple[Tensor, list[str]]]]]:
    """All batches with their epochs: their pixels (B, 3, H, W) and captions are being read."""
    pictures = split(Manifest.read(folder).pictures, train.validation).training
    config = replace(EpochConfig.of(train, seed=seed), crops_per_image=0)

    def read(batch: Batch, epoch: int) -> tuple[Tensor, list[str]]:
        pixels, captions = [], []
        for place, index in enumerate(batch.pictures):
            augmentation = augment(
                pictures[index], index, batch.size, config, epoch=epoch,
                position=batch.first + place,
            )  # fmt: skip
            file = folder / pictures[index].file
            pixels.append(read_pixels(file, augmentation, batch.size))
            captions.append(augmentation.caption)
        return torch.stack(pixels), captions

    with ThreadPoolExecutor(1) as thread:
        ahead = None
        for epoch in range(train.max_epochs):
            for batch in plan_epoch(pictures, config, epoch):
                current, ahead = ahead, (epoch, batch, thread.submit(read, batch, epoch))
                if current:
                    yield current
        if ahead:
            yield ahead


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
