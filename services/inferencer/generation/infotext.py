"""Write the settings of an image into its PNG: as stable-diffusion-webui's text and as JSON.

Both are text chunks, ``parameters`` and ``everydream``. They contain no time, so the same image
with the same settings gives the same bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors import safe_open

from services.inferencer.order import ImageRequest, Provenance
from shared.request import Scheduler

HASH_LETTERS = 12
"""Of a LoRA."""
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


class WeighedLora(NamedTuple):
    """A LoRA that an image was drawn with."""

    name: str
    weight: float
    hash: str


def save(
    image: Image.Image,
    path: Path,
    request: ImageRequest,
    *,
    seed: int,
    clip_skip: int,
    provenance: Provenance,
    loras: Sequence[WeighedLora] = (),
) -> None:
    """Write a PNG with its settings; ``seed`` is this image's, not the request's."""
    chunks = PngInfo()
    text = parameters(request, seed=seed, clip_skip=clip_skip, provenance=provenance, loras=loras)
    chunks.add_text("parameters", _valid_text(text))
    everything = settings(request, seed=seed, clip_skip=clip_skip, provenance=provenance)
    chunks.add_text(
        "everydream", json.dumps({**everything, "loras": [each._asdict() for each in loras]})
    )
    image.save(path, pnginfo=chunks)


def lora_hash(file: Path) -> str:
    """What the webui knows a LoRA by, from its header; empty: it does not say."""
    with safe_open(file, "np") as opened:
        return ((opened.metadata() or {}).get("sshs_model_hash") or "")[:HASH_LETTERS]


def parameters(
    request: ImageRequest,
    *,
    seed: int,
    clip_skip: int,
    provenance: Provenance,
    loras: Sequence[WeighedLora] = (),
) -> str:
    """The webui's text: prompt, negative prompt if there is one, and a line of settings.

    LoRAs stand in the prompt, and their hashes in the line; the model's name is then the base
    model's, which has none here.
    """
    inference = request.inference
    hashes = ", ".join(f"{each.name}: {each.hash}" for each in loras if each.hash)
    values = {
        "Steps": inference.num_inference_steps,
        "Sampler": WEBUI_NAMES.get(inference.scheduler, inference.scheduler),
        "CFG scale": inference.guidance_scale,
        "Seed": seed,
        "Size": "{}x{}".format(*request.size),
        "Model hash": "" if loras else provenance.sha256[:10],
        "Model": "" if loras else provenance.model,
        "Clip skip": max(clip_skip, 1),
        "RNG": "CPU",
        "Lora hashes": hashes,
        "Version": f"everydream {VERSION}",
    }
    negative = (
        [f"Negative prompt: {inference.negative_prompt}"] if inference.negative_prompt else []
    )
    line = ", ".join(f"{name}: {_quoted(str(each))}" for name, each in values.items() if each != "")
    words = "".join(f" <lora:{each.name}:{each.weight:g}>" for each in loras)
    return "\n".join([inference.prompt + words, *negative, line]).strip()


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
