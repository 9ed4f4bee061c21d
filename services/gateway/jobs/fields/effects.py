"""What a request gives without the effect that it was given for: a warning for each."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from msgspec import Struct
from msgspec.structs import fields, replace

from shared.dataset.optimizers import FAR, IN_32_BITS, usual_lr
from shared.request import DEFAULT_BASE, JOB_ID, Inference, Policy, Train


class Idle(NamedTuple):
    """When an option that is not as by default does nothing, and why."""

    holds: Callable[[Any], bool]
    """Takes the object that the option is in."""
    why: str


OWN_BASE = rf"^{re.escape(DEFAULT_BASE.removesuffix('.ckpt'))}(\.ckpt)?$"
WITHOUT_LORA = Idle(lambda train: train.lora_rank is None, "without lora_rank")
GOES_ON_WITH_NONE = Idle(lambda train: not may_be_lora(train), "without lora_rank")
CONSTANT = Idle(lambda train: train.lr_scheduler == "constant", "with lr_scheduler constant")

RATED_FROM = 2
KEEPS_EVERY_IMAGE = 100
"""Percent."""
IN_TRAIN: Mapping[str, Sequence[Idle]] = {
    "base": (
        Idle(
            lambda train: re.search(OWN_BASE, train.resume_ckpt_url) is not None,
            "without a resume_ckpt_url that names a LoRA",
        ),
    ),
    "hf_repo_subfolder": (
        Idle(
            lambda train: re.search(f"{OWN_BASE}|{JOB_ID}", train.resume_ckpt_url) is not None,
            "with this resume_ckpt_url, which names neither a repository of the hub nor a zip",
        ),
    ),
    "keep_checkpoints": (
        Idle(
            lambda train: not train.ckpt_every_n_minutes and not saves_by_epochs(train),
            "without ckpt_every_n_minutes and save_every_n_epochs, but on what the command save"
            " saves",
        ),
    ),
    "lora_alpha": (WITHOUT_LORA,),
    "lora_conv_rank": (
        WITHOUT_LORA,
        Idle(lambda train: train.disable_unet_training, "with disable_unet_training"),
    ),
    "lora_merge": (GOES_ON_WITH_NONE,),
    "lr": (
        Idle(
            lambda train: train.disable_unet_training and train.text_encoder_lr is not None,
            "with disable_unet_training and text_encoder_lr",
        ),
    ),
    "lr_decay_steps": (CONSTANT,),
    "lr_warmup_steps": (
        CONSTANT._replace(holds=lambda train: CONSTANT.holds(train) and train.lr_warmup_steps > 0),
    ),
    "rated_dataset": (
        Idle(
            lambda train: train.max_epochs <= RATED_FROM,
            "with so few max_epochs: the first two epochs show every image",
        ),
        Idle(
            lambda train: train.rated_dataset_target_dropout_percent == KEEPS_EVERY_IMAGE,
            "with rated_dataset_target_dropout_percent 100, which keeps every image",
        ),
    ),
    "rated_dataset_target_dropout_percent": (
        Idle(lambda train: not train.rated_dataset, "without rated_dataset"),
    ),
    "save_every_n_epochs": (
        Idle(
            lambda train: not saves_by_epochs(train),
            "with so few max_epochs: the finished model is saved anyway",
        ),
    ),
    "scale_lr": (
        Idle(
            lambda train: train.batch_size * train.grad_accum == 1,
            "with batch_size 1 and grad_accum 1: the factor is 1",
        ),
    ),
    "text_encoder_lr": (
        Idle(lambda train: train.disable_textenc_training, "with disable_textenc_training"),
    ),
    "unmasked_weight": (Idle(lambda train: not train.masked_loss, "without masked_loss"),),
}
"""Any other option has an effect beside all others, or it depends on the dataset, whose report
tells."""
IN_INFERENCE: Mapping[str, Sequence[Idle]] = {
    "negative_prompt": (
        Idle(
            lambda entry: entry.guidance_scale == 1,
            "with guidance_scale 1",
        ),
    ),
}
IN_POLICY: Mapping[str, Sequence[Idle]] = {
    "executionTimeout": (
        Idle(lambda policy: policy.executionTimeout >= policy.ttl, "with a ttl that is not longer"),
    ),
}
SHOWN = (bool, int, float)
"""Values that a warning repeats."""


def may_be_lora(train: Train) -> bool:
    """Whether a LoRA is trained: what is named may be one, and a job that goes on has its rank."""
    return train.lora_rank is not None or not re.search(OWN_BASE, train.resume_ckpt_url)


def saves_by_epochs(train: Train) -> bool:
    """Whether an epoch before the last one ends with a checkpoint."""
    every = train.save_every_n_epochs
    return every is not None and every < train.max_epochs


def warnings(
    top: Mapping[str, Any], train: Train | None, inference: Sequence[Inference], policy: Policy
) -> Iterator[str]:
    """A sentence for each option of a checked request that is taken without its effect.

    ``top`` is the request as it was given.
    """
    if top.get("webhookV2"):
        yield "webhookV2 has no effect"
    if top.get("webhook_events_filter") and not top.get("webhook"):
        yield "webhook_events_filter has no effect without webhook"
    yield from _idle(policy, IN_POLICY, "policy")
    if train is not None:
        yield from _idle(train, IN_TRAIN, "input.train")
        yield from _of_schedule(train)
        yield from _of_optimizer(train)
        yield from _of_rates(train)
    of_entries = [list(_idle(entry, IN_INFERENCE, "input.inference")) for entry in inference]
    idle = [found[0] for found in of_entries if found]
    if idle:
        yield idle[0] if len(inference) == 1 else f"{idle[0]}, in {len(idle)} of its entries"


def _idle(given: Struct, table: Mapping[str, Sequence[Idle]], path: str) -> Iterator[str]:
    for name, default in _defaults(type(given)):
        value = getattr(given, name)
        if name not in table or value in (None, "", default):
            continue
        shown = f" {_shown(value)}" if isinstance(value, SHOWN) else ""
        for idle in table[name]:
            if idle.holds(given):
                yield f"{path}.{name}{shown} has no effect {idle.why}"
                break


@cache  # msgspec reads all annotations anew: most of the time of a request that is taken
def _defaults(kind: type[Struct]) -> tuple[tuple[str, Any], ...]:
    return tuple((field.name, field.default) for field in fields(kind))


def _shown(value: float) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:.10g}"


def _of_schedule(train: Train) -> Iterator[str]:
    warmup, decay = train.lr_warmup_steps, train.lr_decay_steps
    if train.lr_scheduler != "constant" and warmup and decay and warmup >= decay:
        yield (
            f"input.train.lr_warmup_steps {warmup} is not below lr_decay_steps {decay}: the"
            " learning rate falls to its minimum before it has reached lr; lower the first"
        )


def _of_optimizer(train: Train) -> Iterator[str]:
    """What beside a named optimizer is most likely meant for another one."""
    if train.optimizer is None:
        return
    if train.optimizer in IN_32_BITS and not train.useadam8bit:
        yield f"input.train.useadam8bit false has no effect with optimizer {train.optimizer}"
    if train.optimizer == "schedule_free" and train.lr_scheduler != "constant":
        yield (
            f"input.train.lr_scheduler {train.lr_scheduler}: optimizer schedule_free is meant to be"
            " used with constant"
        )


def _of_rates(train: Train) -> Iterator[str]:
    """A rate of another optimizer, or of whole networks where a LoRA is asked for.

    Without either every rate is taken as it is: it is the endpoint's own optimizer.
    """
    if train.optimizer is None and train.lora_rank is None:
        return
    trainer = f"optimizer {train.optimizer}" if train.optimizer else "a LoRA"
    usual = usual_lr(train)
    highest = usual_lr(replace(train, lora_rank=1)) if may_be_lora(train) else usual
    rates = {"lr": train.lr}
    if not train.disable_textenc_training:
        rates["text_encoder_lr"] = train.text_encoder_lr
    for name, rate in rates.items():
        if rate is not None and not usual / FAR <= rate <= highest * FAR:
            yield (
                f"input.train.{name} {rate:.10g} is far from what is usual with {trainer},"
                f" {usual:g}; leave it out to train at that"
            )
