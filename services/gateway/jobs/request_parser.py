"""Parse a request's JSON body, and report all its mistakes at once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import islice
from typing import Any, TypeVar, cast

from msgspec import UNSET, Struct
from msgspec import inspect as types

from services.gateway.jobs.fields.descriptions import describe
from services.gateway.jobs.fields.effects import warnings
from services.gateway.jobs.fields.names import INPUT_FIELDS, PLACES, TOP_FIELDS, unknown
from services.gateway.jobs.fields.rules import ADDRESS, MODEL, RULES, Rule, bucket_twice
from services.gateway.jobs.fields.shown import SHOWN_LETTERS, shown
from shared.dataset.edits import GivenEdit
from shared.network.addresses import shown_url
from shared.request import (
    FIRST_TIMESTEP,
    LAST_TIMESTEP,
    MAX_ITEMS,
    MAX_LORAS,
    WEBHOOK_EVENTS,
    Inference,
    LoraSource,
    ModelSource,
    Policy,
    Request,
    S3Config,
    Train,
    WebhookEvent,
    WeighedModel,
)
from shared.settings import MAX_BODY

MAX_LETTERS = 8192
"""Of an address, a name or a secret; servers take no longer URLs."""
MAX_DRAWN_LETTERS = MAX_BODY
"""Of the texts of ``inference``, counted for each image: each is told with all of its own."""
MAX_SAMPLE_LETTERS = 1 << 16
"""Of all sample prompts together, which every row of samples tells anew."""
MAX_MISTAKES = 50
"""Reported for one request; with more of them, parsing stops."""

TEXT = types.StrType(min_length=1)

T = TypeVar("T", bound=Struct)


class Invalid(Exception):
    """A request with mistakes; ``mistakes`` has a sentence for each, at most the first 50."""

    def __init__(self, mistakes: list[str]) -> None:
        self.mistakes = mistakes[:MAX_MISTAKES]
        more = ["and more"] if len(mistakes) > MAX_MISTAKES else []
        super().__init__("; ".join(self.mistakes + more))


class DisallowedAddress(Invalid):
    """A well-formed request with URLs that no service may connect to."""


INNER_FIELDS = [names for place, names in PLACES.items() if place.startswith("input")]
HIDDEN = "s3Config"
"""No message shows values below this field."""


def parse_request(body: Any) -> Request:
    """Check a decoded JSON body against the endpoint's schema.

    Raises:
        Invalid: with every mistake of the body at once.
    """
    mistakes: list[str] = []
    top = _object(body, "the request", mistakes)
    _report_unknown(top, TOP_FIELDS, "", mistakes)
    inputs = _inputs(top, mistakes)
    train = _optional(Train, inputs.get("train"), "input.train", mistakes)
    model = _model(inputs, mistakes)
    inference = _inference(inputs.get("inference"), mistakes)
    s3 = _optional(S3Config, top.get("s3Config"), "s3Config", mistakes)
    policy = _optional(Policy, top.get("policy"), "policy", mistakes) or Policy()
    webhook = _url(top.get("webhook"), "webhook", mistakes)
    events = _webhook_events(top.get("webhook_events_filter"), mistakes)
    mistakes += _too_long(train, model, s3, webhook)
    mistakes += _too_often(train, inference)
    if mistakes:
        raise Invalid(mistakes)
    return Request(
        train=train, model=model, inference=inference, s3=s3, webhook=webhook,
        webhook_events=events, policy=policy,
        warnings=tuple(warnings(top, train, inference, policy)),
    )  # fmt: skip


def parse_edits(body: Any) -> list[GivenEdit]:
    """The changes of a check's pictures in a decoded JSON body.

    Raises:
        Invalid: with every mistake of the body at once.
    """
    mistakes: list[str] = []
    top = _object(body, "the request", mistakes)
    _report_unknown(top, ["pictures"], "", mistakes)
    value = top.get("pictures")
    if not isinstance(value, list) or not value:
        if not mistakes:
            expected = "a list that is not empty, each item an object with the number of a picture"
            mistakes.append(f"pictures: expected {expected}, got {shown(value)}")
        raise Invalid(mistakes)
    edits = [
        _struct(GivenEdit, each, f"pictures[{index}]", mistakes)
        for index, each in _items(value, "pictures", mistakes)
    ]
    given = [edit for edit in edits if edit]
    if mistakes := mistakes or [*_given_twice(given)]:
        raise Invalid(mistakes)
    return given


def _given_twice(edits: Sequence[GivenEdit]) -> Iterator[str]:
    """A mistake for each picture that is given two captions, or is both used and left out."""
    first: dict[tuple[int, str], object] = {}
    for index, edit in enumerate(edits):
        for name, value in (("caption", edit.caption), ("use", edit.use)):
            key = (edit.number, name)
            if value is not UNSET and first.setdefault(key, value) != value:
                yield (
                    f"pictures[{index}].{name}: picture {edit.number} has another {name} in the"
                    " same request; give one of them"
                )


def _object(value: Any, path: str, mistakes: list[str]) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    got = "something else" if path == HIDDEN else shown(value)
    mistakes.append(f"{path}: expected an object, got {got}")
    return {}


def _inputs(top: dict[str, Any], mistakes: list[str]) -> dict[str, Any]:
    """``input``; if what belongs into it stands beside it, that has been said and is enough."""
    if top.get("input") is None and any(top.keys() & {*names} for names in INNER_FIELDS):
        return {}
    inputs = _object(top.get("input"), "input", mistakes)
    _report_unknown(inputs, INPUT_FIELDS, "input.", mistakes)
    if isinstance(top.get("input"), dict):
        _check_train_or_model(inputs, mistakes)
    return inputs


def _check_train_or_model(inputs: dict[str, Any], mistakes: list[str]) -> None:
    """A request either trains a model or names one, and then must request images."""
    ways = [name for name in ("train", "model") if inputs.get(name) is not None]
    if len(ways) != 1:
        mistakes.append(
            "input: expected either train, to fine-tune a model, or model, to draw with a finished"
            f" one, got {'both' if ways else 'neither'}"
        )
    if ways == ["model"] and inputs.get("inference") in (None, []):
        mistakes.append("input.inference: required with input.model, but missing")


def _model(inputs: dict[str, Any], mistakes: list[str]) -> ModelSource | None:
    """``input.model``: a name, or a list of them, the LoRAs with weights if need be."""
    value, base = inputs.get("model"), inputs.get("base")
    if base is not None:
        _value(TEXT, base, "input.base", mistakes, MODEL)
        if not isinstance(value, str):
            why = "in a list it is the first; beside resume_ckpt_url it is input.train.base"
            mistakes.append(f"input.base: goes with an input.model that is one LoRA; {why}")
    if value is None:
        return None
    if not isinstance(value, list):
        _value(TEXT, value, "input.model", mistakes, MODEL)
        return ModelSource(source=str(value), base=str(base or ""))
    if not 1 <= len(value) <= 1 + MAX_LORAS:
        expected = f"a model and at most {MAX_LORAS} LoRAs"
        mistakes.append(f"input.model: expected {expected}, got a list of {len(value)}")
        return None
    items = [_weighed(each, f"input.model[{index}]", mistakes) for index, each in enumerate(value)]
    first, *others = [item or WeighedModel(model="?") for item in items]
    loras = tuple(LoraSource(source=each.model, weight=each.weight) for each in others)
    return ModelSource(source=first.model, weight=first.weight, loras=loras)


def _weighed(value: Any, path: str, mistakes: list[str]) -> WeighedModel | None:
    if isinstance(value, str):
        return WeighedModel(model=str(_value(TEXT, value, path, mistakes, MODEL)))
    if not isinstance(value, dict):
        expected = "a model, or an object with a model and its weight"
        mistakes.append(f"{path}: expected {expected}, got {shown(value)}")
        return None
    return _struct(WeighedModel, value, path, mistakes)


def _inference(value: Any, mistakes: list[str]) -> tuple[Inference, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        entry = _struct(Inference, value, "input.inference", mistakes)
        return (entry,) if entry else ()
    entries = [
        _struct(Inference, each, f"input.inference[{index}]", mistakes)
        for index, each in _items(value, "input.inference", mistakes)
    ]
    return tuple(entry for entry in entries if entry)


def _items(
    value: list[Any], path: str, mistakes: list[str], most: int = MAX_ITEMS
) -> Iterator[tuple[int, Any]]:
    """The items with their indices, unless there are too many items or mistakes."""
    if len(value) > most:
        mistakes.append(f"{path}: expected at most {most} items, got {len(value)}")
        return
    for index, each in enumerate(value):
        if len(mistakes) > MAX_MISTAKES:
            return
        yield index, each


def _too_long(
    train: Train | None, model: ModelSource | None, s3: S3Config | None, webhook: str | None
) -> Iterator[str]:
    """Of texts that are kept in the job's record and repeated in its messages."""
    addresses = ("data_url", "resume_ckpt_url", "base", "hf_repo_subfolder")
    parts = (("input.train.", train, addresses), ("s3Config.", s3, S3Config.__struct_fields__))
    named: dict[str, str | None] = {
        **(model.named if model else {}),
        "webhook": webhook,
        **{
            f"{prefix}{name}": getattr(part, name)
            for prefix, part, names in parts
            if part is not None
            for name in names
        },
    }
    for path, text in named.items():
        if text and len(text) > MAX_LETTERS:
            yield f"{path}: expected at most {MAX_LETTERS} letters, got {len(text)}"


