"""The OpenAPI document: valid, true to the code, and the same as the file in docs/."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_type_hints

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from services.gateway.api_docs.openapi import ERRORS, document
from services.gateway.api_documents import documents, text_of
from services.gateway.endpoints.routes import ROUTE_CLASSES
from services.gateway.jobs import response_types
from services.gateway.jobs.fields.names import INPUT_FIELDS, TOP_FIELDS
from services.gateway.web.routing import Answer, route, routes_of

DOCS = Path(__file__).parents[3] / "docs"
OPENAPI, ASYNCAPI = documents().values()
ROUTES = [each for kind in ROUTE_CLASSES for _, each in routes_of(kind)]


def operations() -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (method, path, operation)
        for path, item in OPENAPI["paths"].items()
        for method, operation in item.items()
        if method not in {"parameters", "servers"}
    ]


def references(within: Any) -> list[str]:
    if isinstance(within, dict):
        own = [within["$ref"]] if "$ref" in within else []
        return own + [each for value in within.values() for each in references(value)]
    return (
        [each for item in within for each in references(item)] if isinstance(within, list) else []
    )


@pytest.mark.parametrize("name", ["openapi.json", "asyncapi.json"])
def test_the_file_in_docs_says_what_the_code_says(name: str) -> None:
    written = (DOCS / name).read_text(encoding="utf-8")

    assert written == text_of(documents()[name]), (
        f"docs/{name} is stale: write it by `python -m services.gateway.api_documents docs`"
    )


def test_the_document_is_valid_openapi_31() -> None:
    OpenAPIV31SpecValidator(OPENAPI).validate()
    assert OPENAPI["openapi"].startswith("3.1.")


def test_what_is_not_valid_is_noticed() -> None:
    broken = {**OPENAPI, "paths": {"/run": {"post": {"responses": {"200": {}}}}}}

    assert list(OpenAPIV31SpecValidator(broken).iter_errors())


def test_every_route_is_an_operation_with_a_name_of_its_own() -> None:
    there = {(method, path) for method, path, _ in operations()}
    ours = {(method.lower(), each.plain_path) for each in ROUTES for method in each.methods}

    assert ours - there == {  # as their GET
        ("head", path) for path in ("/files/{key}", "/healthz", "/livez", "/ready", "/readyz")
    }
    assert there <= ours
    names = [operation["operationId"] for _, _, operation in operations()]
    assert len(set(names)) == len(names)


def test_every_body_that_the_answers_are_made_of_is_in_the_document() -> None:
    kinds = [each for each in vars(response_types).values() if isinstance(each, type)]
    bodies = [each for each in kinds if each.__module__ == response_types.__name__]

    assert bodies
    for body in bodies:
        schema = OPENAPI["components"]["schemas"][body.__name__]
        assert schema.get("properties", {}).keys() == get_type_hints(body).keys(), body


def test_every_reference_leads_somewhere() -> None:
    for reference in references(OPENAPI):
        _, section, kind, name = reference.split("/")
        assert name in OPENAPI[section][kind], reference


def test_every_error_that_is_explained_can_happen() -> None:
    said = {status for _, _, operation in operations() for status in operation["responses"]}

    assert {str(status) for status in ERRORS} <= said


def test_what_the_code_says_below_a_field_is_its_description() -> None:
    fields = OPENAPI["components"]["schemas"]["JobStatus"]["properties"]

    assert fields["delayTime"]["description"] == (
        "Milliseconds from submission to the first GPU worker."
    )


def test_the_request_has_every_field_that_is_checked() -> None:
    schemas = OPENAPI["components"]["schemas"]
    training, drawing = schemas["Request"]["properties"]["input"]["oneOf"]

    assert tuple(schemas["Request"]["properties"]) == TOP_FIELDS
    assert set(training["properties"]) == set(drawing["properties"]) == set(INPUT_FIELDS)


class Wishes:
    @route(
        "POST",
        "/wishes/{job}",
        "Wish",
        needs="cancel",
        answers={200: Answer("Granted.", response_types.JobState)},
        errors=(409,),
    )
    async def grant(self) -> Any: ...


def test_a_new_operation_brings_all_that_its_route_says() -> None:
    item = document([Wishes], "1")["paths"]["/wishes/{job}"]

    assert sorted(item) == ["parameters", "post"]
    assert sorted(item["post"]["responses"]) == ["200", "401", "403", "404", "409", "429", "503"]
    assert item["post"]["security"] == [{"bearer": ["submit"]}, {"bare": ["submit"]}]
