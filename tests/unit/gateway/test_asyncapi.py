"""The AsyncAPI document: consistent, and true to what the services publish and receive."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from jsonschema import Draft202012Validator
from msgspec import NODEFAULT
from msgspec import inspect as types

from services.gateway.api_docs.asyncapi import (
    PRODUCER_RECEIVES,
    PUBLISHES,
    REPLIES,
    bound_to,
    every_message,
)
from services.gateway.api_documents import documents
from shared.messaging.messages import Message, decode, encode, type_of
from shared.messaging.topology import JOB_ENDS, QUEUES

ROOT = Path(__file__).parents[3]
ASYNCAPI = documents()["asyncapi.json"]
KEY = re.compile(r"[A-Za-z0-9_-]+")
"""What AsyncAPI 3 allows as the name of a channel, an operation or a component."""
SERVICES = ("gateway", "fetcher", "trainer", "inferencer", "notifier")
ELSEWHERE = {"gateway": ["services/gateway/jobs/transitions.py"], "": ["shared/worker/runtime.py"]}
"""Modules of ``shared`` that publish for a service; the runtime does for every worker."""


def found(reference: str) -> Any:
    place: Any = ASYNCAPI
    for part in reference.removeprefix("#/").split("/"):
        place = place[int(part) if isinstance(place, list) else part]
    return place


def references(within: Any) -> list[str]:
    if isinstance(within, dict):
        own = [within["$ref"]] if "$ref" in within else []
        return own + [each for value in within.values() for each in references(value)]
    return (
        [each for item in within for each in references(item)] if isinstance(within, list) else []
    )


# --- Its structure ----------------------------------------------------------------------------


def test_every_reference_leads_somewhere() -> None:
    assert references(ASYNCAPI)
    for reference in references(ASYNCAPI):
        assert found(reference), reference


def test_names_are_such_as_the_specification_allows() -> None:
    parts = ASYNCAPI["components"]
    for named in (ASYNCAPI["channels"], ASYNCAPI["operations"], *parts.values()):
        for name in named:
            assert KEY.fullmatch(name), name


def test_every_operation_sends_or_receives_on_a_channel_of_the_document() -> None:
    for name, operation in ASYNCAPI["operations"].items():
        assert operation["action"] in {"send", "receive"}, name
        assert operation["channel"]["$ref"].startswith("#/channels/"), name


def test_a_channel_of_the_exchange_has_the_routing_key_of_its_message() -> None:
    for name, channel in ASYNCAPI["channels"].items():
        if "bindings" in channel and name != "Everything":
            (message,) = channel["messages"].values()
            assert found(message["$ref"])["name"] == channel["address"], name
            assert channel["bindings"]["amqp"]["exchange"]["name"] == "everydream"


# --- Its schemas ------------------------------------------------------------------------------


def a_struct(kind: types.StructType) -> Any:
    needed = {each.name: example(each.type) for each in kind.fields if is_needed(each)}
    return kind.cls(**needed)


EXAMPLES: dict[type[types.Type], Callable[[Any], Any]] = {
    types.StructType: a_struct,
    types.UnionType: lambda kind: example(kind.types[0]),
    types.LiteralType: lambda kind: kind.values[0],
    types.VarTupleType: lambda kind: (example(kind.item_type),),
    types.ListType: lambda kind: [example(kind.item_type)],
    types.DictType: lambda _: {},
    types.IntType: lambda kind: kind.ge or 0,
    types.FloatType: lambda _: 0.5,
    types.StrType: lambda _: "x",
    types.BoolType: lambda _: True,
    types.NoneType: lambda _: None,
}


def example(kind: types.Type) -> Any:
    """A value of a type, with all required fields."""
    return EXAMPLES[type(kind)](kind)


def is_needed(each: types.Field) -> bool:
    return each.default is NODEFAULT and each.default_factory is NODEFAULT


def validator(kind: type[Message]) -> Draft202012Validator:
    schema = {**ASYNCAPI, "$ref": f"#/components/schemas/{kind.__name__}"}
    return Draft202012Validator(schema)


@pytest.mark.parametrize("kind", every_message(), ids=lambda kind: kind.__name__)
def test_a_message_that_the_services_read_is_valid_and_one_that_they_refuse_is_not(
    kind: type[Message],
) -> None:
    message = {**msgspec.json.decode(encode(example(types.type_info(kind)))), "job": "a-job"}
    if kind.__name__ == "JobRequested":
        message = found("#/components/messages/JobRequested/examples/0/payload")

    assert isinstance(decode(msgspec.json.encode(message)), kind)
    validator(kind).validate(message)
    for name in message:
        wrong = {**message, name: {"no": "such thing"} if name != "request" else 3}
        assert not validator(kind).is_valid(wrong) or isinstance(message[name], dict), name


def test_a_request_over_the_broker_is_held_to_the_rules_of_one_over_http() -> None:
    asked = found("#/components/messages/JobRequested/examples/0/payload")
    wrong = {**asked, "request": {"input": {"train": {"data_url": "ftp://example.org/a.zip"}}}}
    (kind,) = [each for each in every_message() if type_of(each) == "job.requested"]

    assert not validator(kind).is_valid(wrong)


# --- Who sends, and who receives --------------------------------------------------------------


def named_in(paths: list[Path]) -> set[str]:
    """The messages that these files name."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in paths]
    known = {kind.__name__ for kind in every_message()}
    names = {each.id for tree in trees for each in ast.walk(tree) if isinstance(each, ast.Name)}
    return known & names


