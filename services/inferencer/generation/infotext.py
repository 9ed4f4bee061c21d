"""Write the settings of an image into its PNG: as stable-diffusion-webui's text and as JSON.

Both are text chunks, ``parameters`` and ``everydream``. They contain no time, so the same image
with the same settings gives the same bytes.
"""

from __future__ import annotations

import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from services.inferencer.order import ImageRequest, Provenance
from shared.request import Scheduler

VERSION = version("everydream-service")
WEBUI_NAMES: dict[Scheduler, str] = {
    "DPM-M": "DPM++ 2M",
    "EULER-A": "Euler a",
    "EULER-D": "Euler",
    "HEUN": "Heun",
    "K-LMS": "LMS",
    "KDPM2-A": "DPM2 a",
    "KDPM2-D": "DPM2",
    "PNDM": "PLMS",  # as configured here, without the Runge-Kutta start
}
"""The webui's names of our schedulers; those without one keep ours."""

_NEEDS_QUOTES = re.compile(r'[,:\n"]')


def save(
    image: Image.Image,
    path: Path,
    request: ImageRequest,
    *,
    seed: int,
    clip_skip: int,
    provenance: Provenance,
) -> None:
    """Write a PNG with its settings; ``seed`` is this image's, not the request's."""
    chunks = PngInfo()
    text = parameters(request, seed=seed, clip_skip=clip_skip, provenance=provenance)
    chunks.add_text("parameters", _valid_text(text))
    everything = settings(request, seed=seed, clip_skip=clip_skip, provenance=provenance)
    chunks.add_text("everydream", json.dumps(everything))
    image.save(path, pnginfo=chunks)


def parameters(request: ImageRequest, *, seed: int, clip_skip: int, provenance: Provenance) -> str:
    """The webui's text: prompt, negative prompt if there is one, and a line of settings."""
    inference = request.inference
    values = {
        "Steps": inference.num_inference_steps,
        "Sampler": WEBUI_NAMES.get(inference.scheduler, inference.scheduler),
        "CFG scale": inference.guidance_scale,
        "Seed": seed,
        "Size": "{}x{}".format(*request.size),
        "Model hash": provenance.sha256[:10],
        "Model": provenance.model,
        "Clip skip": max(clip_skip, 1),
        "RNG": "CPU",
        "Version": f"everydream {VERSION}",
    }
    negative = (
        [f"Negative prompt: {inference.negative_prompt}"] if inference.negative_prompt else []
    )
    line = ", ".join(f"{name}: {_quoted(str(each))}" for name, each in values.items() if each != "")
    return "\n".join([inference.prompt, *negative, line]).strip()


def settings(
    request: ImageRequest, *, seed: int, clip_skip: int, provenance: Provenance
) -> dict[str, Any]:
    """All settings of the image, by the request's own names."""
    inference = request.inference
    width, height = request.size
    return {
        "job": provenance.job,
        "step": provenance.step,
        "prompt": inference.prompt,
        "negative_prompt": inference.negative_prompt,
        "scheduler": inference.scheduler,
        "seed": seed,
        "steps": inference.num_inference_steps,
        "guidance_scale": inference.guidance_scale,
        "width": width,
        "height": height,
        "clip_skip": clip_skip,
        "model": provenance.model,
        "sha256": provenance.sha256,
        "passback": inference.passback,
        "version": VERSION,
    }


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if _NEEDS_QUOTES.search(value) else value


def _valid_text(text: str) -> str:
    """Replace what a chunk cannot hold: NUL would end it, half a surrogate pair is no UTF-8."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
