"""The order that the inferencer's parent sends its child."""

from __future__ import annotations

from msgspec import Struct

from shared.request import AddedLora, Inference


class ImageRequest(Struct, frozen=True, kw_only=True):
    """One entry of ``input.inference``, its seed settled."""

    inference: Inference
    seed: int
    """Seed of the first image; image i has seed + i."""
    side: int | None = None
    """Width and height in pixels, in place of the inference's: samples may exceed its maximum."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of its images, in pixels."""
        return self.side or self.inference.width, self.side or self.inference.height


class Provenance(Struct, frozen=True, kw_only=True):
    """Where an order's images come from; written into every PNG."""

    job: str
    step: int | None = None
    """Training steps done; None: the model was not trained by this job."""
    model: str = ""
    """Name of the checkpoint."""
    sha256: str = ""
    """Of the checkpoint file; empty: there is none, or it is unknown."""


class GenerationOrder(Struct, frozen=True, kw_only=True):
    """Images to generate with one model. Folders are local paths."""

    model: str
    """A diffusers folder, or configurations and a single file."""
    snapshot: str | None = None
    """A snapshot's folder, whose networks replace the model's; None: the model as it is."""
    requests: tuple[ImageRequest, ...]
    clip_skip: int
    loras: tuple[AddedLora, ...] = ()
    """Those in the model's folder; empty: it has none, or one that counts fully."""
    provenance: Provenance
    out: str
    """An empty folder for ``0000.png``, ``0001.png`` and so on, in the order of the requests, and
    for a thumbnail of each, ``0000.webp``."""