def received(service: str) -> set[str]:
    queues = [queue for queue in QUEUES if queue.name.partition(".")[0] == service]
    received = [kind for queue in queues for kind in bound_to(queue.bindings, every_message())]
    return {kind.__name__ for kind in received}


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_sends_what_its_code_names_and_its_queues_do_not_bring(service: str) -> None:
    own = [*(ROOT / "services" / service).rglob("*.py")]
    own = [path for path in own if path.name != "asyncapi.py"]
    code = named_in(own + [ROOT / path for path in ELSEWHERE.get(service, [])])
    sends = {kind.__name__ for kind in PUBLISHES[service]}
    answers = {kind.__name__ for kind in REPLIES} if service == "gateway" else set()

    both = {"GatewayHeartbeat"} if service == "gateway" else {"StageFailed"}
    assert (code - received(service)) | both == sends | answers


def test_producers_and_consumers_may_do_what_their_logins_let_them() -> None:
    script = (ROOT / "deploy/rabbitmq-users.sh").read_text(encoding="utf-8")
    says, hears = re.findall(r"(?:says|hears)='(\^job.*\$)'", script)
    kinds = [type_of(kind) for kind in every_message()]

    assert [type_of(kind) for kind in PUBLISHES["producer"]] == [
        kind for kind in kinds if re.fullmatch(says, kind)
    ]
    assert {type_of(kind) for kind in PRODUCER_RECEIVES} == {
        k for k in kinds if re.fullmatch(hears, k)
    }


def test_every_message_has_a_sender_and_a_receiver_in_the_document() -> None:
    carried: dict[str, set[str]] = {"send": set(), "receive": set()}
    for operation in ASYNCAPI["operations"].values():
        if operation["tags"] != [{"name": "consumer"}]:
            carried[operation["action"]] |= found(operation["channel"]["$ref"])["messages"].keys()

    everything = {kind.__name__ for kind in every_message()}
    assert carried["send"] == everything
    assert everything - carried["receive"] == {"JobSubmitted"}, "it is for other systems"


def test_of_the_workers_those_that_draw_samples_receive_the_ends_of_jobs() -> None:
    for key in JOB_ENDS:
        (kind,) = bound_to([key], every_message())
        assert f"inferencer-receive-{kind.__name__}" in ASYNCAPI["operations"]
        assert f"trainer-receive-{kind.__name__}" not in ASYNCAPI["operations"]
