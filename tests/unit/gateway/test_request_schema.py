"""The schema of a request accepts what the parser accepts."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from services.gateway.api_docs.schemas import request_schemas
from services.gateway.jobs.request_parser import Invalid, parse_request
from shared.presets import PRESETS
from shared.request import Inference, Policy, S3Config, Train, Validation

SCHEMA = {"$ref": "#/components/schemas/Request", "components": {"schemas": request_schemas()}}
VALID = Draft202012Validator(SCHEMA)
TRAINING: dict[str, Any] = {
    "input": {
        "train": {"data_url": "https://example.com/a.zip", "validation": {}},
        "inference": [{"prompt": "a cat"}],
    },
    "s3Config": {
        "accessId": "i",
        "accessSecret": "s",
        "bucketName": "b",
        "endpointUrl": "https://s3.example.com",
    },
    "webhook": "https://example.com/hook",
    "policy": {},
}
DRAWING: dict[str, Any] = {"input": {"model": "org/name", "inference": {"prompt": "a cat"}}}
OUTSIDE = "must be below timestep_end"
"""The one rule that a schema cannot express."""


def is_taken(body: Any) -> bool:
    try:
        parse_request(body)
    except Invalid as invalid:
        return all(OUTSIDE in mistake for mistake in invalid.mistakes)
    return True


def with_value(body: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    body = copy.deepcopy(body)
    place: Any = body
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return body


PATHS: list[tuple[dict[str, Any], tuple[Any, ...]]] = [
    *((TRAINING, ("input", "train", name)) for name in Train.__struct_fields__),
    *((TRAINING, ("input", "train", "validation", name)) for name in Validation.__struct_fields__),
    *((TRAINING, ("input", "inference", 0, name)) for name in Inference.__struct_fields__),
    *((TRAINING, ("s3Config", name)) for name in S3Config.__struct_fields__),
    *((TRAINING, ("policy", name)) for name in Policy.__struct_fields__),
    *((TRAINING, (name,)) for name in ("webhook", "webhookV2", "webhook_events_filter")),
    *((TRAINING, (name,)) for name in ("input", "policy", "s3Config", "nonsense")),
    *((body, ("input", name)) for body in (TRAINING, DRAWING) for name in ("train", "model")),
    *((body, ("input", name)) for body in (TRAINING, DRAWING) for name in ("inference", "x")),
]
NUMBERS = [-1, 0, 1, 2, 3, 4, 5, 10, 11, 20, 21, 100, 101, 500, 501, 512, 999, 1000, 1001, 1024]
EDGES = [5_000, 4_999, 9_999, 10_000, 7 * 24 * 3600 * 1000, 7 * 24 * 3600 * 1000 + 1, 2**63, 2.0]
TEXTS = ["", "x", "mse", "K-LMS", "cosine", "ckpt", "store:x", "start", "http://", "https://u@x/"]
ADDRESSES = [
    "http://x.org/\n", "HTTPS://x.org:80?q", "http://[::1]/", "http://[::1", "//x.org",
    "http://[1:2:3]/", "http://[1:2:3:4:5:6:7:8]:65535", "http://x.org:65536", "http://x.org:",
    " b", "b\n", "s3://b", "b/c", "/a//b/", "/a/b/", "a/../b", "..", ".a", "\u00a0a", "a\u00fc",
    "org/name", "org/name\n", "file:///x", "a:b", "[", "http://x.org/a#b", "http://x.org/a",
]  # fmt: skip
VALUES = st.one_of(
    st.sampled_from([*NUMBERS, *EDGES, *TEXTS, *ADDRESSES]),
    st.sampled_from([None, True, False, [], {}, [""], ["start"], ["start", "x"], [None]]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(),
    st.text(max_size=5),
    st.sampled_from([{"prompt": ""}, [{"prompt": "a"}], [{}], {"data_url": "https://x.org"}]),
)


@pytest.mark.parametrize("examples", [300, pytest.param(3000, marks=pytest.mark.long)])
def test_what_the_schema_allows_is_taken_and_nothing_else(examples: int) -> None:
    @settings(deadline=None, max_examples=examples, derandomize=True)
    @given(st.sampled_from(PATHS), VALUES)
    def agree(at: Any, value: Any) -> None:
        body = with_value(at[0], at[1], value)

        assert VALID.is_valid(body) == is_taken(body), (at[1], value)

    agree()


@pytest.mark.parametrize("body", [TRAINING, DRAWING], ids=["training", "drawing"])
def test_a_whole_request_is_taken_by_both(body: dict[str, Any]) -> None:
    assert VALID.is_valid(body)
    assert is_taken(body)


def test_both_networks_cannot_stay_as_they_are() -> None:
    both = {"disable_unet_training": True, "disable_textenc_training": True}
    body = {"input": {"train": {"data_url": "https://example.com/a.zip", **both}}}

    assert (VALID.is_valid(body), is_taken(body)) == (False, False)


def test_only_what_trains_can_have_its_dataset_checked() -> None:
    checks = Draft202012Validator({**SCHEMA, "$ref": "#/components/schemas/RequestCheck"})

    assert checks.is_valid(TRAINING)
    assert not checks.is_valid(DRAWING)


def test_a_client_finds_the_presets_in_the_schema_and_may_send_what_they_set() -> None:
    told = request_schemas()["RequestTrain"]["x-presets"]

    assert told.keys() == PRESETS.keys()
    for preset, choices in told.items():
        fields = {name: choice["value"] for name, choice in choices.items()}
        assert all(choice["why"] and choice["source"] for choice in choices.values())
        assert fields == {name: choice.value for name, choice in PRESETS[preset].items()}
        train = {"data_url": "https://example.com/a.zip", **fields}
        assert VALID.is_valid({"input": {"train": train}})


def test_the_bounds_are_in_the_schema_and_not_only_in_the_check() -> None:
    told = json.dumps(request_schemas()["RequestTrain"]["properties"]["batch_size"])

    assert '"minimum": 1, "maximum": 1024' in told
