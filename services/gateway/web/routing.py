"""Describe an operation at its handler, for the router and the OpenAPI document."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, TypeVar

from aiohttp import hdrs, web

from services.gateway.web.rate_limits import Operation

JSON = "application/json"
PATTERN = re.compile(r"\{(\w+):[^}]+\}")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Method = TypeVar("Method", bound=Callable[..., Awaitable[web.StreamResponse]])


def method_of(request: web.Request) -> str:
    """Its method, or ``_OTHER``: anybody may make up methods."""
    return request.method if request.method in hdrs.METH_ALL else "_OTHER"


def template_of(request: web.Request) -> str | None:
    """The pattern of its route, never the path, which may be a signed link; None: it has none."""
    resource = request.match_info.route.resource
    return resource.canonical if resource else None


class Parameter(NamedTuple):
    """A query parameter or a header."""

    name: str
    place: Literal["query", "header"]
    kind: Any
    """A type that msgspec makes the schema from."""
    text: str
    required: bool = False


class Body(NamedTuple):
    """The body of a request."""

    media: str
    schema: dict[str, Any]
    text: str
    required: bool = True


class Answer(NamedTuple):
    """A response with a good status."""

    text: str
    kind: Any = None
    """The type of a JSON body; None: no body, or another media type."""
    media: str = ""
    """The media type of a body that is not JSON."""
    headers: Mapping[str, str] = {}
    """Description by name; these headers are always sent."""


class Route(NamedTuple):
    """One operation."""

    methods: tuple[str, ...]
    path: str
    summary: str
    needs: Operation | None
    """Its rate limit and scope; None: needs no key."""
    answers: Mapping[int, Answer]
    errors: tuple[int, ...]
    """In addition to those of a key, a JSON body and names in the path."""
    parameters: tuple[Parameter, ...]
    body: Body | None
    versioned: bool
    """Whether it is served below the endpoint's base paths."""
    waits: bool
    """Whether the answer waits for a job: a long poll, or a stream."""

    @property
    def plain_path(self) -> str:
        """The path with nothing but names in braces."""
        return PATTERN.sub(r"{\1}", self.path)


def route(
    methods: str | tuple[str, ...],
    path: str,
    summary: str,
    *,
    needs: Operation | None,
    answers: Mapping[int, Answer],
    errors: tuple[int, ...] = (),
    parameters: tuple[Parameter, ...] = (),
    body: Body | None = None,
    versioned: bool = True,
    waits: bool = False,
) -> Callable[[Method], Method]:
    """Make a method the handler of this operation.

    If the operation needs a key, the method gets the request and its owner, after
    :class:`services.gateway.web.authorization.Authorizer` has checked the key; else the request.
    """
    methods = (methods,) if isinstance(methods, str) else methods
    described = Route(
        methods, path, summary, needs, answers, errors, parameters, body, versioned, waits
    )

    def describe(method: Method) -> Method:
        vars(method)["route"] = described
        return method

    return describe


def routes_of(kind: type) -> Iterator[tuple[str, Route]]:
    """The names of a class's handlers with their routes, in the order of the code."""
    for name, member in vars(kind).items():
        if isinstance(found := getattr(member, "route", None), Route):
            yield name, found
