"""Models in the child's hands: pipelines stay built, and weights are exchanged in place.

A pipeline is kept for each geometry, which is all that the configurations and the tokenizer say.
The next model of a geometry brings its scheduler and those networks that are not in it already.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from services.inferencer.generation.batching_pipeline import Model, ready
from services.inferencer.generation.model_files import NETWORKS, Content, Source

SHARE = 0.25
"""Of the device's memory, for all pipelines that are kept: drawing needs some, and a trainer on the
same card most of it. Two of Stable Diffusion 1.5 fit in half precision on a card of 24 GB."""


@dataclass
class CachedPipeline:
    """A pipeline on the device."""

    model: Model
    holds: dict[str, Content]

    def take(self, source: Source) -> None:
        """Exchange the networks that differ, and what else belongs to a model.

        Raises:
            Refused: it cannot be loaded; this is a mixture then.
        """
        for name in NETWORKS:
            content = source.content(name)
            if self.holds[name] != content:
                source.copy_into(self._network(name), name)
                self.holds[name] = content
        self.model.parts = source.described(self.model.parts)

    @property
    def bytes(self) -> int:
        """Of its weights."""
        states = (self._network(name).state_dict().values() for name in NETWORKS)
        return sum(weight.nbytes for state in states for weight in state)

    def _network(self, name: str) -> torch.nn.Module:
        network: torch.nn.Module = getattr(self.model.parts, name)
        return network


class Pipelines:
    """Keeps the pipelines that were used last on the device."""

    def __init__(self) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.most_bytes = int(SHARE * memory_of(self.device))
        """Bound of all that are kept; the one in use is kept in any case."""
        self._dtype = torch.float16 if self.device.type == "cuda" else torch.float32
        self._kept: dict[str, CachedPipeline] = {}  # by geometry; the one in use is the last

    @property
    def name(self) -> str:
        """The GPU's name, or ``cpu``."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"

    def model(self, folder: Path, weights: Path | None = None) -> Model:
        """The model of a folder, or a snapshot upon it: half precision on a GPU, fp32 on a CPU.

        It is good until the next one is asked for.

        Raises:
            Refused: it cannot be loaded.
        """
        # With a snapshot all is rounded to fp16, as a model saved at that step is: rows compare.
        source = Source(folder, weights, torch.float16 if weights else self._dtype)
        kept = self._kept.pop(source.geometry, None)  # it comes back only if all of it goes well
        if kept is None:
            kept = self._build(source)
        kept.take(source)
        self._kept[source.geometry] = kept
        return kept.model

    def forget(self) -> None:
        """Let go of all of them."""
        self._let_go_beyond(0)

    def _build(self, source: Source) -> CachedPipeline:
        parts = source.whole.to(torch.device("cpu"), self._dtype)
        kept = CachedPipeline(ready(parts), {name: source.own_content(name) for name in NETWORKS})
        self._let_go_beyond(self.most_bytes - kept.bytes)
        parts.to(self.device)
        kept.model.make_room = self._let_go_of_idle
        return kept

    def _let_go_beyond(self, most_bytes: int) -> None:
        while self._kept and sum(kept.bytes for kept in self._kept.values()) > most_bytes:
            self._let_go(next(iter(self._kept)))

    def _let_go_of_idle(self) -> bool:
        """All but the one in use; whether there was another."""
        idle = list(self._kept)[:-1]
        for geometry in idle:
            self._let_go(geometry)
        return bool(idle)

    def _let_go(self, geometry: str) -> None:
        del self._kept[geometry]
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def memory_of(device: torch.device) -> int:
    """Bytes in all, of the card or of the machine."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
