"""The model in the child's hands: the last one stays loaded."""

from __future__ import annotations

from pathlib import Path

import torch

from shared.diffusion.loading import Parts, load
from shared.diffusion.weights import load_weights


class Loaded:
    """Keeps one model on the device."""

    def __init__(self) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._source: tuple[Path, Path | None] | None = None
        self._parts: Parts | None = None

    @property
    def name(self) -> str:
        """The GPU's name, or ``cpu``."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"

    def parts(self, folder: Path, weights: Path | None = None) -> Parts:
        """The model of a folder, or a snapshot upon it: half precision on a GPU, fp32 on a CPU.

        Raises:
            Refused: it cannot be loaded.
        """
        if self._parts is None or self._source != (folder, weights):
            self.forget()
            self._parts = self._load(folder, weights)
            self._source = (folder, weights)
        return self._parts

    def _load(self, folder: Path, weights: Path | None) -> Parts:
        half = torch.float16 if self.device.type == "cuda" else torch.float32
        if weights is None:
            return load(folder, half).to(self.device)
        # All of it rounded to fp16, as a model saved at that step would be: rows compare.
        parts = load(folder, torch.float16)
        load_weights(parts, weights)
        return parts.to(self.device, half)

    def forget(self) -> None:
        """Let go of the model and of the device's memory."""
        self._parts = self._source = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
