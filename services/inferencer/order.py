"""What the inferencer's parent asks of its child."""

from __future__ import annotations

from msgspec import Struct

from shared.request import Inference


class ImageRequest(Struct, frozen=True, kw_only=True):
    """One entry of the request, its seed settled."""

    inference: Inference
    seed: int
    """Of its first image; image i has seed + i."""
    side: int | None = None
    """Pixels of both sides, whatever the inference says: samples may be larger than its largest."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of its images, pixels."""
        return self.side or self.inference.width, self.side or self.inference.height


class About(Struct, frozen=True, kw_only=True):
    """What every image of an order says of where it comes from."""

    job: str
    step: int | None = None
    """Training steps done; None: the model was not trained by this job."""
    model: str = ""
    """The checkpoint's name."""
    sha256: str = ""
    """Of the checkpoint file; empty: there is none, or it is unknown."""


class DrawingOrder(Struct, frozen=True, kw_only=True):
    """Images to draw with one model. Folders are local paths."""

    model: str
    """A diffusers folder, or configurations and a single file."""
    weights: str | None = None
    """A snapshot's folder, whose networks take the place of the model's; None: the model's own."""
    entries: tuple[ImageRequest, ...]
    clip_skip: int
    about: About
    out: str
    """An empty folder for ``0000.png``, ``0001.png`` and so on, numbered as the entries say."""
