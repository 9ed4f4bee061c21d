"""Serve the API documents."""

from __future__ import annotations

import asyncio
from functools import cached_property, partial

import msgspec
from aiohttp import web

from services.gateway.api_docs.html import POLICY, page
from services.gateway.api_docs.schemas import Schema
from services.gateway.web.application import json_response
from services.gateway.web.routing import Answer, route


class DocsRoutes:
    """``/openapi.json``, ``/asyncapi.json``, and ``/docs``, which shows both."""

    def __init__(self, openapi: Schema, asyncapi: Schema, url: str) -> None:
        """``url`` is where clients reach the gateway."""
        self._openapi = msgspec.json.encode(openapi)
        self._asyncapi = msgspec.json.encode(asyncapi)
        self._render = partial(page, openapi, asyncapi, url)

    @cached_property
    def _page(self) -> bytes:
        """Rendered when somebody asks for it: a tenth of a second that no start should take."""
        return self._render().encode()

    @route(
        "GET",
        "/openapi.json",
        "Get this document, in OpenAPI 3.1",
        needs=None,
        versioned=False,
        answers={200: Answer("All operations.", dict)},
    )
    async def openapi(self, _request: web.Request) -> web.Response:
        return json_response(self._openapi)

    @route(
        "GET",
        "/asyncapi.json",
        "Get the document of all messages over RabbitMQ, in AsyncAPI 3",
        needs=None,
        versioned=False,
        answers={200: Answer("All messages.", dict)},
    )
    async def asyncapi(self, _request: web.Request) -> web.Response:
        return json_response(self._asyncapi)

    @route(
        "GET",
        "/docs",
        "Get both documents as a page",
        needs=None,
        versioned=False,
        answers={200: Answer("The page.", media="text/html")},
    )
    async def docs(self, _request: web.Request) -> web.Response:
        headers = {"Content-Security-Policy": POLICY}
        body = await asyncio.to_thread(lambda: self._page)
        return web.Response(body=body, content_type="text/html", charset="utf-8", headers=headers)
