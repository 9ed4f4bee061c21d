"""Options whose effect depends on the number of steps, which is known once the images are."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil

from shared.dataset.manifest import Report
from shared.request import Train
from shared.words import counted

BASE_SHARE = 0.05
"""A warning is given if more than this share of the base model stays in an average."""
GOOD_SHARE = 0.01
"""What the decay that a warning proposes leaves of it."""


def schedule_warnings(train: Train, report: Report) -> Iterator[str]:
    """Warnings about learning rates that do not rise or end early, and averages that lag."""
    if train.lr_scheduler != "constant":
        yield from _lr_warnings(train, report.steps)
    if train.ema_decay_rate is not None:
        updates = _updates(train, report)
        share = train.ema_decay_rate**updates
        if share > BASE_SHARE:
            yield (
                f"ema_decay_rate {train.ema_decay_rate:g}: after {counted(updates, 'update')}, all"
                f" of this run, {100 * share:.0f} % of the average that is saved is still the base"
                " model;"
                f" {GOOD_SHARE ** (1 / updates):.4g} would leave {GOOD_SHARE:.0%},"
                " or leave it out"
            )


def _lr_warnings(train: Train, steps: int) -> Iterator[str]:
    warmup, decay = train.lr_warmup_steps, train.lr_decay_steps
    if warmup and warmup >= steps:
        yield (
            f"lr_warmup_steps {warmup}: the run has {counted(steps, 'step')}, so that the learning"
            f" rate never reaches lr; it ends at {100 * (steps - 1) / warmup:.2g} % of it"
        )
    if decay is not None and decay < steps:
        yield (
            f"lr_decay_steps {decay}: the run has {counted(steps, 'step')}, and from step {decay}"
            " on the learning rate is at its minimum, so that they change next to nothing; leave it"
            f" out for {int(1.5 * steps)}, one and a half times all steps"
        )


def _updates(train: Train, report: Report) -> int:
    """Of all epochs; an epoch's last update may have fewer batches."""
    if report.steps == train.max_epochs * report.steps_per_epoch:
        return train.max_epochs * ceil(report.steps_per_epoch / train.grad_accum)
    return ceil(report.steps / train.grad_accum)