def _too_often(train: Train | None, inference: Sequence[Inference]) -> Iterator[str]:
    """Of texts that results repeat: a request of few bytes must not have results of many."""
    drawn = sum(
        each.num_outputs
        * sum(map(len, (each.prompt, each.negative_prompt or "", each.passback or "")))
        for each in inference
    )
    if drawn > MAX_DRAWN_LETTERS:
        yield (
            f"input.inference: expected at most {MAX_DRAWN_LETTERS} letters in prompts and"
            f" passbacks, counted for each image, got {drawn}"
        )
    sampled = sum(map(len, train.sample_prompts)) if train else 0
    if sampled > MAX_SAMPLE_LETTERS:
        yield (
            f"input.train.sample_prompts: expected at most {MAX_SAMPLE_LETTERS} letters in all,"
            f" got {sampled}"
        )


def _optional(kind: type[T], value: Any, path: str, mistakes: list[str]) -> T | None:
    return None if value is None else _struct(kind, value, path, mistakes)


def _struct(kind: type[T], value: Any, path: str, mistakes: list[str]) -> T | None:
    """Build a Struct field by field, so that no mistake hides another."""
    before = len(mistakes)
    given = _object(value, path, mistakes)
    if not isinstance(value, dict):
        return None
    fields = _fields_of(kind)
    _report_unknown(given, [each.name for each in fields], f"{path}.", mistakes)
    values = {
        each.name: _field(each, given, path, mistakes)
        for each in fields
        if each.required or given.get(each.name) is not None or _takes_null(each, given)
    }
    if kind is Train:
        _train_rules(values, path, mistakes)
    if kind is S3Config and bucket_twice(values):
        mistakes.append(
            f"{path}.endpointUrl: expected the S3 service alone, got one whose path ends with the"
            " bucket's name: leave it out there"
        )
    return kind(**values) if len(mistakes) == before else None


