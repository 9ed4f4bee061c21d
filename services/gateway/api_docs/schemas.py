"""JSON Schemas of what goes in and out, made from the types that check it."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterable, Iterator
from functools import cache
from types import ModuleType
from typing import Any

import msgspec

from services.gateway.jobs import response_types
from shared import request
from shared.dataset import manifest
from shared.messaging import messages
from shared.request import (
    ENDPOINT,
    MOST_ITEMS,
    WEB_ADDRESS,
    WEBHOOK_EVENTS,
    Inference,
    Policy,
    S3Config,
    Train,
)

Schema = dict[str, Any]
SCHEMA_REF = "#/components/schemas/"
REQUEST_SCHEMA = "Request"
"""A whole request; its parts have names that begin so."""
CHECK_SCHEMA = "RequestCheck"
"""One that asks for the check of a dataset."""
MODULES = (response_types, messages, request, manifest)
"""Where everything that is described here is defined."""
ROLE = re.compile(r":\w+:`(?:[\w.]+\.)?(\w+)`")

EXAMPLE: Schema = {
    "input": {
        "train": {"data_url": "https://example.org/my-images.zip"},
        "inference": {"prompt": "a unique 123xyz concept name as a superhero"},
    }
}
NULL: Schema = {"type": "null"}
ADDRESS: Schema = {"type": "string", "pattern": WEB_ADDRESS}
MODEL = rf"(^[^:]*$(?!\n))|({WEB_ADDRESS})"


def components(kinds: Iterable[Any], prefix: str = "") -> tuple[list[Schema], dict[str, Schema]]:
    """A schema for each kind, and by name the parts that they refer to.

    What stands below a field in the code is its description.
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
    """By class and field, what is said of it; a class has what its bases say."""
    found: dict[str, dict[str, str]] = {}
    for module in MODULES:
        for each in _classes(module):
            bases = [found.get(base.id, {}) for base in each.bases if isinstance(base, ast.Name)]
            inherited = {field: text for base in bases for field, text in base.items()}
            found[each.name] = {**inherited, **dict(_said(each))}
    return found


def _classes(module: ModuleType) -> Iterator[ast.ClassDef]:
    tree = ast.parse(inspect.getsource(module))
    return (each for each in tree.body if isinstance(each, ast.ClassDef))


def _said(of: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for field, below in zip(of.body, of.body[1:], strict=False):
        match field, below:
            case (
                ast.AnnAssign(target=ast.Name(id=name), value=value),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                yield _on_the_wire(name, value), text


def _on_the_wire(name: str, value: ast.expr | None) -> str:
    """A field's name in JSON: that of ``field(name=...)`` where there is one."""
    given = value.keywords if isinstance(value, ast.Call) else []
    names = [ast.literal_eval(each.value) for each in given if each.arg == "name"]
    return names[0] if names else name


def request_schemas() -> dict[str, Schema]:
    """Of a whole request, ``Request``, and of its parts.

    The bounds are those of the structs by which ``shared.request`` checks, the names too; what it
    checks by hand is here by hand.
    """
    (train, inference, s3, policy), parts = components(
        [Train, Inference, S3Config, Policy], REQUEST_SCHEMA
    )
    for part in parts.values():
        _take_null(part)
    _train_rules(parts[f"{REQUEST_SCHEMA}Train"])
    parts[f"{REQUEST_SCHEMA}S3Config"]["properties"]["endpointUrl"]["pattern"] = ENDPOINT
    training, drawing = _training(train, inference), _drawing(inference)
    return {
        REQUEST_SCHEMA: _whole({"oneOf": [training, drawing]}, s3, policy),
        CHECK_SCHEMA: _whole(training, s3, policy),
        **parts,
    }


def _take_null(part: Schema) -> None:
    """What need not be there may be null, which is the same."""
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
    fields["data_url"] |= ADDRESS
    fields["resume_ckpt_url"]["pattern"] = MODEL
    off = ("disable_unet_training", "disable_textenc_training")
    train["not"] = {"required": list(off), "properties": {name: {"const": True} for name in off}}
    train["description"] += " `timestep_start` is below `timestep_end`."


def _whole(inputs: Schema, s3: Schema, policy: Schema) -> Schema:
    events = {
        "type": "array",
        "minItems": 1,
        "maxItems": MOST_ITEMS,
        "items": {"enum": list(WEBHOOK_EVENTS)},
    }
    address = {**ADDRESS, "description": "Gets the body of `/status` when the job ends."}
    return {
        "description": "A job; whether a model is trained for it is in `input`.",
        "type": "object",
        "properties": {
            "input": inputs,
            "s3Config": {**_or_null(s3), "description": "Your bucket, where the results go."},
            "webhook": _or_null(address, {"const": ""}),
            "webhookV2": {"description": "Has no effect."},
            "webhook_events_filter": {**_or_null(events), "description": "What the webhook hears."},
            "policy": _or_null(policy),
        },
        "required": ["input"],
        "additionalProperties": False,
        "examples": [EXAMPLE],
    }


def _training(train: Schema, inference: Schema) -> Schema:
    entries = {"type": "array", "items": inference, "maxItems": MOST_ITEMS}
    return {
        "title": "Fine-tune a model, and draw with it",
        "type": "object",
        "properties": {
            "train": train,
            "model": NULL,
            "inference": _or_null(inference, entries),
        },
        "required": ["train"],
        "additionalProperties": False,
    }


def _drawing(inference: Schema) -> Schema:
    entries = {"type": "array", "items": inference, "minItems": 1, "maxItems": MOST_ITEMS}
    said = "The id of a finished job of yours, or what `resume_ckpt_url` takes."
    return {
        "title": "Draw with a finished model",
        "type": "object",
        "properties": {
            "model": {"type": "string", "minLength": 1, "pattern": MODEL, "description": said},
            "inference": {"anyOf": [inference, entries]},
            "train": NULL,
        },
        "required": ["model", "inference"],
        "additionalProperties": False,
    }
