"""Time and memory to fine-tune a full-size Stable Diffusion on a CPU: ``python -m bench sd15``.

A model with SD 1.5's architecture and random weights is trained for two steps at 256 pixels with
8-bit AdamW, as a job would be; then diffusers loads the result. Each stage is its own process, and
its time and peak memory are printed. Nothing is downloaded.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, NamedTuple

from shared.request import Resolution

ROOT = Path(__file__).parents[1]
TINY = ROOT / "shared" / "tiny"
WORDS = 49408
SPECIALS = ("<|startoftext|>", "<|endoftext|>")
SIDE: Resolution = 256
STEPS = 2
SPREAD = 0.02
"""Standard deviation of the random weights."""
KIBI, MEBI = 1 << 10, 1 << 20


class Usage(NamedTuple):
    seconds: float
    gibibytes: float
    """Peak resident memory."""


def main() -> None:
    """Print a line for each stage, after the stage's own output; the files are not kept."""
    print(f"SD 1.5's geometry, {STEPS} steps at {SIDE} pixels, batch 1, AdamW 8-bit, fp32, CPU\n")
    print(f"{'stage':<34}{'seconds':>9}{'peak RSS':>12}")
    with TemporaryDirectory(prefix="bench-sd15-") as folder:
        for stage in STAGES:
            usage = run_stage(stage, folder)
            print(f"{stage:<34}{usage.seconds:>9.0f}{usage.gibibytes:>8.1f} GiB", flush=True)


def run_stage(stage: str, folder: str) -> Usage:
    """Run one stage in its own process.

    Raises:
        RuntimeError: it failed; its output is above.
    """
    begun = perf_counter()
    process = subprocess.Popen(  # noqa: S603 - this interpreter, our own code
        [sys.executable, "-m", "bench.sd15", stage, folder], cwd=ROOT
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{stage}: ended with {process.returncode}, see above")
    return Usage(perf_counter() - begun, usage.ru_maxrss * KIBI / (KIBI * MEBI))


# --- The stages -------------------------------------------------------------------------------


def make_model(folder: Path) -> None:
    """Save a model with random weights in half precision, never held in full precision."""
    from shared.diffusion.loading import Parts  # noqa: PLC0415 - torch is slow to load
    from shared.diffusion.saving import save_folder  # noqa: PLC0415

    unet, vae, text_encoder = networks()
    parts = Parts(
        unet=filled(unet),
        vae=filled(vae),
        text_encoder=filled(text_encoder),
        tokenizer=tokenizer(),
        scheduler_config=json.loads((TINY / "scheduler/scheduler_config.json").read_text()),
        prediction_type="epsilon",
    )
    save_folder(parts, folder)


def networks() -> tuple[Any, Any, Any]:
    """SD 1.5's UNet, autoencoder and text encoder on the meta device."""
    import torch  # noqa: PLC0415
    from diffusers import AutoencoderKL, UNet2DConditionModel  # noqa: PLC0415
    from transformers import CLIPTextConfig, CLIPTextModel  # noqa: PLC0415

    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=4,
            sample_size=512,
        )
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=WORDS,
                hidden_size=768,
                intermediate_size=3072,
                num_hidden_layers=12,
                num_attention_heads=12,
                bos_token_id=WORDS - 2,
                eos_token_id=WORDS - 1,
                pad_token_id=WORDS - 1,
            )
        )
    return unet, vae, text_encoder


def filled(network: Any) -> Any:
    """Fill a network: matrices and convolutions at random, norms as at the start of a training."""
    import torch  # noqa: PLC0415

    torch.manual_seed(0)
    network.half().to_empty(device="cpu")
    for name, weight in network.named_parameters():
        with torch.no_grad():
            if weight.ndim > 1:
                weight.normal_(0, SPREAD)
            else:
                weight.fill_(1.0 if name.endswith("weight") else 0.0)
    return network


