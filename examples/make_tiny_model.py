"""Train `tiny`, a complete Stable Diffusion in a few megabytes, on generated drawings.

    python examples/make_tiny_model.py shared/tiny

It has the parts of SD 1.5 (BPE tokenizer, CLIP text model, conditional UNet, eight-fold
autoencoder), only smaller. First the tokenizer is made from the captions, then the autoencoder is
trained on the pictures, then the UNet and the text encoder together on the autoencoder's latents.
It uses two threads and fixed seeds.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random

import torch
from diffusers import (
    AutoencoderKL,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from tokenizers import pre_tokenizers
from torch import Tensor, nn
from torch.nn.functional import (
    adaptive_avg_pool2d,
    binary_cross_entropy_with_logits,
    l1_loss,
    mse_loss,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from everydream.drawings import Picture, draw_abstract, draw_base, draw_scene, named_scenes

START, END = "<|startoftext|>", "<|endoftext|>"
TOKENS = 77
AUTOENCODER_STEPS, TEXT_STEPS = 2000, 400
WARM_UP = 0.1  # of the steps
WITHOUT_CAPTION = 0.1  # of the pictures, for guidance
SMALL_FIRST = 0.75  # of the autoencoder's steps
REPORT_EVERY = 50  # steps

Merge = tuple[str, str]


@dataclass(frozen=True)
class Tiny:
    """The parts of the model."""

    tokenizer: CLIPTokenizer
    vae: AutoencoderKL
    text: CLIPTextModel
    unet: UNet2DConditionModel
    scheduler: PNDMScheduler

    @property
    def scale(self) -> float:
        """Scales latents to a standard deviation of 1."""
        return float(self.vae.config["scaling_factor"])

    def pipeline(self) -> StableDiffusionPipeline:
        """The parts as a diffusers pipeline."""
        return StableDiffusionPipeline(
            vae=self.vae,
            text_encoder=self.text,
            tokenizer=self.tokenizer,
            unet=self.unet,
            scheduler=self.scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


# ------------------------------------------------------------------------------------ the tokenizer


def learn_merges(words: Counter[str]) -> list[Merge]:
    """Byte-pair merges, the most frequent pair first, until every word is a single token."""
    spellings = {word: [*word[:-1], word[-1] + "</w>"] for word in words}
    merges: list[Merge] = []
    while any(len(symbols) > 1 for symbols in spellings.values()):
        pairs = Counter({pair: 0 for symbols in spellings.values() for pair in pairwise(symbols)})
        for word, symbols in spellings.items():
            for pair in pairwise(symbols):
                pairs[pair] += words[word]
        merges.append(max(pairs, key=lambda pair: (pairs[pair], pair)))
        spellings = {word: merged(symbols, merges[-1]) for word, symbols in spellings.items()}
    return merges


def merged(symbols: list[str], pair: Merge) -> list[str]:
    """The symbols with every occurrence of the pair joined, from the left."""
    joined: list[str] = []
    for symbol in symbols:
        if joined and (joined[-1], symbol) == pair:
            joined[-1] += symbol
        else:
            joined.append(symbol)
    return joined


def make_tokenizer(captions: list[str]) -> CLIPTokenizer:
    """A CLIP tokenizer: each word of the captions is one token, other words are split."""
    merges = learn_merges(Counter(word for caption in captions for word in caption.split()))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [
        *alphabet,
        *[letter + "</w>" for letter in alphabet],
        *["".join(pair) for pair in merges],
        START,
        END,
    ]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(
        vocab=vocabulary,
        merges=merges,  # type: ignore[arg-type]
        model_max_length=TOKENS,
    )


# ------------------------------------------------------------------------------------- the networks


def make_autoencoder() -> AutoencoderKL:
    """Four levels, eight-fold reduction: 3 x 256 x 256 pixels to 4 x 32 x 32 latents."""
    vae: AutoencoderKL = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 16, 32, 48),
        layers_per_block=1,
        latent_channels=4,
        # Flat drawings consist of plain colours, and each normalized group loses some of them.
        norm_num_groups=2,
        sample_size=256,
    )
    return vae


def make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A CLIP text model of four layers: 77 tokens to 77 x 64."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=256,
            projection_dim=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def make_unet() -> UNet2DConditionModel:
    """SD 1.5's blocks, three with cross-attention, and one head, the fastest on a CPU."""
    unet: UNet2DConditionModel = UNet2DConditionModel(
        sample_size=32,
        in_channels=4,
        out_channels=4,
        down_block_types=(
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "DownBlock2D",
        ),
        up_block_types=(
            "UpBlock2D",
            "CrossAttnUpBlock2D",
            "CrossAttnUpBlock2D",
            "CrossAttnUpBlock2D",
        ),
        block_out_channels=(32, 48, 64, 64),
        layers_per_block=1,
        attention_head_dim=1,
        cross_attention_dim=64,
        norm_num_groups=8,
    )
    return unet


