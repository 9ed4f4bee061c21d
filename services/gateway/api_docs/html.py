"""The documents as one page for people: HTML that needs no script and no other host."""

from __future__ import annotations

import html
import json
import re
import shlex
from base64 import b64encode
from collections.abc import Iterable, Iterator
from hashlib import sha256
from typing import NamedTuple

from services.gateway.api_docs.schemas import ASKED, Schema

STYLE = """
:root { color-scheme: light dark; --text: #1c2024; --dim: #60646c; --back: #fcfcfd; --box: #f1f2f5;
  --line: #dcdfe5; --link: #0b5fc0; --get: #1a7f4b; --post: #0b5fc0; --delete: #b3261e;
  --other: #7a4fb5; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e8eaed; --dim: #a0a6b0; --back: #131519; --box: #1e2127; --line: #33373f;
    --link: #79b4ff; --get: #5fcf94; --post: #79b4ff; --delete: #ff8a80; --other: #c4a5f5; }
}
* { box-sizing: border-box; }
html { scroll-padding-top: 1rem; }
body { margin: 0; background: var(--back); color: var(--text);
  font: 1rem/1.55 system-ui, sans-serif; display: grid; grid-template-columns: 17rem 1fr; }
nav { position: sticky; top: 0; height: 100vh; overflow-y: auto; padding: 1.5rem 1rem;
  border-right: 1px solid var(--line); font-size: .85rem; }
nav a { display: block; padding: .1rem 0; overflow-wrap: anywhere; }
nav b { display: block; margin: 1rem 0 .3rem; }
main { padding: 1.5rem clamp(1rem, 4vw, 3rem) 6rem; min-width: 0; max-width: 66rem; }
h1 { margin: 0 0 .5rem; font-size: 2rem; } h2 { margin: 3rem 0 1rem; font-size: 1.4rem; }
h3 { margin: 0; font-size: 1.05rem; overflow-wrap: anywhere; }
h4 { margin: 1rem 0 .3rem; font-size: .8rem; color: var(--dim); text-transform: uppercase;
  letter-spacing: .04em; }
a { color: var(--link); text-decoration: none; } a:hover { text-decoration: underline; }
p { margin: .4rem 0; } .dim { color: var(--dim); }
article { border: 1px solid var(--line); border-radius: .6rem; padding: 1rem 1.2rem;
  margin: 1rem 0; }
code, pre { font: .88em/1.5 ui-monospace, "SFMono-Regular", Menlo, monospace; }
code { background: var(--box); border-radius: .3rem; padding: .1rem .3rem;
  overflow-wrap: anywhere; }
pre { background: var(--box); border-radius: .5rem; padding: .8rem 1rem; overflow-x: auto;
  margin: .3rem 0; }
h3 code, pre code { background: none; padding: 0; }
.method { display: inline-block; min-width: 4.2rem; font: 600 .8rem ui-monospace, monospace;
  color: var(--other); }
.get { color: var(--get); } .post { color: var(--post); } .delete { color: var(--delete); }
.table { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: .9rem; }
td, th { border-top: 1px solid var(--line); padding: .35rem .8rem .35rem 0; text-align: left;
  vertical-align: top; font-weight: normal; }
th { white-space: nowrap; width: 22%; } td:nth-child(2) { width: 34%; }
tr:first-child > * { border-top: 0; }
@media (max-width: 50rem) { body { display: block; } nav { position: static; height: auto;
  border-right: 0; border-bottom: 1px solid var(--line); } }
"""
POLICY = (
    "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; style-src"
    f" 'sha256-{b64encode(sha256(STYLE.encode()).digest()).decode()}'"
)
"""The page's Content-Security-Policy: nothing but its own style."""
METHODS = ("get", "post", "put", "patch", "delete", "head", "options")
MORE = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def tag(name: str, *inner: str, **attributes: str) -> Html:
    """An element; what is not HTML yet is escaped. ``class_`` stands for ``class``."""
    given = {key.rstrip("_"): html.escape(value) for key, value in attributes.items()}
    shown = "".join(f' {key}="{value}"' for key, value in given.items())
    return Html(f"<{name}{shown}>{join(inner)}</{name}>")


def join(parts: Iterable[str], between: str = "") -> Html:
    """One after the other."""
    return Html(between.join(x if isinstance(x, Html) else html.escape(x) for x in parts))


def prose(text: str) -> Html:
    """Markdown's code spans, and nothing else of it."""
    return Html(re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text)))