@cache  # msgspec reads all annotations anew: most of a request's time
def _fields_of(kind: type) -> tuple[types.Field, ...]:
    return cast("types.StructType", types.type_info(kind)).fields


def _takes_null(each: types.Field, given: dict[str, Any]) -> bool:
    """Null means "left out", unless the field gives it a meaning."""
    return each.name in given and isinstance(each.type, types.UnionType)


def _field(each: types.Field, given: dict[str, Any], path: str, mistakes: list[str]) -> Any:
    inner = f"{path}.{each.name}"
    if given.get(each.name) is None and each.required:
        expected = RULES[each.name].text if each.name in RULES else describe(each.type)
        mistakes.append(f"{inner}: required, but missing; expected {expected}")
        return None
    value = given[each.name]
    if (kind := _struct_of(each.type)) and value is not None:
        return _struct(kind, value, inner, mistakes)
    if isinstance(each.type, types.ListType) and isinstance(value, list):
        items = _items(value, inner, mistakes, each.type.max_length or MAX_ITEMS)
        return [_value(each.type.item_type, v, f"{inner}[{i}]", mistakes) for i, v in items]
    return _value(each.type, value, inner, mistakes, RULES.get(each.name))


def _value(
    kind: types.Type, value: Any, path: str, mistakes: list[str], rule: Rule | None = None
) -> Any:
    try:
        converted = _convert(value, kind)
        _require(rule is None or converted is None or rule.holds(converted))
    except (ValueError, OverflowError):
        is_text = rule is not None and isinstance(value, str)
        expected = rule.text if rule and is_text and value else describe(kind)
        got = _found(value, rule) if rule and is_text else shown(value)
        if path.startswith(HIDDEN):
            got = (rule.found(value) if rule and is_text else None) or "something else"
        mistakes.append(f"{path}: expected {expected}, got {got}")
        return None
    return converted


