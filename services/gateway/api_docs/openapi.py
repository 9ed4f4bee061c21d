"""The OpenAPI document of everything that is answered over HTTP, made from the routes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from services.gateway.api_docs.schemas import SCHEMA_REF, Schema, components, plain, request_schemas
from services.gateway.jobs.response_types import CheckResult, Error, Progress, Results
from services.gateway.ports import BASE_PATHS
from services.gateway.web.authorization import REQUIRED_SCOPES
from services.gateway.web.rate_limits import RATES, Operation
from services.gateway.web.routing import JSON, Answer, Body, Parameter, Route, routes_of
from shared.dataset.manifest import Report

TITLE = "EveryDream"
ABOUT = (
    "Fine-tune Stable Diffusion by HTTP: POST a zip of captioned images, get a fine-tuned"
    " checkpoint and images drawn from it. Every request but the few that say so needs a key."
)
ERRORS = {
    400: "The body or the parameters have mistakes: all of them are in `mistakes`.",
    401: "No key, or a wrong one.",
    403: "The key lacks the scope that this needs; or the link is not one of ours, or has ended.",
    404: "There is no such thing, or it is another key's.",
    408: "The client fell silent; of an upload is kept what has arrived.",
    409: "It cannot be done as things stand; `error` says why.",
    411: "`Content-Length` is missing.",
    412: "Another version of tus, or a condition that does not hold.",
    413: "The body is too large.",
    415: "Not a body of this kind, or a compressed one.",
    416: "There is no such range.",
    422: "The idempotency key was used for another request, or its job was deleted; or URLs name"
    " private addresses or no hosts, and `mistakes` has them all.",
    429: "Too many requests.",
    503: "The database does not answer.",
    507: "There is no room for what was sent.",
}
ERROR_HEADERS = {
    401: {"WWW-Authenticate": "Bearer"},
    429: {"Retry-After": "Seconds."},
    503: {"Retry-After": "Seconds."},
    507: {"Retry-After": "Seconds."},
}
NAMED = {
    "job": "A job's id.",
    "upload": "An upload's id.",
    "webhook": "A webhook's id, as its deliveries have it.",
    "key": "The file's key in the store; may have slashes.",
}
KEYS: Schema = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "`Authorization: Bearer KEY`"},
    "bare": {"type": "apiKey", "in": "header", "name": "Authorization", "description": "The key."},
}
SHAPES = (Error, Progress, Results, CheckResult, Report)
"""Which no answer names by itself."""


def document(parts: Iterable[type], version: str) -> Schema:
    """The whole document, version 3.1.

    Args:
        parts: the classes whose methods answer.
        version: of the service.
    """
    routes = [route for part in parts for _, route in routes_of(part)]
    kinds = [answer.kind for route in routes for answer in route.answers.values() if answer.kind]
    _, shapes = components([*SHAPES, *kinds])
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
            "schemas": {**request_schemas(), **shapes},
            "responses": {str(status): _error(status) for status in ERRORS},
            "securitySchemes": KEYS,
        },
    }


def _paths(routes: Iterable[Route]) -> Schema:
    paths: Schema = {}
    for route in routes:
        item = paths.setdefault(route.plain_path, _path_item(route))
        for method in route.methods:
            if (method, "GET") != ("HEAD", route.methods[0]):  # the same without its body
                item[method.lower()] = _operation(route, method)
    return paths


def _path_item(route: Route) -> Schema:
    names = re.findall(r"\{(\w+)\}", route.plain_path)
    parameters = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": NAMED[name],
            "schema": {"type": "string"},
        }
        for name in names
    ]
    servers = {} if route.versioned else {"servers": [{"url": "/"}]}
    return {**servers, **({"parameters": parameters} if parameters else {})}


def _operation(route: Route, method: str) -> Schema:
    body = {"requestBody": _request_body(route.body)} if route.body else {}
    parameters = [_parameter(each) for each in route.parameters]
    return {
        "operationId": operation_id(route, method),
        "summary": route.summary,
        **({"description": _limits(route.needs)} if route.needs else {}),
        "security": _security(route.needs),
        **({"parameters": parameters} if parameters else {}),
        **body,
        "responses": _responses(route, method),
    }


def operation_id(route: Route, method: str) -> str:
    """A name for client libraries."""
    words = re.findall(r"[a-z]+", route.plain_path)
    return "_".join([method.lower(), *words])


def _limits(needs: Operation) -> str:
    rate = RATES[needs]
    return (
        f"Needs the scope `{REQUIRED_SCOPES[needs]}`. A key may ask {rate.requests} times in"
        f" {rate.seconds:g} s, and await {rate.at_once} answers at once."
    )


def _security(needs: Operation | None) -> list[Schema]:
    return [{name: [REQUIRED_SCOPES[needs]]} for name in KEYS] if needs else []


def _parameter(parameter: Parameter) -> Schema:
    (kind,), _ = components([parameter.kind])
    several = {"style": "form", "explode": True} if kind.get("type") == "array" else {}
    return {
        "name": parameter.name,
        "in": parameter.place,
        "required": parameter.required,
        "description": plain(parameter.text),
        **several,
        "schema": kind,
    }


def _request_body(body: Body) -> Schema:
    content = {body.media: {"schema": body.schema} if body.schema else {}}
    return {"description": body.text, "required": body.required, "content": content}


def _responses(route: Route, method: str) -> Schema:
    good = {str(status): _answer(answer) for status, answer in route.answers.items()}
    bad = {str(status): _error_of(status, method) for status in sorted(errors_of(route))}
    return {**good, **bad}


def errors_of(route: Route) -> set[int]:
    """Every status by which this operation may refuse or fail."""
    found = set(route.errors)
    if route.needs:
        found |= {401, 403, 429, 503}
    if route.body and route.body.media == JSON:
        found |= {400, 408, 413, 415}
    return found | ({404} if "{" in route.path else set())


def _answer(answer: Answer) -> Schema:
    content: Schema = {answer.media: {}} if answer.media else {}
    if answer.kind:
        (kind,), _ = components([answer.kind])
        content = {JSON: {"schema": kind}}
    return {
        "description": plain(answer.text),
        **({"headers": _headers(answer.headers)} if answer.headers else {}),
        **({"content": content} if content else {}),
    }


def _headers(said: Mapping[str, str]) -> Schema:
    return {
        name: {"description": text, "required": True, "schema": {"type": "string"}}
        for name, text in said.items()
    }


def _error_of(status: int, method: str) -> Schema:
    if method == "HEAD":
        return {"description": ERRORS[status]}
    return {"$ref": f"#/components/responses/{status}"}


def _error(status: int) -> Schema:
    headers = ERROR_HEADERS.get(status)
    return {
        "description": ERRORS[status],
        **({"headers": _headers(headers)} if headers else {}),
        "content": {JSON: {"schema": {"$ref": f"{SCHEMA_REF}Error"}}},
    }
