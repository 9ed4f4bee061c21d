"""The archives and bodies that the rude key sends; dear ones are made once."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from functools import cache
from typing import Any

from PIL import Image

from services.fetcher.parsing.datasets.image_check import MAX_SCANS, START_OF_SCAN
from tests.end_to_end.story import TINY, picture

END_OF_IMAGE = b"\xff\xd9"
MANY_SCANS = 1000
LETTERS = 2000
"""Of the caption that the bomb would make longer."""
BOMB = {
    "normalizer": {
        "type": "Sequence",
        "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}] * 11,
    }
}
"""Each letter would become ten, eleven times."""
DEEP: Mapping[str, bytes] = {
    "lists": b"[" * 9_000 + b"]" * 9_000,
    "lists without end": b"[" * 100_000,
    "objects": b'{"a":' * 3_000 + b"1" + b"}" * 3_000,
    "objects in number": b"[" + b"{}," * 3_000_000 + b"{}]",
    "a million slashes": json.dumps({"input": {"train": {"seed": "/" * 1_000_000}}}).encode(),
    "a million lines": json.dumps(
        {"s3Config": {"accessSecret": "x" + "\n" * 1_000_000 + "x"}}
    ).encode(),
}


def zipped(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def captioned(caption: str) -> bytes:
    """A dataset of one picture."""
    return zipped({"picture.png": picture(0), "picture.txt": caption.encode()})


def tokenizer_bomb() -> bytes:
    """The tiny model, with a tokenizer that would make captions longer than any memory."""
    files = {path: path.read_bytes() for path in TINY.rglob("*") if path.is_file()}
    names = {path.relative_to(TINY).as_posix(): content for path, content in files.items()}
    tokenizer = json.loads(names["tokenizer/tokenizer.json"])
    return zipped(names | {"tokenizer/tokenizer.json": json.dumps(tokenizer | BOMB).encode()})


@cache
def slow_pictures() -> bytes:
    """A JPEG of a thousand scans, one of as many as are read, and the largest WebP."""
    return zipped(
        {
            "refused.jpg": _scanned(MANY_SCANS),
            "read.jpg": _scanned(MAX_SCANS),
            "large.webp": _webp(),
        }
    )


def _scanned(scans: int) -> bytes:
    *begin, last = _progressive().split(START_OF_SCAN)
    again = [last.removesuffix(END_OF_IMAGE)] * (scans - len(begin) + 1)
    return START_OF_SCAN.join([*begin, *again]) + END_OF_IMAGE


@cache
def _progressive() -> bytes:
    return _saved(Image.new("L", (9400, 8000), 128), "JPEG", progressive=True)


def _webp() -> bytes:
    """89 megapixels."""
    return _saved(Image.new("RGB", (9433, 9433), (20, 90, 240)), "WEBP", lossless=True, method=0)


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def training(data_url: str, **train: Any) -> dict[str, Any]:
    """The endpoint's own JSON for a small job, with fields of ``train`` replaced."""
    small = {"data_url": data_url, "resolution": 256, "batch_size": 1, "max_epochs": 1}
    drawn = {"prompt": "a", "width": 128, "height": 128, "num_inference_steps": 1, "seed": 7}
    return {"input": {"train": {**small, "useadam8bit": False, **train}, "inference": drawn}}


def echoing(data_url: str, size: int) -> bytes:
    """A valid body of so many bytes, nearly all of which are handed back with the image."""
    body = training(data_url)
    body["input"]["inference"]["passback"] = ""
    empty = json.dumps(body).encode()
    body["input"]["inference"]["passback"] = "x" * (size - len(empty))
    return json.dumps(body).encode()
