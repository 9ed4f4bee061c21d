"""Where the gateway is, with which key it is reached, and errors of talking to it."""

from __future__ import annotations

import os
import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import NamedTuple

import aiohttp

from everydream.client import Client, Rejected, is_temporary
from services.gateway.web.authentication import CLIENT_FILE
from shared.errors import Refused, Unavailable
from shared.request import is_http_url
from shared.settings import Settings

TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=300)
"""In seconds. A transfer may take any time, but not stall."""


class Access(NamedTuple):
    """The gateway's URL, and a key for it."""

    url: str
    key: str
    flags: str = ""
    """What a further command needs to reach the same gateway, besides the environment."""


def access(url: str | None, key: str | None, settings: Settings) -> Access:
    """URL and key as given, or as the gateway's first start has written them to the home folder.

    A URL without a scheme is taken as http. The key written there is sent only to the gateway
    that it belongs to.

    Raises:
        Refused: there is no key, or the URL is none.
    """
    if key is None and url is None and (kept := _kept_access(settings)):
        return kept
    address = http_url(url) if url else settings.public_url
    if not key and (kept := _kept_access(settings)) and kept.url == address:
        key = kept.key
    if not key:
        raise Refused(_missing_key(address, settings))
    given = url is not None and url != os.environ.get("EVERYDREAM_URL")
    return Access(address, key, f" --url {address}" if given else "")


def http_url(text: str) -> str:
    """A gateway's address, with a scheme and without a slash at its end. Raises Refused."""
    url = (text if "://" in text else f"http://{text}").rstrip("/")
    if not is_http_url(url):
        raise Refused(f"--url {text}: expected the gateway's address, as http://127.0.0.1:8080")
    return url


def _kept_access(settings: Settings) -> Access | None:
    kept = settings.home / CLIENT_FILE
    try:
        stored = tomllib.loads(kept.read_text())
        return Access(str(stored["url"]), str(stored["key"]))
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
    except Rejected as error:
        text = "\n  - ".join([f"{gateway.url} says:", *error.mistakes])
        raise _refusal(error, text) from None
    except aiohttp.ClientResponseError as error:
        raise _refusal(error, f"{gateway.url}: {error.status} {error.message}") from None
    except (aiohttp.ClientError, TimeoutError) as error:
        reason = str(error) or "no answer in time"
        raise Unavailable(
            f"{gateway.url}: {reason}; is the server up, and is that its address?"
        ) from None


def _refusal(error: aiohttp.ClientResponseError, text: str) -> Refused | Unavailable:
    """Whether the same request may succeed later; for a command's 409 something must change."""
    is_over = error.status == HTTPStatus.CONFLICT or not is_temporary(error)
    return Refused(text) if is_over else Unavailable(text)


async def check_key(client: Client, url: str) -> bool:
    """Find out whether the key is let in, before anything long is begun.

    Returns whether it may look at jobs; one that may not may submit all the same.

    Raises:
        Refused: it is not.
        aiohttp.ClientError: the gateway does not answer.
    """
    try:
        await client.health()
    except aiohttp.ClientResponseError as error:
        if error.status == HTTPStatus.UNAUTHORIZED:
            raise Refused(
                f"{url} does not let this key in; give another by --key or EVERYDREAM_API_KEY"
            ) from None
        if error.status != HTTPStatus.FORBIDDEN:
            raise
        return False
    return True
