"""Make JSON Schemas of requests, responses and messages from their types."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterable, Iterator
from functools import cache
from types import ModuleType
from typing import Any

import msgspec

from services.gateway.jobs import response_types, uploads
from services.gateway.web import health_types
from shared import request
from shared.dataset import manifest
from shared.messaging import messages
from shared.presets import PRESETS
from shared.request import (
    ACCESS_ID,
    ACCESS_SECRET,
    BUCKET,
    ENDPOINT,
    JOB_ID,
    MAX_ITEMS,
    MAX_LORAS,
    MODEL_NAME,
    OBJECT_PATH,
    WEB_ADDRESS,
    WEBHOOK_EVENTS,
    Inference,
    Policy,
    S3Config,
    Train,
    WeighedModel,
)

Schema = dict[str, Any]
SCHEMA_REF = "#/components/schemas/"
REQUEST_SCHEMA = "Request"
"""Name of a whole request's schema, and prefix of its parts'."""
CHECK_SCHEMA = "RequestCheck"
"""Name of the schema of a request for a dataset check."""
MODULES = (response_types, health_types, uploads, messages, request, manifest)
"""The modules that define the described types."""
ROLE = re.compile(r":\w+:`(?:[\w.]+\.)?(\w+)`")

NULL: Schema = {"type": "null"}
ADDRESS: Schema = {"type": "string", "pattern": WEB_ADDRESS}
MODEL = f"({MODEL_NAME})|({WEB_ADDRESS})"
S3_PATTERNS = {
    "accessId": ACCESS_ID,
    "accessSecret": ACCESS_SECRET,
    "bucketName": BUCKET,
    "endpointUrl": ENDPOINT,
    "objectPath": OBJECT_PATH,
}


def components(kinds: Iterable[Any], prefix: str = "") -> tuple[list[Schema], dict[str, Schema]]:
    """A schema for each type, and by name the parts that they refer to.

    The docstring of a field is its description.
    """
    template = f"{SCHEMA_REF}{prefix}{{name}}"
    named, parts = msgspec.json.schema_components(kinds, ref_template=template)
    for name, part in parts.items():
        _describe(name, part)
    return list(named), {f"{prefix}{name}": part for name, part in parts.items()}


def _describe(name: str, part: Schema) -> None:
    part["description"] = plain(part.get("description", ""))
    for field, text in _texts().get(name, {}).items():
        if field in part["properties"]:
            part["properties"][field]["description"] = plain(text)


def plain(text: str) -> str:
    """A docstring as Markdown, in one paragraph."""
    return " ".join(ROLE.sub(r"`\1`", text).replace("``", "`").split())


@cache
def _texts() -> dict[str, dict[str, str]]:
    """Field docstrings by class and field, those of base classes included."""
    found: dict[str, dict[str, str]] = {}
    for module in MODULES:
        for each in _classes(module):
            bases = [found.get(base.id, {}) for base in each.bases if isinstance(base, ast.Name)]
            inherited = {field: text for base in bases for field, text in base.items()}
            found[each.name] = {**inherited, **dict(_field_texts(each))}
    return found


def _classes(module: ModuleType) -> Iterator[ast.ClassDef]:
    tree = ast.parse(inspect.getsource(module))
    return (each for each in tree.body if isinstance(each, ast.ClassDef))


def _field_texts(of: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for field, below in zip(of.body, of.body[1:], strict=False):
        match field, below:
            case (
                ast.AnnAssign(target=ast.Name(id=name), value=value),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                yield _wire_name(name, value), text


def _wire_name(name: str, value: ast.expr | None) -> str:
    """A field's name in JSON, which ``field(name=...)`` may set."""
    given = value.keywords if isinstance(value, ast.Call) else []
    names = [ast.literal_eval(each.value) for each in given if each.arg == "name"]
    return names[0] if names else name


