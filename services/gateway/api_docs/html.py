"""Render both documents as one HTML page, which needs no script and no other host."""

from __future__ import annotations

import json
import re
import shlex
from base64 import b64encode
from collections.abc import Iterator
from hashlib import sha256
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from services.gateway.api_docs.examples import Example, Request, examples_of
from services.gateway.api_docs.schemas import Schema

HERE = Path(__file__).parent
STYLE = (HERE / "page.css").read_text(encoding="utf-8")
POLICY = (
    "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; style-src"
    f" 'sha256-{b64encode(sha256(STYLE.encode()).digest()).decode()}'"
)
"""The page's Content-Security-Policy: only its own style."""
METHODS = ("get", "post", "put", "patch", "delete", "head", "options")
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


class Shown(NamedTuple):
    """An example as the page shows it."""

    summary: str
    request: str
    """A shell command."""
    answer: str


class Operation(NamedTuple):
    """An operation as the page shows it."""

    id: str
    method: str
    path: str
    summary: str
    description: str
    parameters: list[Schema]
    body: Schema | None
    responses: dict[str, Schema]
    examples: list[Shown]


class BrokerMessage(NamedTuple):
    """A message as the page shows it."""

    name: str
    message: Schema
    senders: list[str]
    receivers: list[str]
    payload: Schema


def page(openapi: Schema, asyncapi: Schema, url: str) -> str:
    """The whole page.

    Args:
        openapi: the operations.
        asyncapi: the messages.
        url: of this service, for the examples.
    """
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "in_text": in_text,
        "json": json.dumps,
        "last_part": _last_part,
        "open_fields": _open_fields,
        "prose": _prose,
        "type_and_bounds": _type_and_bounds,
    }
    return environment.get_template("page.html.jinja").render(
        openapi=openapi,
        asyncapi=asyncapi,
        operations=list(_operations(openapi, url)),
        messages=[_message(asyncapi, name) for name in asyncapi["components"]["messages"]],
        schemas={**asyncapi["components"]["schemas"], **openapi["components"]["schemas"]},
        style=Markup(STYLE),  # noqa: S704 - our own file
    )


# --- Filters ----------------------------------------------------------------------------------


def _prose(text: str) -> Markup:
    """Markdown with code spans only."""
    marked = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    return Markup(marked)  # noqa: S704 - escaped in the line above


def _last_part(reference: str) -> str:
    return reference.rpartition("/")[2]


def _open_fields(schema: Schema) -> list[tuple[str, Schema]]:
    """The fields of an object without a name, except those that must be left out."""
    return [(key, each) for key, each in schema["properties"].items() if each != {"type": "null"}]


def _type_and_bounds(schema: Schema) -> str:
    types: Any = schema.get("type", "anything")
    named = " or ".join(types) if isinstance(types, list) else types
    bounds = [f"{sign} {schema[key]:g}" for key, sign in BOUNDS.items() if key in schema]
    return f"{named} {' and '.join(bounds)}".strip()


# --- Operations -------------------------------------------------------------------------------


def _operations(openapi: Schema, url: str) -> Iterator[Operation]:
    for path, item in openapi["paths"].items():
        servers = item.get("servers") or openapi["servers"]
        base = servers[0]["url"].rstrip("/")
        for method in METHODS:
            if method in item:
                operation = item[method]
                yield Operation(
                    id=operation["operationId"],
                    method=method,
                    path=path,
                    summary=operation["summary"],
                    description=operation.get("description", "Needs no key."),
                    parameters=[*item.get("parameters", ()), *operation.get("parameters", ())],
                    body=operation.get("requestBody"),
                    responses={
                        status: _resolved(openapi, status, response)
                        for status, response in operation["responses"].items()
                    },
                    examples=_examples(f"{url}{base}{path}", method, operation),
                )


def _resolved(openapi: Schema, status: str, response: Schema) -> Schema:
    shared: Schema = openapi["components"]["responses"]
    return shared[status] if "$ref" in response else response


def _examples(address: str, method: str, operation: Schema) -> list[Shown]:
    """Errors are shown apart."""
    own = [int(status) for status, each in operation["responses"].items() if "$ref" not in each]
    return [
        Shown(each.summary, _curl(address, method, operation, each.request), _received(each))
        for each in examples_of(operation["operationId"], own)
    ]


def _curl(address: str, method: str, operation: Schema, request: Request) -> str:
    """A shell command that sends the request."""
    options: dict[str, list[str]] = {"get": [], "head": ["-I"]}
    query = urlencode(request.query, doseq=True)
    place = re.sub(r"\{(\w+)\}", lambda found: quote(request.path[found[1]]), address)
    words = ["curl", *options.get(method, ["-X", method.upper()]), f"{place}{query and '?'}{query}"]
    headers = {"Authorization": "Bearer YOUR-KEY"} if operation["security"] else {}
    if request.body is not None:
        (headers["Content-Type"],) = operation["requestBody"]["content"]
    for name, value in (headers | request.headers).items():
        words += ["-H", f"{name}: {value}"]
    if request.body is not None:
        is_text = isinstance(request.body, str)
        words += ["--data-binary" if is_text else "-d", in_text(request.body, indent=None)]
    return re.sub(r" (-H|-d|--data-binary) ", r" \\\n  \1 ", shlex.join(words))


def _received(example: Example) -> str:
    """The answer as curl would show it with its headers."""
    answer = example.answer
    lines = [f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}"]
    lines += [f"{name}: {value}" for name, value in answer.headers.items()]
    if answer.body is not None:
        lines += ["", in_text(answer.body)]
    return "\n".join([*lines, *(["..."] if example.excerpt else [])])


def in_text(body: Any, indent: int | None = 2) -> str:
    """A body as text; what is no text is JSON."""
    if isinstance(body, str):
        return body
    return json.dumps(body, indent=indent, ensure_ascii=False)


# --- Messages ---------------------------------------------------------------------------------


def _message(asyncapi: Schema, name: str) -> BrokerMessage:
    message = asyncapi["components"]["messages"][name]
    payload = _last_part(message["payload"]["$ref"])
    return BrokerMessage(
        name=name,
        message=message,
        senders=_parties(asyncapi, "send", name),
        receivers=_parties(asyncapi, "receive", name),
        payload=asyncapi["components"]["schemas"][payload],
    )


def _parties(asyncapi: Schema, action: str, name: str) -> list[str]:
    """The services that send or receive this message, each once."""
    found = [
        operation["tags"][0]["name"]
        for operation in asyncapi["operations"].values()
        if operation["action"] == action
        and name in asyncapi["channels"][_last_part(operation["channel"]["$ref"])]["messages"]
    ]
    return list(dict.fromkeys(found))
