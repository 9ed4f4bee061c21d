"""The OpenAPI document has an example of everything, each valid by its schema."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from services.gateway.api_docs.examples import FILE, examples, examples_of, text_of
from services.gateway.api_documents import documents

OPENAPI = documents()["openapi.json"]
OPERATIONS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    operation["operationId"]: (method, item, operation)
    for item in OPENAPI["paths"].values()
    for method, operation in item.items()
    if method not in {"parameters", "servers"}
}
SHARED = OPENAPI["components"]["responses"]
HOSTS = {"example.com", "everydream.example.com", "192.168.0.7"}
"""The last one is what an example of a mistake names."""


def own_answers(operation: str) -> dict[int, dict[str, Any]]:
    """Those that are no errors of the kind that all operations share."""
    method, _, described = OPERATIONS[operation]
    return {
        int(status): response
        for status, response in described["responses"].items()
        if "$ref" not in response and (method != "head" or int(status) < 400)
    }


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_has_an_example_for_each_of_its_answers(operation: str) -> None:
    for status, response in own_answers(operation).items():
        shown = {each.name for each in examples_of(operation, [status])}
        assert shown, status
        for part in (*response.get("content", {}).values(), *response.get("headers", {}).values()):
            assert part["examples"].keys() == shown


@pytest.mark.parametrize("status", SHARED)
def test_an_error_has_an_example(status: str) -> None:
    ((_, content),) = SHARED[status]["content"].items()

    assert content["examples"]
    for header in SHARED[status].get("headers", {}).values():
        assert header["examples"].keys() == content["examples"].keys()


def test_the_document_shows_all_of_an_examples_request() -> None:
    for example in examples():
        _, item, operation = OPERATIONS[example.operation]
        if example.answer.status not in own_answers(example.operation):
            assert (
                example.name
                in SHARED[str(example.answer.status)]["content"]["application/json"]["examples"]
            )
            continue
        shown: dict[str, dict[str, Any]] = {"path": {}, "query": {}, "header": {}}
        for each in (*item.get("parameters", ()), *operation.get("parameters", ())):
            if example.name in each.get("examples", {}):
                shown[each["in"]][each["name"]] = each["examples"][example.name]["value"]
        bodies = [
            each["examples"][example.name]["value"]
            for each in operation.get("requestBody", {}).get("content", {}).values()
            if example.name in each.get("examples", {})
        ]
        request = example.request
        assert shown == {"path": request.path, "query": request.query, "header": request.headers}
        assert bodies == ([] if request.body is None else [request.body])


def shown_with_schemas(within: Any) -> Iterator[tuple[dict[str, Any], str, Any]]:
    """Everywhere in the document: a schema, and the name and value of an example of it."""
    if isinstance(within, dict):
        if "schema" in within:
            for name, example in within.get("examples", {}).items():
                yield within["schema"], name, example["value"]
        for value in within.values():
            yield from shown_with_schemas(value)
    elif isinstance(within, list):
        for value in within:
            yield from shown_with_schemas(value)


def test_every_example_is_valid_by_its_schema() -> None:
    checked = 0
    for schema, name, value in shown_with_schemas(OPENAPI):
        validator = Draft202012Validator({**schema, "components": OPENAPI["components"]})
        assert validator.is_valid(value), (
            name,
            [str(each) for each in validator.iter_errors(value)],
        )
        checked += 1

    assert checked > len(OPERATIONS)


def test_examples_have_names_of_their_own_and_show_no_key_and_no_real_host() -> None:
    names = [each.name for each in examples()]
    text = FILE.read_text(encoding="utf-8")

    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", name) for name in names), names
    assert all(each.operation in OPERATIONS for each in examples())
    assert set(re.findall(r"https?://([^/\"]+)", text)) == HOSTS
    assert "Authorization" not in {name for each in examples() for name in each.request.headers}


def test_the_file_is_as_it_is_written() -> None:
    assert FILE.read_text(encoding="utf-8") == text_of(examples())