def request_schemas() -> dict[str, Schema]:
    """Schemas of a whole request, ``Request``, and of its parts.

    Names and bounds come from the structs in ``shared.request``; rules that the parser checks by
    hand are written by hand here, too.
    """
    (train, inference, s3, policy, lora), parts = components(
        [Train, Inference, S3Config, Policy, WeighedModel], REQUEST_SCHEMA
    )
    for part in parts.values():
        _take_null(part)
    _train_rules(parts[f"{REQUEST_SCHEMA}Train"])
    parts[f"{REQUEST_SCHEMA}WeighedModel"]["properties"]["model"]["pattern"] = MODEL
    for name, pattern in S3_PATTERNS.items():
        parts[f"{REQUEST_SCHEMA}S3Config"]["properties"][name]["pattern"] = pattern
    training, generation = _training(train, inference), _generation(inference, lora)
    return {
        REQUEST_SCHEMA: _whole({"oneOf": [training, generation]}, s3, policy),
        CHECK_SCHEMA: _whole(training, s3, policy),
        **parts,
    }


def _take_null(part: Schema) -> None:
    """An optional field may be null, which means the same as leaving it out."""
    for name in part["properties"].keys() - part.get("required", ()):
        kind = part["properties"][name]
        if "enum" in kind:
            kind["enum"] = [*kind["enum"], None]
        elif "type" in kind:
            kind["type"] = [kind["type"], "null"]


def _or_null(*kinds: Schema) -> Schema:
    return {"anyOf": [*kinds, NULL]}


def _train_rules(train: Schema) -> None:
    fields = train["properties"]
    fields["data_url"] |= {"pattern": rf"({JOB_ID})|({WEB_ADDRESS})"}
    fields["resume_ckpt_url"]["pattern"] = fields["base"]["anyOf"][0]["pattern"] = MODEL
    off = ("disable_unet_training", "disable_textenc_training")
    train["not"] = {"required": list(off), "properties": {name: {"const": True} for name in off}}
    train["description"] += " `timestep_start` is below `timestep_end`."
    train["x-presets"] = {
        preset: {name: choice._asdict() for name, choice in choices.items()}
        for preset, choices in PRESETS.items()
    }


def _whole(inputs: Schema, s3: Schema, policy: Schema) -> Schema:
    events = {
        "type": "array",
        "minItems": 1,
        "maxItems": MAX_ITEMS,
        "items": {"enum": list(WEBHOOK_EVENTS)},
    }
    address = {**ADDRESS, "description": "Receives the body of `/status` when the job ends."}
    return {
        "description": "A job; `input` says whether it trains a model.",
        "type": "object",
        "properties": {
            "input": inputs,
            "s3Config": {
                **_or_null(s3),
                "description": "Your bucket, which the results are uploaded to.",
            },
            "webhook": _or_null(address, {"const": ""}),
            "webhookV2": {"description": "Has no effect."},
            "webhook_events_filter": {
                **_or_null(events),
                "description": "The events that the webhook receives.",
            },
            "policy": _or_null(policy),
        },
        "required": ["input"],
        "additionalProperties": False,
    }


def _training(train: Schema, inference: Schema) -> Schema:
    entries = {"type": "array", "items": inference, "maxItems": MAX_ITEMS}
    return {
        "title": "Fine-tune a model, and generate images with it",
        "type": "object",
        "properties": {
            "train": train,
            "model": NULL,
            "base": NULL,
            "inference": _or_null(inference, entries),
        },
        "required": ["train"],
        "additionalProperties": False,
    }


def _generation(inference: Schema, lora: Schema) -> Schema:
    entries = {"type": "array", "items": inference, "minItems": 1, "maxItems": MAX_ITEMS}
    text = "The id of a finished job of yours, or a value that `resume_ckpt_url` takes."
    one = {"type": "string", "minLength": 1, "pattern": MODEL}
    together = {
        "type": "array",
        "items": {"anyOf": [one, lora]},
        "minItems": 1,
        "maxItems": 1 + MAX_LORAS,
        "description": "A model, and LoRAs that are added to it.",
    }
    return {
        "title": "Generate images with a finished model",
        "type": "object",
        "properties": {
            "model": {"anyOf": [{**one, "description": text}, together]},
            "base": {
                **_or_null(one),
                "description": "The model that a LoRA is for which `model` names; null: the"
                " deployment's, or the one that a job has trained it on.",
            },
            "inference": {"anyOf": [inference, entries]},
            "train": NULL,
        },
        "required": ["model", "inference"],
        "additionalProperties": False,
        # Of several the first is the base model, or is with it.
        "not": {
            "required": ["base"],
            "properties": {"base": {"type": "string"}, "model": {"type": "array"}},
        },
    }
