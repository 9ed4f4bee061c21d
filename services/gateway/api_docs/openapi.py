"""Make the OpenAPI document of the HTTP API from the routes."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from services.gateway.api_docs.examples import Example, examples, examples_of
from services.gateway.api_docs.schemas import SCHEMA_REF, Schema, components, plain, request_schemas
from services.gateway.jobs.response_types import CheckResult, Error, Progress, Results
from services.gateway.web.authorization import REQUIRED_SCOPES
from services.gateway.web.rate_limits import RATES, Operation
from services.gateway.web.routing import JSON, Body, Parameter, Route, routes_of
from shared.dataset.edits import DatasetEdits
from shared.dataset.manifest import Report
from shared.request import BASE_PATHS

TITLE = "EveryDream"
ABOUT = (
    "Fine-tune Stable Diffusion by HTTP: POST a zip of captioned images, get a fine-tuned"
    " checkpoint and images generated with it. Requests need a key unless their description says"
    " otherwise."
)
ERRORS = {
    400: "The body or the parameters have mistakes: all of them are in `mistakes`.",
    401: "No key, or a wrong one.",
    403: "The key lacks the required scope; or the link is not valid, or has expired.",
    404: "It does not exist, or belongs to another key.",
    408: "The body did not arrive in time; an upload keeps what has arrived.",
    409: "Not possible in the current state; `error` says why.",
    411: "`Content-Length` is missing.",
    412: "Another version of tus, or a precondition failed.",
    413: "The body is too large, or the messages are that the request would cause.",
    415: "The body has the wrong content type, or is compressed.",
    416: "The range is not satisfiable.",
    422: "The idempotency key was used for another request, or its job was deleted; or URLs name"
    " private addresses or no hosts, all listed in `mistakes`.",
    429: "Too many requests; or a budget of the key is used up, which `budget` names.",
    503: "The database does not answer.",
    507: "The store has no room for the data.",
}
ERROR_HEADERS = {
    401: {"WWW-Authenticate": "Bearer"},
    416: {"Content-Range": "``bytes */SIZE``."},
    429: {"Retry-After": "Seconds."},
    503: {"Retry-After": "Seconds."},
    507: {"Retry-After": "Seconds."},
}
PATH_PARAMETERS = {
    "job": "A job's id.",
    "step": "The step at which the checkpoint was saved.",
    "upload": "An upload's id.",
    "webhook": "A webhook's id, as in its deliveries.",
    "letter": "A dead letter's id.",
    "key": "The file's key in the store; may contain slashes.",
}
KEYS: Schema = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "`Authorization: Bearer KEY`"},
    "bare": {"type": "apiKey", "in": "header", "name": "Authorization", "description": "The key."},
}
EXTRA_TYPES = (DatasetEdits, Error, Progress, Results, CheckResult, Report)
"""Types that no answer refers to by its annotation."""


def document(classes: Iterable[type], version: str) -> Schema:
    """The whole document, version 3.1.

    Args:
        classes: with the handlers.
        version: of the service.
    """
    routes = [route for each in classes for _, route in routes_of(each)]
    kinds = [answer.kind for route in routes for answer in route.answers.values() if answer.kind]
    _, schemas = components([*EXTRA_TYPES, *kinds])
    errors = _examples_of_errors(routes)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": TITLE,
            "version": version,
            "description": ABOUT,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": base} for base in BASE_PATHS],
        "paths": _paths(routes),
        "components": {
            "schemas": {**request_schemas(), **schemas},
            "responses": {str(status): _error(status, errors) for status in ERRORS},
            "securitySchemes": KEYS,
        },
    }


def _paths(routes: Iterable[Route]) -> Schema:
    paths: Schema = {}
    for route in routes:
        item = paths.setdefault(route.plain_path, _path_item(route))
        for method in _methods(route):
            item[method.lower()] = _operation(route, method)
    for path, item in paths.items():
        for parameter in item.get("parameters", ()):
            parameter.update(_path_examples(routes, path, parameter["name"]))
    return paths


def _methods(route: Route) -> list[str]:
    """Those that are operations: where there is GET, HEAD is the same without the body."""
    return [each for each in route.methods if (each, "GET") != ("HEAD", route.methods[0])]


def _path_item(route: Route) -> Schema:
    names = re.findall(r"\{(\w+)\}", route.plain_path)
    parameters = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": PATH_PARAMETERS[name],
            "schema": {"type": "string"},
        }
        for name in names
    ]
    servers = {} if route.versioned else {"servers": [{"url": "/"}]}
    return {**servers, **({"parameters": parameters} if parameters else {})}


def _path_examples(routes: Iterable[Route], path: str, name: str) -> Schema:
    """The examples of a parameter in a path, which all operations of the path share."""
    shown = [
        each
        for route in routes
        if route.plain_path == path
        for method in _methods(route)
        for each in examples_of(operation_id(route, method), route.answers)
    ]
    return _examples((each, each.request.path.get(name)) for each in shown)


def _operation(route: Route, method: str) -> Schema:
    needs, body = route.needs, route.body
    shown = examples_of(operation_id(route, method), route.answers)
    parameters = [_parameter(each, shown) for each in route.parameters]
    good = {str(status): _answer(route, status, shown) for status in route.answers}
    bad = {str(status): _error_of(status, method) for status in sorted(errors_of(route))}
    return {
        "operationId": operation_id(route, method),
        "summary": route.summary,
        **({"description": _limits(needs)} if needs else {}),
        "security": [{name: [REQUIRED_SCOPES[needs]]} for name in KEYS] if needs else [],
        **({"parameters": parameters} if parameters else {}),
        **({"requestBody": _request_body(body, shown)} if body else {}),
        "responses": {**good, **bad},
    }


def operation_id(route: Route, method: str) -> str:
    """A name for client libraries."""
    words = re.findall(r"[a-z]+", route.plain_path) or ["root"]
    return "_".join([method.lower(), *words])


def _limits(needs: Operation) -> str:
    rate = RATES[needs]
    return (
        f"Needs the scope `{REQUIRED_SCOPES[needs]}`. A key may send {rate.requests} requests in"
        f" {rate.seconds:g} s, {rate.at_once} of them concurrently."
    )


def _examples(values: Iterable[tuple[Example, Any]]) -> Schema:
    """The examples with their values of one part of them; None: they lack it."""
    shown = {
        example.name: {"summary": example.summary, "value": value}
        for example, value in values
        if value is not None
    }
    return {"examples": shown} if shown else {}


def _parameter(parameter: Parameter, shown: Iterable[Example]) -> Schema:
    (kind,), _ = components([parameter.kind])
    several = {"style": "form", "explode": True} if kind.get("type") == "array" else {}
    return {
        "name": parameter.name,
        "in": parameter.place,
        "required": parameter.required,
        "description": plain(parameter.text),
        **several,
        "schema": kind,
        **_examples(
            (each, (each.request.query | each.request.headers).get(parameter.name))
            for each in shown
        ),
    }


def _request_body(body: Body, shown: Iterable[Example]) -> Schema:
    content = {
        **({"schema": body.schema} if body.schema else {}),
        **_examples((each, each.request.body) for each in shown),
    }
    return {"description": body.text, "required": body.required, "content": {body.media: content}}


def errors_of(route: Route) -> set[int]:
    """Every error status of this operation."""
    found = set(route.errors)
    if route.needs:
        found |= {401, 403, 429, 503}
    if route.body and route.body.media == JSON:
        found |= {400, 408, 413, 415}
    return found | ({404} if "{" in route.path else set())


def _answer(route: Route, status: int, shown: Iterable[Example]) -> Schema:
    answer = route.answers[status]
    content: Schema = {answer.media: {}} if answer.media else {}
    if answer.kind:
        (kind,), _ = components([answer.kind])
        content = {JSON: {"schema": kind}}
    given = [each for each in shown if each.answer.status == status]
    return {
        "description": plain(answer.text),
        **({"headers": _headers(answer.headers, given)} if answer.headers else {}),
        **({"content": _with_examples(content, given)} if content else {}),
    }


def _with_examples(content: Schema, given: Iterable[Example]) -> Schema:
    bodies = _examples((each, each.answer.body) for each in given)
    return {media: {**described, **bodies} for media, described in content.items()}


def _headers(descriptions: Mapping[str, str], given: Collection[Example]) -> Schema:
    return {
        name: {
            "description": plain(text),
            "required": True,
            "schema": {"type": "string"},
            **_examples((each, each.answer.headers.get(name)) for each in given),
        }
        for name, text in descriptions.items()
    }


def _error_of(status: int, method: str) -> Schema:
    if method == "HEAD":
        return {"description": ERRORS[status]}
    return {"$ref": f"#/components/responses/{status}"}


def _examples_of_errors(routes: Iterable[Route]) -> list[Example]:
    """Examples with answers that the routes do not describe themselves."""
    own = {operation_id(route, each): route.answers for route in routes for each in route.methods}
    return [
        each
        for each in examples()
        if each.operation in own and each.answer.status not in own[each.operation]
    ]


def _error(status: int, errors: Iterable[Example]) -> Schema:
    headers = ERROR_HEADERS.get(status)
    given = [each for each in errors if each.answer.status == status]
    content: Schema = {JSON: {"schema": {"$ref": f"{SCHEMA_REF}Error"}}}
    return {
        "description": ERRORS[status],
        **({"headers": _headers(headers, given)} if headers else {}),
        "content": _with_examples(content, given),
    }
