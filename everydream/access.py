"""Where the gateway is, with which key it is reached, and errors of talking to it."""

from __future__ import annotations

import os
import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import NamedTuple

import aiohttp

from everydream.client import Client, Rejected, is_temporary, why_unanswered
from services.gateway.web.authentication import CLIENT_FILE
from shared.errors import Refused, Unavailable
from shared.request import is_http_url
from shared.settings import Settings

TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=300)
"""In seconds. A transfer may take any time, but not stall."""
WHAT_TO_DO = (
    "is the server up, and is that its address? `everydream serve` starts one on this machine;"
    " --url or EVERYDREAM_URL names another"
)


class Access(NamedTuple):
    """The gateway's URL, and a key for it."""

    url: str
    key: str
    flags: str = ""
    """What a further command needs to reach the same gateway, besides the environment.

    A key that was given is not shown: who copies the command puts it in again.
    """


def access(url: str | None, key: str | None, settings: Settings) -> Access:
    """The gateway's URL and a key for it, each as given or else as the home folder keeps it.

    A URL without a scheme is taken as http. A server's start has written the kept ones; that key is
    sent only to the gateway that it belongs to.

    Raises:
        Refused: there is no key, or the URL is none.
    """
    kept = None if url and key else _kept_access(settings)
    flags = " --key KEY" if key and key != os.environ.get("EVERYDREAM_API_KEY") else ""
    address = http_url(url) if url else kept.url if kept else settings.public_url
    if not key and kept and kept.url == address:
        key = kept.key
    if not key:
        raise Refused(_missing_key(address, settings))
    if url and url != os.environ.get("EVERYDREAM_URL"):
        flags = f" --url {address}{flags}"
    return Access(address, key, flags)


def address_of(settings: Settings) -> str:
    """The gateway that commands without flags talk to. Raises Refused."""
    if url := os.environ.get("EVERYDREAM_URL"):
        return http_url(url)
    kept = _kept_access(settings)
    return kept.url if kept else settings.public_url


def http_url(text: str) -> str:
    """A gateway's address, with a scheme and without a slash at its end. Raises Refused."""
    url = (text if "://" in text else f"http://{text}").rstrip("/")
    if not is_http_url(url):
        raise Refused(f"{text}: expected the gateway's address, as http://127.0.0.1:8080")
    return url


def _kept_access(settings: Settings) -> Access | None:
    kept = settings.home / CLIENT_FILE
    try:
        stored = tomllib.loads(kept.read_text())
        return Access(str(stored["url"]).rstrip("/"), str(stored["key"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError) as error:
        raise Refused(f"{kept} cannot be read ({error}); give --url and --key") from None


def _missing_key(url: str, settings: Settings) -> str:
    """What is missing, what there is, and what to do."""
    kept = settings.home / CLIENT_FILE
    lines = [f"no key for {url}: give --key KEY, or set EVERYDREAM_API_KEY"]
    if os.environ.get("EVERYDREAM_API_KEYS"):
        lines.append("EVERYDREAM_API_KEYS is what a server lets in; a client sends one of them")
    elif kept.exists():
        lines.append(f"the key in {kept} belongs to another gateway, and is sent to that one only")
    else:
        lines.append(
            f"there is no {kept}, which `everydream serve` writes at its first start on this"
            " machine, unless its keys are set by EVERYDREAM_API_KEYS"
        )
    return "\n  ".join(lines)


@asynccontextmanager
async def client_of(gateway: Access) -> AsyncIterator[Client]:
    """A client of the gateway.

    Raises:
        Refused: the gateway rejects a request; names every mistake.
        Unavailable: it does not answer.
    """
    try:
        async with aiohttp.ClientSession(timeout=TIMEOUT) as session:
            yield Client(session, gateway.url, gateway.key)
    except aiohttp.ClientResponseError as error:
        raise _refusal(error, gateway.url) from None
    except (aiohttp.ClientError, TimeoutError) as error:
        raise Unavailable(f"{gateway.url}: {why_unanswered(error)}; {WHAT_TO_DO}") from None


def _refusal(error: aiohttp.ClientResponseError, url: str) -> Refused | Unavailable:
    """Whether the same request may succeed later; for a command's 409 something must change."""
    if not isinstance(error, Rejected):
        text = f"{url}: {error.status} {error.message}"
    elif error.status == HTTPStatus.UNAUTHORIZED:
        text = f"{url} does not let this key in; give another by --key or EVERYDREAM_API_KEY"
    else:
        text = "\n  - ".join([f"{url} says:", *error.mistakes])
    is_over = error.status == HTTPStatus.CONFLICT or not is_temporary(error)
    return Refused(text) if is_over else Unavailable(text)


async def check_key(client: Client) -> bool:
    """Find out whether the key may submit, before anything long is begun.

    Returns whether it may look at jobs, too; one that may not may submit all the same.

    Raises:
        Refused: it may not submit.
        aiohttp.ClientError: it is not let in, or the gateway does not answer.
    """
    try:
        scopes = await client.scopes()
    except aiohttp.ClientResponseError as error:
        if error.status != HTTPStatus.NOT_FOUND:
            raise
        scopes = []
    if not scopes:
        return await _may_look(client)
    if "submit" not in scopes:
        raise Refused(
            f"this key may not submit jobs: it has no scope submit, only {' and '.join(scopes)};"
            " give another by --key or EVERYDREAM_API_KEY (`everydream keys make NAME` makes one)"
        )
    return "read" in scopes


async def _may_look(client: Client) -> bool:
    """The same of a key that is not let in, or of an older gateway, which tells no scopes."""
    try:
        await client.health()
    except aiohttp.ClientResponseError as error:
        if error.status != HTTPStatus.FORBIDDEN:
            raise
        return False
    return True