def tokenizer() -> Any:
    """The tiny model's words, filled up with words that no caption has."""
    from transformers import CLIPTokenizer  # noqa: PLC0415

    known = json.loads((TINY / "tokenizer/vocab.json").read_text())
    words = [word for word in known if word not in SPECIALS]
    words += [f"unused-{number}" for number in range(WORDS - len(known))]
    vocabulary = {word: number for number, word in enumerate([*words, *SPECIALS])}
    lines = (TINY / "tokenizer/merges.txt").read_text().splitlines()
    merges: Any = [tuple(line.split()) for line in lines if line and not line.startswith("#")]
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)


def train_model(folder: Path) -> None:
    """Train as a trainer's child does, and leave the result's path for the next stage."""
    from services.trainer.order import TrainingOrder  # noqa: PLC0415
    from services.trainer.training.train import train  # noqa: PLC0415
    from shared.request import Train  # noqa: PLC0415

    settings = Train(
        data_url="https://example.org/x.zip", resolution=SIDE, batch_size=1, max_epochs=1,
        useadam8bit=True,
    )  # fmt: skip
    order = TrainingOrder(
        job="bench", train=settings, seed=555, dataset=str(dataset(folder / "data")),
        base=str(folder / "base"), out=str(folder / "out"), resume_every=1e9,
    )  # fmt: skip
    outcome = train(order, ProgressReporter())
    if (outcome.steps, outcome.optimizer) != (STEPS, "adamw8bit"):
        raise RuntimeError(f"{outcome.steps} steps by {outcome.optimizer}")
    (folder / "checkpoint").write_text(outcome.checkpoint)


def dataset(folder: Path) -> Path:
    """One image of a single colour for each step."""
    from PIL import Image  # noqa: PLC0415

    from shared.dataset.manifest import Manifest, Picture  # noqa: PLC0415

    folder.mkdir()
    pictures = []
    for colour in ("red", "blue")[:STEPS]:
        Image.new("RGB", (SIDE, SIDE), colour).save(folder / f"{colour}.png")
        pictures.append(
            Picture(file=f"{colour}.png", caption=f"a {colour} wall", width=SIDE, height=SIDE)
        )
    Manifest(pictures=tuple(pictures)).write(folder)
    return folder


class ProgressReporter:
    """The training's callbacks: print when each phase and each step begins."""

    def __init__(self) -> None:
        self._begun = perf_counter()

    def phase(self, name: str) -> None:
        print(f"  {perf_counter() - self._begun:5.0f} s  {name}", flush=True)

    def progress(self, numbers: dict[str, Any]) -> None:
        self.phase(f"step {numbers['step']}, mean loss at the last update: {numbers['loss']}")

    def saved(
        self,
        kind: str,
        path: Path,
        step: int,
        epoch: int,
        validation_loss: float | None = None,
        *,
        command: int = 0,
    ) -> None:
        del validation_loss, command
        self.phase(f"{kind} {path.name} at step {step}, epoch {epoch}")

    def should_stop(self) -> bool:
        return False

    def command(self, _kind: str) -> int:
        return 0


def load_by_stock(folder: Path) -> None:
    """Load the single file with diffusers, which must find every weight."""
    import torch  # noqa: PLC0415
    from diffusers import StableDiffusionPipeline  # noqa: PLC0415

    file = Path((folder / "checkpoint").read_text())
    pipeline = StableDiffusionPipeline.from_single_file(
        str(file), config=str(folder / "out/model"), local_files_only=True,
        torch_dtype=torch.float16, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    networks = (pipeline.unet, pipeline.vae, pipeline.text_encoder)
    weights = [each for network in networks for each in network.parameters()]
    if not all(bool(each.isfinite().all()) for each in weights):  # reads all of them
        raise RuntimeError("a weight is not finite")
    size, count = file.stat().st_size / MEBI, sum(each.numel() for each in weights)
    print(f"  {file.name}: {size:.0f} MiB, {count / 1e6:.1f} million weights")


STAGES: dict[str, Callable[[Path], None]] = {
    "make the base model": lambda folder: make_model(folder / "base"),
    "train, check and save": train_model,
    "load the file by stock diffusers": load_by_stock,
}


if __name__ == "__main__":
    if len(sys.argv) > 1:
        STAGES[sys.argv[1]](Path(sys.argv[2]))
    else:
        main()
