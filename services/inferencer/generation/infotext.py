"""What an image says of itself: the text that stable-diffusion-webui reads, and all of it as JSON.

Both are text chunks of the PNG, ``parameters`` and ``everydream``. They hold no time: the same
drawing gives the same bytes.
"""

from __future__ import annotations

import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from services.inferencer.order import About, ImageRequest
from shared.request import Scheduler

VERSION = version("everydream-service")
THEIR_NAMES: dict[Scheduler, str] = {
    "DPM-M": "DPM++ 2M",
    "EULER-A": "Euler a",
    "EULER-D": "Euler",
    "HEUN": "Heun",
    "K-LMS": "LMS",
    "KDPM2-A": "DPM2 a",
    "KDPM2-D": "DPM2",
    "PNDM": "PLMS",  # as it is configured here, without the Runge-Kutta start
}
"""The webui's names of the same methods; where it has none ours stands."""

_NEEDS_QUOTES = re.compile(r'[,:\n"]')


def save(
    image: Image.Image, path: Path, entry: ImageRequest, *, seed: int, clip_skip: int, about: About
) -> None:
    """Write a PNG that carries its settings; ``seed`` is this image's own."""
    chunks = PngInfo()
    text = parameters(entry, seed=seed, clip_skip=clip_skip, about=about)
    chunks.add_text("parameters", _writable(text))
    everything = settings(entry, seed=seed, clip_skip=clip_skip, about=about)
    chunks.add_text("everydream", json.dumps(everything))
    image.save(path, pnginfo=chunks)


def parameters(entry: ImageRequest, *, seed: int, clip_skip: int, about: About) -> str:
    """The webui's text: prompt, negative prompt if there is one, and a line of settings."""
    asked = entry.inference
    known = {
        "Steps": asked.num_inference_steps,
        "Sampler": THEIR_NAMES.get(asked.scheduler, asked.scheduler),
        "CFG scale": asked.guidance_scale,
        "Seed": seed,
        "Size": "{}x{}".format(*entry.size),
        "Model hash": about.sha256[:10],
        "Model": about.model,
        "Clip skip": max(clip_skip, 1),
        "RNG": "CPU",
        "Version": f"everydream {VERSION}",
    }
    negative = [f"Negative prompt: {asked.negative_prompt}"] if asked.negative_prompt else []
    line = ", ".join(f"{name}: {_quoted(str(each))}" for name, each in known.items() if each != "")
    return "\n".join([asked.prompt, *negative, line]).strip()


def settings(entry: ImageRequest, *, seed: int, clip_skip: int, about: About) -> dict[str, Any]:
    """Everything that the image was drawn with, by the request's own names."""
    asked = entry.inference
    width, height = entry.size
    return {
        "job": about.job,
        "step": about.step,
        "prompt": asked.prompt,
        "negative_prompt": asked.negative_prompt,
        "scheduler": asked.scheduler,
        "seed": seed,
        "steps": asked.num_inference_steps,
        "guidance_scale": asked.guidance_scale,
        "width": width,
        "height": height,
        "clip_skip": clip_skip,
        "model": about.model,
        "sha256": about.sha256,
        "passback": asked.passback,
        "version": VERSION,
    }


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if _NEEDS_QUOTES.search(value) else value


def _writable(text: str) -> str:
    """A chunk ends at a NUL, and half a surrogate pair is no UTF-8."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
