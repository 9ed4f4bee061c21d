"""A browser's session: a cookie that stands for a key, which the page itself need not keep.

The cookie names the key's owner, sealed by the deployment's secret, and ends with the key. Pages of
other sites cannot use it: a browser does not send it with their requests (``SameSite=Strict``), and
whoever changes something must send a header that they cannot set.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable

import msgspec
from aiohttp import web
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from msgspec import Struct

from shared.keys import NONCE_BYTES, derive

SESSION_SECONDS = 30 * 86_400
PROTECTION = "X-Requested-With"
"""Needed to change anything by a session.

Source: OWASP, Cross-Site Request Forgery Prevention Cheat Sheet, on custom request headers.
"""
SAFE = ("GET", "HEAD", "OPTIONS")


class _Session(Struct, frozen=True):
    owner: str
    ends_at: int


class Sessions:
    """Makes and reads the cookies of one deployment."""

    def __init__(self, key: str, *, is_secure: bool, clock: Callable[[], float]) -> None:
        """``key`` is the deployment's secret; ``is_secure``: browsers reach us by HTTPS only."""
        self._cipher = AESGCM(derive(key, "sessions"))
        self._is_secure = is_secure
        self._clock = clock
        # A browser sends its cookies to every port of a host: each deployment has its own name.
        self._cookie = f"everydream_{derive(key, 'cookie').hex()[:8]}"

    def owner(self, request: web.Request) -> str | None:
        """The owner whose session the request belongs to; None: it has none that is valid.

        Raises:
            web.HTTPForbidden: it would change something, without the header against forgery.
        """
        session = self._opened(request.cookies.get(self._cookie, ""))
        if session is None or session.ends_at <= self._clock():
            return None
        if request.method not in SAFE and PROTECTION not in request.headers:
            raise web.HTTPForbidden(
                text=f"{PROTECTION}: this header is missing; a session changes nothing without it"
            )
        return session.owner

    def begin(self, response: web.StreamResponse, owner: str) -> None:
        """Let the browser keep a session."""
        session = _Session(owner, int(self._clock()) + SESSION_SECONDS)
        nonce = os.urandom(NONCE_BYTES)
        sealed = self._cipher.encrypt(nonce, msgspec.msgpack.encode(session), None)
        response.set_cookie(
            self._cookie,
            base64.urlsafe_b64encode(nonce + sealed).decode(),
            max_age=SESSION_SECONDS,
            httponly=True,
            samesite="Strict",
            secure=self._is_secure,
        )

    def end(self, response: web.StreamResponse) -> None:
        """Let the browser forget its session."""
        response.del_cookie(self._cookie)

    def _opened(self, text: str) -> _Session | None:
        try:
            raw = base64.urlsafe_b64decode(text)
            plain = self._cipher.decrypt(raw[:NONCE_BYTES], raw[NONCE_BYTES:], None)
        except (InvalidTag, ValueError):  # ValueError: not base64, or too short
            return None
        return msgspec.msgpack.decode(plain, type=_Session)
