"""What the trainer's parent sends its child, and the outcome that the child returns."""

from __future__ import annotations

from msgspec import Struct

from shared.request import Command, Train

SECONDS_PER_MINUTE = 60.0
METRICS = "metrics.jsonl"
"""In ``out`` and in resume points: a JSON line for every report and every validation."""
SNAPSHOTS = "snapshots"
"""In ``out``: one folder for each snapshot whose row is not drawn yet, named by its step.

The child adds a folder with weights, and counts folders; the parent empties it once it is stored,
and removes it once the store's copy is gone. So neither needs to ask the other.
"""


class TrainingOrder(Struct, frozen=True, kw_only=True):
    """One job to train. Folders are local paths; the child writes into ``out`` only."""

    job: str
    train: Train
    seed: int
    """At least 0; the parent replaces the request's -1 by a random one."""
    dataset: str
    """Images and their manifest."""
    base: str
    """The base model: a diffusers folder, or configurations and a single file."""
    resume: str | None = None
    """The resume point to go on from."""
    out: str
    sample_every: int | None = None
    """Steps between sample rows; None: there is nothing to draw."""
    sampled: tuple[int, ...] = ()
    """Steps whose rows an earlier attempt had drawn."""
    resume_every: float
    """Seconds between resume points."""


class Commands(Struct, frozen=True, kw_only=True):
    """The newest number of each kind of command, sent while the training runs."""

    commands: dict[Command, int]


class Measured(Struct, frozen=True, kw_only=True):
    """One measurement of the loss on the images held out."""

    step: int
    epoch: int
    loss: float


class Validated(Struct, frozen=True, kw_only=True):
    """The measurements in short; the metrics have each of them."""

    images: int
    """Held out of training."""
    before: Measured
    best: Measured
    last: Measured


class Outcome(Struct, frozen=True, kw_only=True):
    """A finished training; the paths are inside the order's ``out``."""

    checkpoint: str
    """The single file."""
    model: str
    """The diffusers folder."""
    merged: str | None = None
    """The single file of the base model with the LoRA in its weights; None: not asked for."""
    metrics: str
    """JSON lines: reports and validations."""
    tensorboard: str
    """The same as TensorBoard's event file."""
    seed: int
    steps: int
    updates: int
    """Those that were skipped included."""
    epochs: int
    images: int
    """Images trained on, repeats that fill short batches not counted."""
    loss: float | None
    """The mean over the last steps."""
    validation: Validated | None
    precision: str
    optimizer: str
    attention: str
    skipped_updates: int
    """In fp16: a gradient was not finite, so that the scale was lowered instead."""
    warnings: list[str]
