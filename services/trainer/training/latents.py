"""Latents of pictures, kept so that each crop of a picture is encoded once."""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path
from tempfile import mkstemp
from threading import Lock
from typing import NamedTuple
from weakref import finalize

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from shared.dataset.buckets import Box, Size
from shared.disk import free_bytes

MEMORY_BYTES = 2**30
"""Bound of what is kept in memory: 8,192 crops at 512 x 512."""
DISK_SHARE = 0.25
"""Bound of what is kept in a file beyond that, as a share of what is free on its disk: the rest is
for what the training saves."""


class Key(NamedTuple):
    """What a latent depends on."""

    file: str
    crop: Box
    size: Size
    flip: bool


class LatentCache:
    """Means and variances by the VAE, encoded one at a time: a batch changes nothing of its images.

    What is kept and what is encoded again are the same bits. One thread encodes while another
    reads.
    """

    def __init__(
        self, vae: AutoencoderKL, folder: Path, *, memory_bytes: int = MEMORY_BYTES
    ) -> None:
        """What exceeds ``memory_bytes`` goes into a file without a name on the folder's disk."""
        self._vae = vae
        self._room = memory_bytes
        self._file = _TensorFile(folder)
        self._kept: dict[Key, Tensor] = {}
        self._encoded: deque[_Encoded] = deque()
        self._lock = Lock()

    @property
    def device(self) -> torch.device:
        """The VAE's."""
        device: torch.device = self._vae.device
        return device

    def find(self, key: Key) -> Tensor | None:
        """Mean and log variance on the channels, (1, 8, H/8, W/8), float32, on the CPU."""
        with self._lock:
            while self._encoded:
                self._keep(*self._encoded.popleft())
            if (kept := self._kept.get(key)) is not None:
                return kept
            return self._file.find(key)

    @torch.no_grad()
    def encode(self, key: Key | None, pixels: Tensor) -> Tensor:
        """The same of pixels (3, H, W) from -1 to 1, on the VAE's device; None: not to be kept."""
        pixels = pixels[None].to(self.device, non_blocking=True)
        distribution = self._vae.encode(pixels).latent_dist
        moments: Tensor = distribution.parameters.float()
        if key is not None:
            self._encoded.append(_copied(key, moments))
        return moments

    def _keep(self, key: Key, moments: Tensor, copied: torch.cuda.Event | None) -> None:
        if copied is not None:
            copied.synchronize()
        if key in self._kept:
            return
        if moments.nbytes <= self._room:
            self._room -= moments.nbytes
            self._kept[key] = moments
        else:
            self._file.add(key, moments)


class _Encoded(NamedTuple):
    key: Key
    moments: Tensor
    copied: torch.cuda.Event | None
    """When they are on the CPU; None: they are."""


def _copied(key: Key, moments: Tensor) -> _Encoded:
    """Copy them to the CPU without waiting for a card."""
    if not moments.is_cuda:
        return _Encoded(key, moments, None)
    here = torch.empty(moments.shape, dtype=moments.dtype, pin_memory=True)
    here.copy_(moments, non_blocking=True)
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    copied.record()
    return _Encoded(key, here, copied)


class _TensorFile:
    """Tensors of float32 in a file without a name: nothing is left of it, however a run ends."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._descriptor: int | None = None
        self._room = self._end = 0
        self._places: dict[Key, tuple[int, torch.Size]] = {}

    def add(self, key: Key, tensor: Tensor) -> None:
        """Write it, if there is room; a full disk only means that it is computed again."""
        data = tensor.numpy().tobytes()
        try:
            if self._descriptor is None:
                self._room = int(free_bytes(self._folder) * DISK_SHARE)
                self._descriptor = self._open()
            if key in self._places or self._end + len(data) > self._room:
                return
            written = os.pwrite(self._descriptor, data, self._end)
        except OSError:
            self._room = 0
            return
        if written == len(data):
            self._places[key] = (self._end, tensor.shape)
            self._end += written

    def _open(self) -> int:
        descriptor, name = mkstemp(dir=self._folder)
        Path(name).unlink()
        finalize(self, os.close, descriptor)
        return descriptor

    def find(self, key: Key) -> Tensor | None:
        if self._descriptor is None or key not in self._places:
            return None
        start, shape = self._places[key]
        data = bytearray(shape.numel() * 4)
        if os.preadv(self._descriptor, [data], start) < len(data):
            return None
        return torch.frombuffer(data, dtype=torch.float32).view(shape)
