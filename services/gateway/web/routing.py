"""What an operation is: said over its handler, for the router and for the OpenAPI document."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, TypeVar

from aiohttp import web

from services.gateway.web.rate_limits import Operation

JSON = "application/json"
PATTERN = re.compile(r"\{(\w+):[^}]+\}")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Method = TypeVar("Method", bound=Callable[..., Awaitable[web.StreamResponse]])


class Parameter(NamedTuple):
    """A query parameter or a header."""

    name: str
    place: Literal["query", "header"]
    kind: Any
    """As msgspec describes it."""
    text: str
    required: bool = False


class Body(NamedTuple):
    """What a request carries."""

    media: str
    schema: dict[str, Any]
    text: str
    required: bool = True


class Answer(NamedTuple):
    """What is said when all is well."""

    text: str
    kind: Any = None
    """Of JSON, as msgspec describes it; None: nothing, or another media type."""
    media: str = ""
    """Of what is not JSON."""
    headers: Mapping[str, str] = {}
    """By name, what they say; always there."""


class Route(NamedTuple):
    """One operation, under every version of the endpoint's address if it is the endpoint's."""

    methods: tuple[str, ...]
    path: str
    summary: str
    needs: Operation | None
    """What it is counted as, which also says the key's scope; None: needs no key."""
    answers: Mapping[int, Answer]
    errors: tuple[int, ...]
    """Besides those that a key, a JSON body and a name in the path bring along."""
    parameters: tuple[Parameter, ...]
    body: Body | None
    versioned: bool

    @property
    def plain_path(self) -> str:
        """The path with bare names in braces."""
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
) -> Callable[[Method], Method]:
    """Make a method the handler of this operation; its class is one of the application's parts.

    Where the operation needs a key, the method gets the request and its owner, whom
    :class:`services.gateway.web.authorization.Authorizer` has let in; else the request alone.
    """
    methods = (methods,) if isinstance(methods, str) else methods
    described = Route(methods, path, summary, needs, answers, errors, parameters, body, versioned)

    def describe(method: Method) -> Method:
        vars(method)["route"] = described
        return method

    return describe


def routes_of(kind: type) -> Iterator[tuple[str, Route]]:
    """Every handler's name in this class, and what it handles, in the order of the code."""
    for name, member in vars(kind).items():
        if isinstance(found := getattr(member, "route", None), Route):
            yield name, found
