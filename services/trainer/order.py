"""What the trainer's parent asks of its child, and what the child has to show at the end."""

from __future__ import annotations

from msgspec import Struct

from shared.request import Command, Train

SECONDS_PER_MINUTE = 60.0
SNAPSHOTS = "snapshots"
"""In ``out``: one folder for each snapshot that is not drawn yet, named by its step.

The child adds one, its weights in it, and counts them; the parent empties one when it is stored,
and removes it when the store's copy is gone. So neither needs to ask the other.
"""


class TrainingOrder(Struct, frozen=True, kw_only=True):
    """One job to train. Folders are local paths; the child writes into ``out`` only."""

    job: str
    train: Train
    seed: int
    """At least 0: where the request says -1, the parent has drawn one."""
    dataset: str
    """Images and their manifest."""
    base: str
    """The base model: a diffusers folder, or configurations and a single file."""
    resume: str | None = None
    """A resume point to go on from."""
    out: str
    sample_every: int | None = None
    """Steps between snapshots for rows of samples; None: there is nothing to draw."""
    sampled: tuple[int, ...] = ()
    """Steps whose rows are drawn already, by an earlier attempt."""
    resume_every: float
    """Seconds between resume points."""


class Commands(Struct, frozen=True, kw_only=True):
    """What the user wants of the training at work, while it is: the newest number of each kind."""

    commands: dict[Command, int]


class Measured(Struct, frozen=True, kw_only=True):
    """One measurement of the loss on the images held out."""

    step: int
    epoch: int
    loss: float


class Validated(Struct, frozen=True, kw_only=True):
    """What all measurements come to; each of them stands in the metrics."""

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
    metrics: str
    """JSON lines: what was reported, and what was measured."""
    tensorboard: str
    """The same as TensorBoard's event file."""
    seed: int
    steps: int
    updates: int
    epochs: int
    images: int
    """Images trained on, repeats that fill short batches not counted."""
    loss: float | None
    """The mean over the last steps."""
    validation: Validated | None
    precision: str
    optimizer: str
    attention: str
    warnings: list[str]
