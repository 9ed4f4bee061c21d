"""What a job asks of the LoRAs that its model comes with."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from urllib.parse import unquote

from msgspec.structs import replace

from services.fetcher.models.lora_on_base import file_of
from shared.errors import Refused
from shared.network.addresses import shown_url
from shared.request import (
    LEAST_ALPHA,
    AddedLora,
    Inference,
    LoraShape,
    LoraSource,
    ModelSource,
    Train,
)

MOST = LoraShape(rank=256, alpha=1024.0, conv_rank=128)
"""That can be trained."""


def going_on_with(train: Train, lora: LoraShape | None) -> Train:
    """The request with the shape of the LoRA that the base model comes with, if it has one.

    Raises:
        Refused: another shape is asked for, or another format than a LoRA is written in.
    """
    if lora is None:
        return train
    if lora.rank > MOST.rank or lora.alpha > MOST.alpha or lora.conv_rank > MOST.conv_rank:
        raise Refused(
            f"input.train.resume_ckpt_url: this LoRA has {lora}; the most that can be trained are"
            f" {MOST}"
        )
    if lora.alpha < LEAST_ALPHA:
        raise Refused(
            f"input.train.resume_ckpt_url: this LoRA has {lora}; it can be trained from alpha"
            f" {LEAST_ALPHA} on"
        )
    if train.checkpoint_format == "ckpt":
        raise Refused(
            "input.train.checkpoint_format: resume_ckpt_url names a LoRA, which is written as"
            " safetensors; leave checkpoint_format out"
        )
    if train.lora_shape not in (None, lora):
        raise Refused(
            f"input.train.lora_rank: the LoRA that resume_ckpt_url names has {lora}, but"
            f" {train.lora_shape} are asked for: to go on with it leave lora_rank, lora_alpha and"
            " lora_conv_rank out; over a preset, set them to null"
        )
    return replace(train, lora_rank=lora.rank, lora_alpha=lora.alpha, lora_conv_rank=lora.conv_rank)


def added_loras(model: ModelSource, count: int) -> tuple[AddedLora, ...]:
    """The so many LoRAs in the folder of a staged model, in the request's order.

    The first model that is named is one of them, or their base model.
    """
    first = LoraSource(source=model.source, name=model.name, weight=model.weight)
    named = (first, *model.loras)[1 + len(model.loras) - count :]
    return tuple(
        AddedLora(file=file_of(index), name=_name(each.source, each.name), weight=each.weight)
        for index, each in enumerate(named)
    )


def idle_weight(model: ModelSource, count: int) -> tuple[str, ...]:
    """A warning, where the first model has a weight, and is none of the so many LoRAs."""
    if model.weight == 1.0 or count > len(model.loras):
        return ()
    return ("input.model[0].weight has no effect: this is a whole model",)


def check_weights(inference: Sequence[Inference], loras: int) -> None:
    """Check that each entry weighs all LoRAs of the model, or none.

    Raises:
        Refused: names the first entry that does not.
    """
    for index, entry in enumerate(inference):
        if entry.loras and len(entry.loras) != loras:
            raise Refused(
                f"input.inference[{index}].loras: expected a weight for each LoRA of the model,"
                f" which has {loras}, got {len(entry.loras)}"
            )


def _name(source: str, checkpoint: str) -> str:
    """For ``<lora:NAME:WEIGHT>``: the name of its file without the ending."""
    name = PurePosixPath(checkpoint or unquote(shown_url(source))).name
    return re.sub(r"[<>:,\s]", "_", name.removesuffix(".safetensors")) or "lora"