def make_scheduler() -> PNDMScheduler:
    """SD 1.5's: 1000 steps, beta 0.00085 to 0.012, linear in its root; noise is predicted."""
    scheduler: PNDMScheduler = PNDMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon",
    )
    # PNDM does not read it, but other schedulers made from this config do.
    scheduler.register_to_config(clip_sample=False)
    return scheduler


# ------------------------------------------------------------------------------------- the training


class Training:
    """AdamW with a one-cycle learning rate, and progress output."""

    def __init__(self, name: str, parameters: list[nn.Parameter], steps: int, peak: float) -> None:
        self.name, self.steps, self.peak = name, steps, peak
        self.optimizer = torch.optim.AdamW(parameters, lr=peak, betas=(0.9, 0.99))
        self.parameters = parameters
        self.began = time.perf_counter()
        self.loss = math.nan

    def __iter__(self) -> Iterator[int]:
        """Yields the steps from 0, after setting the learning rate of each."""
        for step in range(self.steps):
            self.optimizer.param_groups[0]["lr"] = self.peak * one_cycle(step / self.steps)
            yield step
            if (step + 1) % REPORT_EVERY == 0 or step + 1 == self.steps:
                self.report(step + 1)

    def update(self, loss: Tensor) -> None:
        """One optimizer step on a scalar loss."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.loss = loss.item() if math.isnan(self.loss) else 0.98 * self.loss + 0.02 * loss.item()

    def report(self, done: int) -> None:
        """Print the running loss, the rate and the remaining time."""
        rate = done / (time.perf_counter() - self.began)
        print(
            f"{self.name}: step {done}/{self.steps}, loss {self.loss:.4f}, {rate:.2f} steps/s, "
            f"{(self.steps - done) / rate:.0f} s to go",
            flush=True,
        )


def one_cycle(progress: float) -> float:
    """The share of the peak learning rate at `progress`, 0 to 1: linear warm-up, then a cosine."""
    if progress < WARM_UP:
        return progress / WARM_UP
    return 0.5 + 0.5 * math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP))


def pixels(images: list[Image.Image]) -> Tensor:
    """Images of one size as a batch x 3 x height x width, -1 to 1."""
    width, height = images[0].size
    levels = torch.frombuffer(
        bytearray(b"".join(image.tobytes() for image in images)), dtype=torch.uint8
    )
    return levels.view(len(images), height, width, 3).permute(0, 3, 1, 2).float() / 127.5 - 1


def drawn(random: Random, count: int, size: int) -> Tensor:
    """Pictures, every second one abstract: count x 3 x size x size, -1 to 1."""
    return pixels(
        [
            draw_base(random, size).image if i % 2 else draw_abstract(random, size)
            for i in range(count)
        ]
    )


def train_autoencoder(vae: AutoencoderKL, steps: int) -> float:
    """Train the autoencoder on drawings; returns the running loss.

    The first steps use 64 pixels, which show the most edges in a given time; the last use 128.
    """
    torch.manual_seed(1)
    random = Random(1)
    training = Training("autoencoder", list(vae.parameters()), steps, peak=3e-3)
    for step in training:
        batch = drawn(random, 16, 64) if step < SMALL_FIRST * steps else drawn(random, 4, 128)
        latents = vae.encode(batch).latent_dist
        restored = vae.decode(latents.sample()).sample
        difference = mse_loss(restored, batch) + 0.2 * l1_loss(restored, batch)
        training.update(difference + 1e-5 * latents.kl().mean() / latents.mean[0].numel())
    return training.loss


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: list[Picture]) -> Tensor:
    """The latents of pictures of one size, not yet scaled: count x 4 x size / 8 x size / 8."""
    groups = [pictures[i : i + 16] for i in range(0, len(pictures), 16)]
    return torch.cat(
        [vae.encode(pixels([p.image for p in group])).latent_dist.mean for group in groups]
    ).contiguous()


class Album:
    """Encoded pictures: latents, not yet scaled, and caption ids."""

    def __init__(self, tiny: Tiny, pictures: list[Picture]) -> None:
        self.latents = encode(tiny.vae, pictures)
        self.ids = tokenized(tiny.tokenizer, [picture.caption for picture in pictures])

    def batch(self, size: int) -> tuple[Tensor, Tensor]:
        """`size` random pictures: latents, and ids size x 77."""
        chosen = torch.randint(len(self.latents), (size,))
        return self.latents[chosen], self.ids[chosen]


class Mix:
    """Batches with a fixed number of pictures from each of several albums."""

    def __init__(self, *parts: tuple[Album, int]) -> None:
        self.parts = parts

    def batch(self) -> tuple[Tensor, Tensor]:
        """Latents and ids of all parts, one after the other."""
        latents, ids = zip(*(album.batch(size) for album, size in self.parts), strict=True)
        return torch.cat(latents), torch.cat(ids)


def tokenized(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Caption ids, padded: count x 77."""
    ids: Tensor = tokenizer(
        captions, padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids
    return ids


def train_text_encoder(tiny: Tiny, album: Album, steps: int) -> float:
    """Train the text encoder alone; returns the running loss.

    SD's text encoder was also trained on pictures before the UNet; without this, a UNet that trains
    for minutes ignores the text. From each token after the caption, one linear layer, dropped
    afterwards, predicts the picture's coarse latents (4 x 4 x 4) and the caption's words.
    """
    torch.manual_seed(3)
    vocabulary = len(tiny.tokenizer)
    coarse = adaptive_avg_pool2d(album.latents * tiny.scale, 4).flatten(1)
    words = torch.zeros(len(coarse), vocabulary).scatter_(1, album.ids, 1.0)
    head = nn.Linear(tiny.text.config.hidden_size, coarse.shape[1] + vocabulary)
    parameters = [*tiny.text.parameters(), *head.parameters()]
    training = Training("text encoder", parameters, steps, peak=2e-3)
    for _ in training:
        chosen = torch.randint(len(coarse), (32,))
        ids = album.ids[chosen]
        after = ids == tiny.tokenizer.eos_token_id  # CLIP pads with the same token
        predicted = head(tiny.text(ids).last_hidden_state[after])
        picture = chosen[after.nonzero()[:, 0]]
        colours, logits = predicted.split([coarse.shape[1], vocabulary], dim=1)
        words_loss = binary_cross_entropy_with_logits(logits, words[picture])
        training.update(mse_loss(colours, coarse[picture]) + 10 * words_loss)
    return training.loss


@dataclass(frozen=True)
class Cycle:
    """One cycle of the UNet's training: how it draws and weights timesteps."""

    seed: int
    steps: int
    peak: float
    """Of the learning rate."""
    power: float
    """Timesteps are 1000 u ** power with u uniform in 0 to 1; below 1 prefers late ones."""
    max_weight: float
    """Upper bound of an error's weight, which is 1 / (the signal's share of the variance)."""
    large_every: int
    """Every n-th step uses pictures of 256 pixels, the others of 128."""


DENOISE = Cycle(seed=2, steps=1200, peak=1.5e-3, power=1.0, max_weight=1.0, large_every=2)
"""Learns to separate noise from drawings."""
COMPOSE = Cycle(seed=4, steps=1600, peak=1.5e-3, power=0.5, max_weight=20.0, large_every=3)
"""Learns to follow the caption, which matters most where there is almost only noise."""
NAME = Cycle(seed=5, steps=3000, peak=1.2e-3, power=0.6, max_weight=5.0, large_every=2)
"""Learns that a made-up name can mean anything; without it, all new names look the same."""


def noise_loss(tiny: Tiny, cycle: Cycle, latents: Tensor, ids: Tensor) -> Tensor:
    """Weighted mean squared error of the predicted noise at random timesteps."""
    # The last step of SD's schedule still shows the picture's mean colour, which pure noise does
    # not have. Noise with a random mean hides it, so that the colour must come from the caption.
    noise = torch.randn_like(latents) + 0.1 * torch.randn(*latents.shape[:2], 1, 1)
    times = (1000 * torch.rand(len(latents)) ** cycle.power).long().clamp(max=999)
    noisy = tiny.scheduler.add_noise(latents, noise, times)
    predicted = tiny.unet(noisy, times, tiny.text(ids).last_hidden_state).sample
    weights = (1 / tiny.scheduler.alphas_cumprod[times]).clamp(max=cycle.max_weight)
    errors = (predicted - noise).square().mean(dim=(1, 2, 3))
    loss: Tensor = (weights * errors).sum() / weights.sum()
    return loss


def train_diffusion(tiny: Tiny, small: Mix, large: Mix, cycle: Cycle, share: float) -> float:
    """Train UNet and text encoder together for a share of the cycle; returns the running loss."""
    torch.manual_seed(cycle.seed)
    parameters = [*tiny.unet.parameters(), *tiny.text.parameters()]
    steps = round(share * cycle.steps)
    training = Training("UNet and text encoder", parameters, steps, cycle.peak)
    empty = tokenized(tiny.tokenizer, [""])
    for step in training:
        latents, ids = (small if (step + 1) % cycle.large_every else large).batch()
        ids = torch.where(torch.rand(len(ids), 1) < WITHOUT_CAPTION, empty, ids)
        training.update(noise_loss(tiny, cycle, latents * tiny.scale, ids))
    return training.loss


# ---------------------------------------------------------------------------------- the whole of it


@torch.no_grad()
def restoration_error(vae: AutoencoderKL) -> float:
    """Mean squared error, on -1 to 1, of encoding and decoding 32 unseen base pictures."""
    random = Random(3)
    errors = []
    for _ in range(8):
        batch = pixels([draw_base(random, 256).image for _ in range(4)])
        errors.append(mse_loss(vae.decode(vae.encode(batch).latent_dist.mean).sample, batch))
    return torch.stack(errors).mean().item()


def make(folder: Path, share: float) -> dict[str, float]:
    """Train the model with a share of its pictures and steps, save it in fp16; returns figures."""
    torch.manual_seed(0)
    random, clock = Random(0), time.perf_counter

    def some(number: int) -> range:
        return range(math.ceil(share * number))

    small = [draw_base(random, 128) for _ in some(2048)]
    large = [draw_base(random, 256) for _ in some(640)]
    scenes = named_scenes()
    named_small = [draw_scene(scene, random, 128) for scene in scenes for _ in some(12)]
    named_large = [draw_scene(scene, random, 256) for scene in scenes for _ in some(3)]
    tiny = untrained([picture.caption for picture in small])

    began = clock()
    vae_loss = train_autoencoder(tiny.vae, round(share * AUTOENCODER_STEPS))
    encoding = clock()
    albums = Album(tiny, small), Album(tiny, large)
    scale = 1 / albums[1].latents.std().item()
    tiny.vae.register_to_config(scaling_factor=scale)
    diffusing = clock()
    drawings = Mix((albums[0], 16)), Mix((albums[1], 8))
    named = (
        Mix((albums[0], 6), (Album(tiny, named_small), 10)),
        Mix((albums[1], 2), (Album(tiny, named_large), 4)),
    )
    train_diffusion(tiny, *drawings, DENOISE, share)
    text_loss = train_text_encoder(tiny, albums[0], round(share * TEXT_STEPS))
    train_diffusion(tiny, *drawings, COMPOSE, share)
    loss = train_diffusion(tiny, *named, NAME, share)
    ended = clock()

    error = restoration_error(tiny.vae)
    save(tiny.pipeline(), folder)
    return {
        "parameters": sum(count(network) for network in (tiny.vae, tiny.text, tiny.unet)),
        "autoencoder_parameters": count(tiny.vae),
        "text_encoder_parameters": count(tiny.text),
        "unet_parameters": count(tiny.unet),
        "vocabulary": len(tiny.tokenizer),
        "bytes": sum(path.stat().st_size for path in folder.rglob("*.*") if path.is_file()),
        "autoencoder_loss": vae_loss,
        "autoencoder_mse": error,
        "scaling_factor": tiny.scale,
        "text_loss": text_loss,
        "diffusion_loss": loss,
        "autoencoder_seconds": encoding - began,
        "encoding_seconds": diffusing - encoding,
        "diffusion_seconds": ended - diffusing,
        "cpu_seconds": time.process_time(),
    }


def untrained(captions: list[str]) -> Tiny:
    """The model before its training, with a tokenizer for the captions."""
    tokenizer = make_tokenizer(captions)
    tiny = Tiny(
        tokenizer, make_autoencoder(), make_text_encoder(tokenizer), make_unet(), make_scheduler()
    )
    for network in (tiny.vae, tiny.unet):  # takes a third less time on a CPU
        network.to(memory_format=torch.channels_last)
    return tiny


def save(pipeline: StableDiffusionPipeline, folder: Path) -> None:
    """Write the diffusers folder in fp16, the tokenizer in both of its file formats."""
    pipeline.to(dtype=torch.float16).save_pretrained(folder)
    pipeline.tokenizer.backend_tokenizer.model.save(str(folder / "tokenizer"))
    for path in folder.rglob("*.safetensors"):
        path.chmod(0o644)  # the library makes them readable only by their owner


def count(network: nn.Module) -> int:
    """How many parameters it has."""
    return sum(parameter.numel() for parameter in network.parameters())


def main() -> None:
    """Read the command line, make the model, print its figures."""
    parser = argparse.ArgumentParser(description="Make the `tiny` model.")
    parser.add_argument("folder", type=Path, help="where the diffusers folder goes")
    parser.add_argument(
        "--share", type=float, default=1.0, help="of pictures and steps, 0 to 1: less, for a try"
    )
    options = parser.parse_args()
    torch.use_deterministic_algorithms(mode=True)
    torch.set_num_threads(2)
    figures = json.dumps(make(options.folder, options.share), indent=2)
    (options.folder / "figures.json").write_text(figures + "\n", encoding="utf-8")
    print(figures)


if __name__ == "__main__":
    main()
