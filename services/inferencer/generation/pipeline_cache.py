"""Keep pipelines on the device, and load the next model into one that is already built.

There is one pipeline for each architecture, that is for the configurations and the tokenizer. The
next model of an architecture replaces the scheduler, and those networks whose weights differ.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from services.inferencer.generation.batching_pipeline import (
    ONE_ROW,
    BatchingPipeline,
    Size,
    compute_one_row,
)
from services.inferencer.generation.model_files import NETWORKS, Fingerprint, ModelFiles
from shared.dataset.card_memory import (
    CONTEXT,
    FP16_BYTES,
    drawing_memory,
    images_at_once,
    kind_of,
    usual_training,
)
from shared.diffusion.lora_file import attach
from shared.diffusion.memory import card_memory
from shared.storage.manifest import LORA

MEMORY_SHARE = 0.25
"""Of the device's memory, for all cached pipelines: generation needs some, and a trainer on the
same card most of it. Two of Stable Diffusion 1.5 fit in half precision on a card of 24 GB."""


@dataclass
class CachedPipeline:
    """A pipeline on the device, and which weights are in it."""

    pipeline: BatchingPipeline
    loaded: dict[str, Fingerprint]
    """By network."""
    overflowing: set[Fingerprint] = field(default_factory=set)
    """VAEs that have to decode in fp32."""

    def load(self, files: ModelFiles, loras: Sequence[Path]) -> None:
        """Load the networks that differ, the LoRAs, and the scheduler.

        Raises:
            Refused: the model cannot be loaded; the pipeline is now a mixture of two.
        """
        for name in NETWORKS:
            fingerprint = files.fingerprint(name)
            if self.loaded[name] != fingerprint:
                if name == "vae" and self.pipeline.forget_overflow():
                    self.overflowing.add(self.loaded[name])
                files.load_into(self._network(name), name)
                self.loaded[name] = fingerprint
                if name == "vae" and fingerprint in self.overflowing:
                    self.pipeline.decode_in_fp32()
        self._put_on(loras)
        self.pipeline.parts = files.with_scheduler(self.pipeline.parts)

    def _put_on(self, files: Sequence[Path]) -> None:
        """Take off the LoRAs of the model before, and put on these."""
        for lora in [each for networks in self.pipeline.loras for each in networks]:
            lora.remove()
        self.pipeline.loras = []
        for file in files:
            networks = attach(self.pipeline.parts, file).values()
            self.pipeline.loras.append(
                [each.to(self.pipeline.parts.unet.dtype) for each in networks]
            )
            for name, layer in [each for lora in networks for each in lora.items()]:
                if name.endswith(ONE_ROW):
                    compute_one_row(layer)

    @property
    def bytes(self) -> int:
        """Size of its weights."""
        states = (self._network(name).state_dict().values() for name in NETWORKS)
        return sum(weight.nbytes for state in states for weight in state)

    def _network(self, name: str) -> torch.nn.Module:
        network: torch.nn.Module = getattr(self.pipeline.parts, name)
        return network


class PipelineCache:
    """Keeps the most recently used pipelines on the device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.max_bytes = int(MEMORY_SHARE * total_memory(self.device))
        """Limit for all cached pipelines; the one in use is kept in any case."""
        self.idle_bytes = idle_bytes(self.device)
        """Limit between orders, also for the one that was in use; None: there is no other."""
        self._dtype = torch.float16 if self.device.type == "cuda" else torch.float32
        self._cached: dict[str, CachedPipeline] = {}  # by architecture; the one in use is the last

    @staticmethod
    def on_processor() -> PipelineCache:
        """An empty cache, for what the card has no room for."""
        return PipelineCache(torch.device("cpu"))

    def has_room(self, folder: Path, largest: Size) -> bool:
        """Whether what the card has free suffices to draw images of this size with a model.

        If it does not, the models that are kept for later are dropped, and it is asked again.

        Raises:
            Refused: the model cannot be read.
        """
        files = ModelFiles(folder, None, self._dtype)
        kept = files.architecture_hash in self._cached
        weights = 0 if kept else FP16_BYTES * files.count_parameters()
        needed = weights + drawing_memory(largest[0] * largest[1], 1)
        if self._has(needed):
            return True
        for architecture in [each for each in self._cached if each != files.architecture_hash]:
            self._evict(architecture)
        return self._has(needed)

    def load(
        self, folder: Path, snapshot: Path | None = None, loras: Sequence[str] = ()
    ) -> BatchingPipeline:
        """A pipeline with a folder's model, its networks replaced by a snapshot's if there is one.

        Half precision on a GPU, fp32 on a CPU. It is valid until the next call. ``loras`` are files
        in the folder; without them, the one that the snapshot or the folder comes with, if any.

        Raises:
            Refused: the model cannot be loaded.
        """
        # With a snapshot all is rounded to fp16, as a model saved at that step is: rows compare. A
        # LoRA is, and its base model is as it is.
        is_whole = snapshot is not None and not (snapshot / LORA).exists()
        files = ModelFiles(folder, snapshot, torch.float16 if is_whole else self._dtype)
        architecture = files.architecture_hash
        cached = self._cached.pop(architecture, None)  # put back only after a complete load
        if cached is None:
            cached = self._build(files)
        own = [files.lora] if files.lora else []
        cached.load(files, [folder / each for each in loras] or own)
        self._cached[architecture] = cached
        return cached.pipeline

    def clear(self) -> None:
        """Drop all pipelines."""
        self._evict_down_to(0)
        self._empty()

    def give_back(self) -> None:
        """Give other processes the card's memory that nothing uses between two orders."""
        if self.idle_bytes is not None:
            self._evict_down_to(self.idle_bytes)
        self._empty()

    def _empty(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _has(self, needed: int) -> bool:
        memory = card_memory(self.device)
        return memory is None or memory.available >= needed

    def _room_for(self, size: Size, most: int) -> int:
        memory = card_memory(self.device)
        return most if memory is None else images_at_once(size[0] * size[1], memory.available, most)

    def _build(self, files: ModelFiles) -> CachedPipeline:
        parts = files.base.to(torch.device("cpu"), self._dtype)
        loaded = {name: files.base_fingerprint(name) for name in NETWORKS}
        cached = CachedPipeline(BatchingPipeline.from_parts(parts), loaded)
        self._evict_down_to(self.max_bytes - cached.bytes)
        parts.to(self.device)
        cached.pipeline.free_memory = self._evict_idle
        if kind_of(parts.parameters):
            cached.pipeline.room_for = self._room_for
        return cached

    def _evict_down_to(self, max_bytes: int) -> None:
        """Evict the least recently used first."""
        while self._cached and sum(each.bytes for each in self._cached.values()) > max_bytes:
            self._evict(next(iter(self._cached)))

    def _evict_idle(self) -> bool:
        """Evict all but the one in use; returns whether there were any."""
        idle = list(self._cached)[:-1]
        for architecture in idle:
            self._evict(architecture)
        return bool(idle)

    def _evict(self, architecture: str) -> None:
        del self._cached[architecture]
        self._empty()


def idle_bytes(device: torch.device) -> int | None:
    """What may be kept between orders on a card: no more than a usual training has room beside."""
    if device.type != "cuda":
        return None
    return max(0, total_memory(device) - usual_training().total - CONTEXT)


def total_memory(device: torch.device) -> int:
    """Bytes of the GPU's or the machine's memory."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
