"""Every scheduler in half precision against fp32: how far the images are from one another."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from bench.card.findings import Findings
from bench.card.setting import Setting
from bench.sd15 import TINY
from services.inferencer.generation.batching_pipeline import BatchingPipeline
from services.inferencer.generation.generate import GeneratedImage, generate
from services.inferencer.order import ImageRequest
from shared.diffusion.device import this_device
from shared.diffusion.loading import load
from shared.request import Inference, Scheduler

STEPS = 10
BOUND = 8.0
"""Of 255, the mean over an image: rounding changes it, and must not paint another image."""


def schedulers_in_half_precision(setting: Setting) -> Findings:
    """The tiny model, which is trained; on a card SD 1.5's geometry, too, at 512 pixels."""
    found = Findings()
    large = {setting.geometry: setting.base()} if setting.is_card else {}
    for name, model in {"tiny": TINY, **large}.items():
        side = 128 if model == TINY else setting.side
        both = [_images(model, kind, side) for kind in (torch.float16, torch.float32)]
        for scheduler in get_args(Scheduler):
            half, full = (images[scheduler] for images in both)
            title = f"{scheduler}, {name}, {side} pixels"
            found.facts[title], problem = compared(half, full)
            if problem:
                found.problems.append(f"{title}: {problem}")
    return found


def compared(half: Any, full: Any) -> tuple[str, str]:
    """What is to be said of two images, and what is wrong with them; texts in place of failures."""
    if isinstance(half, str) or isinstance(full, str):
        said = {"fp16": half, "fp32": full}
        text = "; ".join(f"{name}: {each}" for name, each in said.items() if isinstance(each, str))
        return text, text
    difference = float(np.abs(half - full).mean())
    text = f"mean difference {difference:.2f} of 255"
    return text, text if difference > BOUND else ""


def _images(model: Path, kind: torch.dtype, side: int) -> dict[str, Any]:
    pipeline = BatchingPipeline.from_parts(load(model, kind).to(this_device()))
    return {name: _image(pipeline, name, side) for name in get_args(Scheduler)}


def _image(pipeline: BatchingPipeline, scheduler: Scheduler, side: int) -> Any:
    inference = Inference(prompt="a red wall", scheduler=scheduler, num_inference_steps=STEPS)
    request = ImageRequest(inference=inference, seed=3, side=side)
    (image,) = generate(pipeline, [request], clip_skip=0, on_step=lambda *_: None)
    if isinstance(image, GeneratedImage):
        return np.asarray(image.image).astype(np.float32)
    return image.reason
