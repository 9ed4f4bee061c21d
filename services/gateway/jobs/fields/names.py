"""Suggestions for a name that does not exist, or that stands in the wrong place."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher

from shared.request import Inference, Policy, S3Config, Train

TOP_FIELDS = ("input", "s3Config", "webhook", "webhookV2", "webhook_events_filter", "policy")
INPUT_FIELDS = ("train", "model", "base", "inference")
PLACES: Mapping[str, Sequence[str]] = {
    "": TOP_FIELDS,
    "input": INPUT_FIELDS,
    "input.train": Train.__struct_fields__,
    "input.inference": Inference.__struct_fields__,
    "s3Config": S3Config.__struct_fields__,
    "policy": Policy.__struct_fields__,
}
"""The names that each object of a request has."""

OTHER_NAMES: Mapping[str, str] = {
    "accesskeyid": "accessId",
    "accesskey": "accessId",
    "basemodel": "resume_ckpt_url",
    "bucket": "bucketName",
    "cfg": "guidance_scale",
    "cfgscale": "guidance_scale",
    "convdim": "lora_conv_rank",
    "dataset": "data_url",
    "datasetdir": "data_url",
    "dataroot": "data_url",
    "endpoint": "endpointUrl",
    "epochs": "max_epochs",
    "fp16": "amp",
    "gradientaccumulationsteps": "grad_accum",
    "maxtrainepochs": "max_epochs",
    "mixedprecision": "amp",
    "model": "resume_ckpt_url",
    "networkalpha": "lora_alpha",
    "networkdim": "lora_rank",
    "networkweights": "resume_ckpt_url",
    "noiseoffset": "zero_frequency_noise_ratio",
    "numimages": "num_outputs",
    "numimagesperprompt": "num_outputs",
    "numtrainepochs": "max_epochs",
    "prefix": "objectPath",
    "pretrainedmodelnameorpath": "resume_ckpt_url",
    "resumeckpt": "resume_ckpt_url",
    "sampler": "scheduler",
    "secretaccesskey": "accessSecret",
    "secretkey": "accessSecret",
    "steps": "num_inference_steps",
    "timeout": "executionTimeout",
    "trainbatchsize": "batch_size",
    "unetlr": "lr",
}
"""What other trainers and services call these fields, without underscores and capitals."""
SAME = (("learningrate", "lr"),)
"""Parts of names that mean the same."""

FEW = 8
"""So many names are all listed."""
SUGGESTED = 3
LIKE, CLEAR = 0.6, 0.8
"""Likeness of a name that may be meant, and of one that surely is."""


def unknown(name: str, known: Sequence[str], place: str) -> str:
    """What to say of an unknown name in an object of a request, such as ``input.train``."""
    here = re.sub(r"\[[0-9]+\]", "", place)
    is_request = here in PLACES and _other_name(name, known) is None
    if is_request and (places := [*_places_of(name, here)]):
        return f"put {name} {' or '.join(places)}"
    return f"no such field; {nearest(name, known)}"


def _places_of(name: str, here: str) -> Iterator[str]:
    for place, names in PLACES.items():
        if name in names and place != here and name != "input":
            yield f"inside {place}" if place else "beside input"


def nearest(name: str, known: Sequence[str]) -> str:
    """The few names that may be meant, or all if there are few."""
    if other := _other_name(name, known):
        return f"did you mean {other}?"
    likeness = {each: SequenceMatcher(None, _plain(name), _plain(each)).ratio() for each in known}
    ordered = sorted(known, key=lambda each: -likeness[each])[:SUGGESTED]
    likely = [each for each in ordered if likeness[each] >= LIKE]
    if likely:
        is_clear = likeness[likely[0]] >= CLEAR
        return f"did you mean {_one_of(likely[:1] if is_clear else likely)}?"
    if len(known) <= FEW:
        return f"known: {', '.join(known)}"
    return f"the nearest are {', '.join(ordered)}"


def _other_name(name: str, known: Sequence[str]) -> str | None:
    other = OTHER_NAMES.get(_plain(name))
    return other if other in known else None


def _plain(name: str) -> str:
    plain = name.lower().replace("_", "").replace("-", "")
    for word, ours in SAME:
        plain = plain.replace(word, ours)
    return plain


def _one_of(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last
