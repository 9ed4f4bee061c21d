"""What a job will take: minutes by a measured or assumed speed, bytes by the model's size."""

from __future__ import annotations

from collections.abc import Mapping

from shared.dataset.manifest import Estimate
from shared.dataset.speed import ASSUMED, Speed
from shared.request import Train

SECONDS_PER_MINUTE = 60
FULL_PRECISION, HALF_PRECISION = 4, 2
"""Bytes of a parameter."""
MOMENTS, MOMENTS_8BIT = 8, 2
"""Bytes that AdamW keeps for a parameter: two numbers."""
RESUME_POINTS = 2
"""As many are kept."""


def estimate(
    train: Train, parameters: Mapping[str, int], megapixels: float, speed: Speed | None
) -> Estimate:
    """Add up what the request asks for; ``parameters`` are counted by network."""
    minutes = megapixels / (speed or ASSUMED).megapixels_per_second / SECONDS_PER_MINUTE
    trained = sum(count for part, count in parameters.items() if _learns(part, train))
    moments = trained * (MOMENTS_8BIT if train.useadam8bit else MOMENTS)
    file = sum(parameters.values()) * (
        FULL_PRECISION if train.save_full_precision else HALF_PRECISION
    )
    beside = moments if train.save_optimizer else 0
    checkpoints = intermediate_checkpoints(train, minutes)
    weights = trained * FULL_PRECISION * (2 if train.ema_decay_rate else 1)
    parts = {
        "checkpoint_bytes": checkpoints * (file + beside),
        "model_bytes": 2 * file + beside,
        "resume_point_bytes": RESUME_POINTS * (weights + moments),
    }
    return Estimate(
        minutes=round(minutes, 1),
        rate=f"measured: {speed}" if speed else f"assumed: {ASSUMED}",
        bytes=sum(parts.values()),
        checkpoints=checkpoints,
        **parts,
    )


def intermediate_checkpoints(train: Train, minutes: float) -> int:
    """How many there will be in the store beside the last one."""
    by_time = int(minutes / train.ckpt_every_n_minutes) if train.ckpt_every_n_minutes else 0
    by_epoch = (
        (train.max_epochs - 1) // train.save_every_n_epochs if train.save_every_n_epochs else 0
    )
    most = by_time + by_epoch
    return most if train.keep_checkpoints is None else min(most, train.keep_checkpoints)


def _learns(part: str, train: Train) -> bool:
    frozen = {
        "vae": True,
        "unet": train.disable_unet_training,
        "text_encoder": train.disable_textenc_training,
    }
    return not frozen[part]
