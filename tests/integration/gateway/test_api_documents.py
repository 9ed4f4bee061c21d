"""The served documents, and what they say about keys."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from services.gateway.api_docs.examples import examples
from services.gateway.api_docs.html import POLICY, in_text
from services.gateway.api_documents import documents, text_of
from services.gateway.key_ports import StoredKey
from services.gateway.web.authentication import SCOPES, digest_of
from tests.support.gateway_world import World, world

OPENAPI, ASYNCAPI = documents().values()
ROOT = "/v1/everydream-v1"
NOBODY = "00000000-0000-0000-0000-000000000000"


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as one:
        yield one


async def fetched(here: World, path: str) -> tuple[int, dict[str, str], str]:
    """Without a key."""
    async with here.session.get(here.url(path)) as answer:
        return answer.status, dict(answer.headers), await answer.text()


class Reader(HTMLParser):
    """The text of a page, and all its links and resources."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.ids += [value for name, value in attrs if name == "id" and value]
        self.links += [value for name, value in attrs if name in {"href", "src"} and value]

    def handle_data(self, data: str) -> None:
        self.text += data


async def page(here: World) -> Reader:
    reader = Reader()
    reader.feed((await fetched(here, "/docs"))[2])
    return reader


@pytest.mark.parametrize(
    ("path", "document"), [("/openapi.json", OPENAPI), ("/asyncapi.json", ASYNCAPI)]
)
async def test_a_document_is_served_without_a_key(
    here: World, path: str, document: dict[str, Any]
) -> None:
    answer = await here.ask("GET", path, key="nobody's")

    assert (answer.status, answer.body) == (200, json.loads(text_of(document)))


async def test_the_page_needs_no_other_host_and_no_script(here: World) -> None:
    status, headers, text = await fetched(here, "/docs")
    reader = await page(here)

    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert headers["Content-Security-Policy"] == POLICY
    assert POLICY.startswith("default-src 'none'; ")
    assert not reader.tags & {"script", "img", "link", "iframe", "base", "form"}
    assert "url(" not in text
    assert {link for link in reader.links if not link.startswith("#")} == {
        "openapi.json",
        "asyncapi.json",
    }


async def test_the_page_shows_every_operation_message_and_body(here: World) -> None:
    reader = await page(here)

    for path, item in OPENAPI["paths"].items():
        for operation in (each for each in item.values() if "operationId" in each):
            assert operation["operationId"] in reader.ids, path
            assert operation["summary"] in reader.text
    for name, message in ASYNCAPI["components"]["messages"].items():
        assert f"message-{name}" in reader.ids
        assert message["name"] in reader.text
    assert OPENAPI["components"]["schemas"].keys() <= set(reader.ids)


async def test_the_page_shows_what_every_example_sends_and_gets(here: World) -> None:
    text = (await page(here)).text

    for example in examples():
        assert example.summary in text
        assert example.answer.body is None or in_text(example.answer.body) in text, example.name
        is_error = example.answer.status >= 400 and example.operation not in {
            "get_ready",
            "get_readyz",
        }
        for value in () if is_error else map(str, example.request.headers.values()):
            assert value in text, example.name


async def test_every_link_within_the_page_leads_somewhere(here: World) -> None:
    reader = await page(here)
    inside = {link[1:] for link in reader.links if link.startswith("#")}

    assert inside
    assert inside <= set(reader.ids)
    assert len(set(reader.ids)) == len(reader.ids)


async def test_the_example_of_a_job_can_be_pasted_into_a_shell(here: World) -> None:
    text = (await page(here)).text
    (body,) = re.findall(r"/v1/everydream-v1/run \\\n.*?-d '(.*?)'", text, re.DOTALL)

    answer = await here.ask(
        "POST", f"{ROOT}/run", data=body, headers={"Content-Type": "application/json"}
    )

    assert (answer.status, answer.body["status"]) == (200, "IN_QUEUE")


def asked() -> list[tuple[str, str, list[dict[str, list[str]]]]]:
    """Every operation of the endpoint: method, path, and security."""
    return [
        (method.upper(), re.sub(r"\{\w+\}", NOBODY, path), operation["security"])
        for path, item in OPENAPI["paths"].items()
        if "servers" not in item
        for method, operation in item.items()
        if method != "parameters"
    ]


async def status_of(here: World, method: str, path: str, key: str | None) -> int:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    async with here.session.request(method, here.url(f"{ROOT}{path}"), headers=headers) as answer:
        return answer.status


async def test_a_key_is_good_for_what_the_document_says_and_for_nothing_else(here: World) -> None:
    for scope in SCOPES:
        key = StoredKey(digest=digest_of(scope), name=scope, scopes=(scope,), created_at=1.0)
        await here.stores.keys.add(key)
    refused, documented = set(), set()
    for method, path, security in asked():
        needed = {scope for each in security for scopes in each.values() for scope in scopes}
        for scope in SCOPES:
            if await status_of(here, method, path, scope) == 403:
                refused.add((method, path, scope))
            if needed and scope not in needed:
                documented.add((method, path, scope))

    assert refused == documented


async def test_a_key_is_needed_where_the_document_says_so(here: World) -> None:
    for method, path, security in asked():
        status = await status_of(here, method, path, None)
        assert (status == 401) == bool(security), (method, path)