def page(openapi: Schema, asyncapi: Schema, url: str) -> str:
    """The whole page.

    Args:
        openapi: the operations.
        asyncapi: the messages.
        url: of this service, for the examples.
    """
    operations = list(_operations(openapi))
    messages = asyncapi["components"]["messages"]
    schemas = {**asyncapi["components"]["schemas"], **openapi["components"]["schemas"]}
    head = tag(
        "head",
        Html('<meta charset="utf-8"><meta name="viewport" content="width=device-width">'),
        tag("title", f"{openapi['info']['title']}: the interface"),
        tag("style", Html(STYLE)),
    )
    main = tag(
        "main",
        _head(openapi),
        _section("Operations", [_operation(openapi, url, each) for each in operations]),
        _section("Messages", [prose(asyncapi["info"]["description"])]),
        *(_message(asyncapi, name) for name in messages),
        _section("Bodies", [_schema(name, each) for name, each in schemas.items()]),
    )
    nav = _nav(operations, messages, schemas)
    return f"<!doctype html>\n{tag('html', head, tag('body', nav, main), lang='en')}\n"


def _head(openapi: Schema) -> Html:
    links = [tag("a", name, href=name) for name in ("openapi.json", "asyncapi.json")]
    bases = join([tag("code", each["url"]) for each in openapi["servers"]], " and ")
    keys = "Send a key as `Authorization: Bearer KEY`, or bare. For programs: "
    return join(
        [
            tag("h1", openapi["info"]["title"]),
            tag("p", prose(openapi["info"]["description"])),
            tag("p", prose(keys), join(links, ", "), "."),
            tag("p", "The operations are below ", bases, " where nothing else is said."),
        ]
    )


def _section(title: str, parts: Iterable[str]) -> Html:
    return join([tag("h2", title, id=title.lower()), *parts])


def _nav(operations: list[Asked], messages: Schema, schemas: Schema) -> Html:
    def linked(anchor: str, text: str) -> Html:
        return tag("a", text, href=f"#{anchor}")

    return tag(
        "nav",
        tag("b", "Operations"),
        *(
            linked(each.operation["operationId"], f"{each.method.upper()} {each.path}")
            for each in operations
        ),
        tag("b", "Messages"),
        *(linked(f"message-{name}", each["name"]) for name, each in messages.items()),
        tag("b", "Bodies"),
        *(linked(name, name) for name in schemas),
    )


# --- Operations -------------------------------------------------------------------------------


class Asked(NamedTuple):
    """An operation, and where the document has it."""

    path: str
    item: Schema
    method: str
    operation: Schema


def _operations(openapi: Schema) -> Iterator[Asked]:
    for path, item in openapi["paths"].items():
        for method in METHODS:
            if method in item:
                yield Asked(path, item, method, item[method])


def _operation(openapi: Schema, url: str, asked: Asked) -> Html:
    path, item, method, operation = asked
    parameters = [*item.get("parameters", ()), *operation.get("parameters", ())]
    answers = operation["responses"].items()
    return tag(
        "article",
        tag("h3", tag("span", method.upper(), class_=f"method {method}"), tag("code", path)),
        tag("p", operation["summary"], "."),
        tag("p", prose(operation.get("description", "Needs no key.")), class_="dim"),
        _table("Parameters", [_parameter(each) for each in parameters]),
        _table("Body", _body(operation.get("requestBody"))),
        _table("Answers", [_response(openapi, *each) for each in answers]),
        tag("h4", "Example"),
        tag("pre", tag("code", curl(openapi, url, asked))),
        id=operation["operationId"],
    )


def _table(title: str, rows: list[list[str]]) -> Html:
    if not rows:
        return Html()
    lines = [tag("tr", tag("th", row[0]), *(tag("td", cell) for cell in row[1:])) for row in rows]
    return join([tag("h4", title), tag("div", tag("table", *lines), class_="table")])


def _parameter(parameter: Schema) -> list[str]:
    needed = "required" if parameter["required"] else "optional"
    kind = join([kind_of(parameter["schema"]), f"; {parameter['in']}, {needed}"])
    return [tag("code", parameter["name"]), kind, prose(parameter["description"])]


def _body(body: Schema | None) -> list[list[str]]:
    if body is None:
        return []
    return [
        [tag("code", media), kind_of(content.get("schema", {})), body["description"]]
        for media, content in body["content"].items()
    ]


def _response(openapi: Schema, status: str, response: Schema) -> list[str]:
    if "$ref" in response:
        response = openapi["components"]["responses"][status]
    kinds = [kind_of(each.get("schema", {})) for each in response.get("content", {}).values()]
    headers = [tag("code", name) for name in response.get("headers", ())]
    return [tag("code", status), join([*kinds, *headers], ", "), prose(response["description"])]


