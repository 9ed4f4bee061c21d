"""Name the nearest path where there is none."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import SequenceMatcher

from aiohttp import web

from services.gateway.web.routing import Handler
from shared.request import BASE_PATHS

LIKE = 0.75
"""Likeness of a path that may be meant."""
MAX_LETTERS, MAX_PARTS = 200, 8
"""Of a path that is compared: anybody can ask for any, without a key."""


@web.middleware
async def suggest_path(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer 404 with the nearest path, unless a handler has found that a thing does not exist."""
    try:
        return await handler(request)
    except web.HTTPNotFound:
        if request.match_info.http_exception is None:
            raise
    near = nearest_path(request.path, _paths_of(request.app))
    hint = f"did you mean {near}?" if near else "/docs lists all"
    raise web.HTTPNotFound(text=f"there is no such path; {hint}")


def _paths_of(app: web.Application) -> list[str]:
    return [resource.canonical for resource in app.router.resources()]


def nearest_path(path: str, known: list[str]) -> str | None:
    """The known path that is like the end of the given one, whatever stands before that.

    Names in braces stand for anything. Of the base paths, the given one's, or else the first.
    """
    given = path.lower().strip("/").split("/")
    if len(path) > MAX_LETTERS or len(given) > MAX_PARTS:
        return None
    best, likeness = None, LIKE
    for base, operation in _split(path, known):
        parts = operation.strip("/").split("/")
        end = given[-len(parts) :]
        if len(end) < len(parts):
            continue
        fixed = [
            (name, there)
            for name, there in zip(parts, end, strict=True)
            if not name.startswith("{")
        ]
        if not fixed:
            continue
        wanted, told = ("/".join(side) for side in zip(*fixed, strict=True))
        like = SequenceMatcher(None, told, wanted, autojunk=False)
        if like.real_quick_ratio() > likeness and (ratio := like.ratio()) > likeness:
            best, likeness = f"{base}{operation}", ratio
    return best


def _split(path: str, known: list[str]) -> Iterator[tuple[str, str]]:
    """Each known path as base and operation; of the bases only one."""
    base = next((each for each in BASE_PATHS if path.startswith(each[:3])), BASE_PATHS[0])
    for each in known:
        if each.startswith(f"{base}/"):
            yield base, each.removeprefix(base)
        elif not each.startswith(tuple(BASE_PATHS)):
            yield "", each
