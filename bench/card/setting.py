"""Where the sections compute, and with which model: SD 1.5's geometry only on a card."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.sd15 import TINY, make_model
from shared.child.records import DEVICE
from shared.request import Resolution

MIB = 2**20


@dataclass(frozen=True)
class Setting:
    """What all sections share."""

    device: str
    """``cuda``, ``cuda:1``; ``cpu`` to try the command itself."""
    folder: Path
    """For what a section leaves to the next: the base model."""

    @property
    def is_card(self) -> bool:
        return self.device != "cpu"

    @property
    def side(self) -> Resolution:
        """Of images, in pixels."""
        return 512 if self.is_card else 256

    @property
    def geometry(self) -> str:
        return "SD 1.5's geometry, random weights" if self.is_card else "the tiny model"

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, DEVICE: self.device}

    def base(self) -> Path:
        """The base model's folder, made by the first section that needs it."""
        if not self.is_card:
            return TINY
        folder = self.folder / "base"
        if not (folder / "model_index.json").exists():
            make_model(folder)
        return folder

    def dataset(self, images: int) -> Path:
        from tests.support.training import make_dataset  # noqa: PLC0415 - torch is slow to load

        folder = self.folder / f"images-{images}"
        return folder if folder.exists() else make_dataset(folder, images, size=(self.side,) * 2)


def mebibytes(count: float) -> str:
    return f"{count / MIB:,.0f} MiB"


def memory_of(pids: list[int], device: Any) -> int:
    """Bytes in use: of the card by everybody; on a processor of these processes, resident."""
    import torch  # noqa: PLC0415 - slow to load

    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return total - free
    pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)
    return pages * os.sysconf("SC_PAGE_SIZE")