def _found(text: str, rule: Rule) -> str:
    """A text that breaks a rule, as a message shows it, and what is wrong with it."""
    quoted, wrong = shown(shown_url(text)), rule.found(text)
    return f"{quoted}: {wrong}" if wrong else quoted


def _struct_of(kind: types.Type) -> type[Struct] | None:
    """The Struct type of a field, which may also be null."""
    members = kind.types if isinstance(kind, types.UnionType) else (kind,)
    return next((each.cls for each in members if isinstance(each, types.StructType)), None)


def _convert(value: Any, kind: types.Type) -> Any:
    """Convert a value to its field's type; integers count as floats, booleans not as integers."""
    match kind:
        case types.UnionType(types=members):
            if value is None:
                return None
            return _convert(value, next(m for m in members if not isinstance(m, types.NoneType)))
        case types.LiteralType(values=values):
            value = _as_integer(value)
            _require(value in values and type(value) is type(values[0]))
        case types.IntType(ge=low, le=high):
            value = _as_integer(value)
            _require(isinstance(value, int) and not isinstance(value, bool))
            _require((low is None or value >= low) and (high is None or value <= high))
        case types.FloatType(gt=above, ge=low, le=high, lt=below):
            _require(isinstance(value, int | float) and not isinstance(value, bool))
            value = float(value)
            _require(math.isfinite(value))
            _require((low is None or value >= low) and (high is None or value <= high))
            _require((above is None or value > above) and (below is None or value < below))
        case types.BoolType():
            _require(isinstance(value, bool))
        case types.StrType(min_length=least, max_length=most):
            _require(isinstance(value, str) and (least or 0) <= len(value) <= (most or math.inf))
        case types.ListType():
            _require(isinstance(value, list))
    return value


def _as_integer(value: Any) -> Any:
    """JSON has one number type: 2.0 is an integer, too."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _require(holds: bool) -> None:  # noqa: FBT001 - the condition itself
    if not holds:
        raise ValueError


def _report_unknown(
    given: dict[str, Any], known: Sequence[str], prefix: str, mistakes: list[str]
) -> None:
    wrong = (name[:SHOWN_LETTERS] for name in given if name not in known)
    place = prefix.removesuffix(".")
    mistakes += [
        f"{prefix}{name}: {unknown(name, known, place)}" for name in islice(wrong, MAX_MISTAKES + 1)
    ]


def _url(value: Any, path: str, mistakes: list[str]) -> str | None:
    if value is None or value == "":
        return None
    if isinstance(value, str) and ADDRESS.holds(value):
        return value
    got = _found(value, ADDRESS) if isinstance(value, str) else shown(value)
    mistakes.append(f"{path}: expected {ADDRESS.text}, got {got}")
    return None


def _webhook_events(value: Any, mistakes: list[str]) -> tuple[WebhookEvent, ...]:
    path, one = "webhook_events_filter", f"one of {', '.join(WEBHOOK_EVENTS)}"
    if value is None:
        return ()
    if not isinstance(value, list) or not value:
        mistakes.append(f"{path}: expected a list, each item {one}, got {shown(value)}")
        return ()
    mistakes += [
        f"{path}[{index}]: expected {one}, got {shown(each)}"
        for index, each in _items(value, path, mistakes)
        if each not in WEBHOOK_EVENTS
    ]
    return tuple(event for event in WEBHOOK_EVENTS if event in value)


def _train_rules(values: dict[str, Any], path: str, mistakes: list[str]) -> None:
    """Rules between two fields; a field with a mistake of its own is None here."""
    if values.get("disable_unet_training") and values.get("disable_textenc_training"):
        mistakes.append(
            f"{path}: disable_unet_training and disable_textenc_training are both true:"
            " nothing is left to train"
        )
    if values.get("lora_rank") and values.get("checkpoint_format") == "ckpt":
        mistakes.append(
            f"{path}: a LoRA (lora_rank) is written as safetensors; leave checkpoint_format out"
        )
    start = values.get("timestep_start", FIRST_TIMESTEP)
    end = values.get("timestep_end", LAST_TIMESTEP)
    if start is not None and end is not None and start >= end:
        mistakes.append(f"{path}: timestep_start {start} must be below timestep_end {end}")