def curl(openapi: Schema, url: str, asked: Asked) -> str:
    """A command for the shell that asks for this operation."""
    path, item, method, operation = asked
    servers = item.get("servers") or openapi["servers"]
    base = servers[0]["url"].rstrip("/")
    named = re.sub(r"\{\w+\}", "ID", path)
    way: dict[str, list[str]] = {"get": [], "head": ["-I"]}
    words = ["curl", *way.get(method, ["-X", method.upper()])]
    words += [f"{url}{base}{named}", *_curl_headers(operation)]
    for media in operation.get("requestBody", {}).get("content", ()):
        words += ["-H", f"Content-Type: {media}", *_data(openapi, media)]
    return re.sub(r" (-H|-d|--data-binary) ", r" \\\n  \1 ", shlex.join(words))


def _curl_headers(operation: Schema) -> Iterator[str]:
    if operation["security"]:
        yield from ("-H", "Authorization: Bearer my-key")
    for each in operation.get("parameters", ()):
        if each["required"]:
            yield from ("-H", f"{each['name']}: {each['schema'].get('minimum', '')}")


def _data(openapi: Schema, media: str) -> list[str]:
    if media != "application/json":
        return ["--data-binary", "@photos.zip"]
    (example,) = openapi["components"]["schemas"][ASKED]["examples"]
    return ["-d", json.dumps(example)]


# --- Messages ---------------------------------------------------------------------------------


def _message(asyncapi: Schema, name: str) -> Html:
    message = asyncapi["components"]["messages"][name]
    payload = message["payload"]["$ref"].rpartition("/")[2]
    schema = asyncapi["components"]["schemas"][payload]
    return tag(
        "article",
        tag("h3", tag("code", message["name"])),
        tag("p", prose(message.get("summary", ""))),
        _table("Who", [[way, ", ".join(who)] for way, who in _parties(asyncapi, name)]),
        _table("Payload", [_field(schema, *each) for each in schema["properties"].items()]),
        id=f"message-{name}",
    )


def _parties(asyncapi: Schema, name: str) -> Iterator[tuple[str, list[str]]]:
    for action in ("send", "receive"):
        found = [
            operation["tags"][0]["name"]
            for operation in asyncapi["operations"].values()
            if operation["action"] == action and name in _carried(asyncapi, operation)
        ]
        yield f"{action}s", list(dict.fromkeys(found))


def _carried(asyncapi: Schema, operation: Schema) -> Schema:
    channel = operation["channel"]["$ref"].rpartition("/")[2]
    messages: Schema = asyncapi["channels"][channel]["messages"]
    return messages


# --- Schemas ----------------------------------------------------------------------------------


def _schema(name: str, schema: Schema) -> Html:
    fields = schema.get("properties", {})
    return tag(
        "article",
        tag("h3", name),
        tag("p", prose(schema.get("description", ""))),
        _table("Fields", [_field(schema, *each) for each in fields.items()]),
        id=name,
    )


def _field(schema: Schema, name: str, field: Schema) -> list[str]:
    required = name in schema.get("required", ())
    default = f"; {json.dumps(field['default'])} unless said" if "default" in field else ""
    kind = join([kind_of(field), "; required" if required else default])
    return [tag("code", name), kind, prose(field.get("description", ""))]


def kind_of(schema: Schema) -> Html:
    """A schema in a few words; named ones are linked."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return tag("a", name, href=f"#{name}")
    if choices := schema.get("anyOf") or schema.get("oneOf"):
        return join([kind_of(each) for each in choices], " or ")
    if "enum" in schema:
        return join([tag("code", json.dumps(each)) for each in schema["enum"]], ", ")
    return _plain_kind(schema)


def _plain_kind(schema: Schema) -> Html:
    if "const" in schema:
        return tag("code", json.dumps(schema["const"]))
    if schema.get("maxProperties") == 0:
        return tag("code", "{}")
    if schema.get("type") == "array":
        return join(["list of ", kind_of(schema.get("items", {}))])
    if schema.get("properties"):
        inner = [join([tag("code", key), ": ", kind_of(each)]) for key, each in _open(schema)]
        return join(["{", join(inner, ", "), "}"])
    types = schema.get("type", "anything")
    named = " or ".join(types) if isinstance(types, list) else types
    bounds = [f"{sign} {schema[key]:g}" for key, sign in MORE.items() if key in schema]
    return join([f"{named} {' and '.join(bounds)}".strip()])


def _open(schema: Schema) -> Iterator[tuple[str, Schema]]:
    """The fields of an object without a name, but for those that must be left out."""
    return ((key, each) for key, each in schema["properties"].items() if each != {"type": "null"})
