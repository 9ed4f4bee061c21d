"""Estimate a job: minutes from its device's speed, bytes and memory from the model's size."""

from __future__ import annotations

from collections.abc import Mapping

from shared.dataset.card_memory import in_gib, shortage, trained_parameters
from shared.dataset.manifest import Estimate
from shared.dataset.optimizers import state_bytes
from shared.dataset.speed import ASSUMED, ProbedDevice, Speed
from shared.request import Train
from shared.storage.manifest import copies_of_weights

SECONDS_PER_MINUTE = 60
FP32_BYTES, FP16_BYTES = 4, 2
"""Per parameter."""
RESUME_POINTS = 2
"""How many are kept in the store."""


def estimate(
    train: Train,
    parameters: Mapping[str, int],
    megapixels: float,
    measured: Speed | None,
    device: ProbedDevice | None,
) -> Estimate:
    """Estimate a job.

    Args:
        train: what is asked for.
        parameters: how many each network has.
        megapixels: trained on in all.
        measured: the speed of such a training on the device; None: there was none yet.
        device: None: no trainer has told of its own yet.
    """
    speed, rate = _speed(parameters, measured, device)
    for_storage = megapixels / (speed or ASSUMED).megapixels_per_second / SECONDS_PER_MINUTE
    trained = sum(trained_parameters(train, parameters).values()) if parameters else 0
    moments = int(trained * state_bytes(train))
    saved = trained if train.lora_shape else sum(parameters.values())
    width = FP32_BYTES if train.save_full_precision else FP16_BYTES
    file = saved * width
    optimizer = moments if train.save_optimizer else 0
    checkpoints = intermediate_checkpoints(train, for_storage)
    weights = trained * FP32_BYTES * (2 if train.ema_decay_rate else 1)
    whole = copies_of_weights(train) * sum(parameters.values()) * width
    parts = {
        "checkpoint_bytes": checkpoints * (file + optimizer),
        "model_bytes": whole + (file if train.lora_shape else 0) + optimizer,
        "resume_point_bytes": RESUME_POINTS * (weights + moments),
    }
    return Estimate(
        minutes=round(for_storage, 1) if speed else None,
        rate=rate,
        bytes=sum(parts.values()),
        checkpoints=checkpoints,
        **parts,
    )


def _speed(
    parameters: Mapping[str, int], measured: Speed | None, device: ProbedDevice | None
) -> tuple[Speed | None, str]:
    """The best known speed, and what it rests on, or why there is none."""
    if measured:
        return measured, f"measured: {measured}"
    if device and (estimated := device.speed(parameters)):
        return estimated, f"estimated: {estimated}, by a test of {device.teraflops:.2g} TFLOP/s"
    if device:
        return None, f"not known yet: no such model was trained on {device.gpu} before"
    return None, "not known yet: no trainer has told what it computes on"


def memory_warnings(
    train: Train, parameters: Mapping[str, int], device: ProbedDevice | None
) -> list[str]:
    """That a training may not fit into its card, and what to change."""
    if device is None or not device.memory_bytes:
        return []
    has = f"{device.gpu} has {in_gib(device.memory_bytes)}"
    lack = shortage(train, parameters, device.memory_bytes, has)
    return [lack] if lack else []


def intermediate_checkpoints(train: Train, minutes: float) -> int:
    """How many checkpoints the store will hold besides the last one."""
    by_time = int(minutes / train.ckpt_every_n_minutes) if train.ckpt_every_n_minutes else 0
    by_epoch = (
        (train.max_epochs - 1) // train.save_every_n_epochs if train.save_every_n_epochs else 0
    )
    saved = by_time + by_epoch
    return saved if train.keep_checkpoints is None else min(saved, train.keep_checkpoints)
