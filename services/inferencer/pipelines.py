"""The model in the child's hands: the last one stays loaded."""

from __future__ import annotations

from pathlib import Path

import torch

from shared.diffusion.loading import Parts, load


class Loaded:
    """Keeps one model on the device."""

    def __init__(self) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._folder: Path | None = None
        self._parts: Parts | None = None

    @property
    def name(self) -> str:
        """The GPU's name, or ``cpu``."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"

    def parts(self, folder: Path) -> Parts:
        """The model of a folder: half precision on a GPU, fp32 on a CPU.

        Raises:
            Refused: it cannot be loaded.
        """
        if self._parts is None or folder != self._folder:
            self.forget()
            half = torch.float16 if self.device.type == "cuda" else torch.float32
            self._parts = load(folder, half).to(self.device)
            self._folder = folder
        return self._parts

    def forget(self) -> None:
        """Let go of the model and of the device's memory."""
        self._parts = self._folder = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
