"""The guard for URLs that users give: no connection to a private address, under any name.

IP literals bypass a resolver, and names, redirects and rebinding bypass a check of the URL. So a
:class:`Guard` sees the address of every connection attempt. :func:`guarded_session` applies it;
other aiohttp clients take a :class:`GuardedResolver` and the guard's ``open_socket``.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from shared.errors import Refused
from shared.network.addresses import ADVICE, AllowedHosts, is_forbidden, shown_url, why_not

CONNECT_SECONDS = 15.0
AddressInfo = tuple[Any, Any, int, str, tuple[Any, ...]]
"""As returned by :func:`socket.getaddrinfo`; the last part starts with address and port."""


class Blocked(OSError):
    """The guard did not allow a connection; HTTP clients wrap this in errors of their own."""


class Guard:
    """Decides about connections; ``allowed`` holds ``host`` or ``host:port``, names or addresses.

    An allowed name may resolve to a private address. The guard remembers address and port that it
    resolved to and allows this connection, but no other port at that address.
    """

    def __init__(self, allowed: frozenset[str]) -> None:
        self._allows = AllowedHosts(allowed)
        self._resolved: set[tuple[str, int]] = set()

    def check_url(self, url: str) -> None:
        """Check a URL before connecting.

        Raises:
            Refused: names the URL and what is wrong with it.
        """
        if reason := why_not(url, self._allows):
            raise Refused(f"{shown_url(url)}: {reason}")

    def check_answers(self, host: str, port: int, addresses: list[str]) -> None:
        """Check what a name resolved to.

        Raises:
            Blocked: an address is forbidden and the name is not allowed.
        """
        if self._allows(host, port):
            self._resolved.update((address, port) for address in addresses)
        elif not all(self.passes(address, port) for address in addresses):
            raise Blocked("the guard does not allow this address")

    def passes(self, address: str, port: int) -> bool:
        """Whether a connection to an address may be opened."""
        allowed = (address, port) in self._resolved or self._allows(address, port)
        return allowed or not is_forbidden(address)

    def open_socket(self, info: AddressInfo) -> socket.socket:
        """The socket for one connection attempt.

        Raises:
            Blocked: the address is forbidden.
        """
        family, kind, protocol, _, (address, port, *_) = info
        if not self.passes(address, port):
            raise Blocked("the guard does not allow this address")
        return socket.socket(family, kind, protocol)


class GuardedResolver(AbstractResolver):
    """Resolves names as usual, and rejects answers that the guard does not allow."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._resolver = aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        answers = await self._resolver.resolve(host, port, family)
        self._guard.check_answers(host, port, [answer["host"] for answer in answers])
        return answers

    async def close(self) -> None:
        await self._resolver.close()


def guarded_session(
    allowed: frozenset[str], *, read: float = 60.0, keeps_cookies: bool = False
) -> aiohttp.ClientSession:
    """A session that opens no connection to a forbidden address.

    ``read`` is the most seconds between two pieces of a response. With
    ``keeps_cookies`` all its URLs must be one user's. Wrap requests in :func:`refusing` to get the
    guard's reason.
    """
    guard = Guard(allowed)
    connector = aiohttp.TCPConnector(
        resolver=GuardedResolver(guard), socket_factory=guard.open_socket, use_dns_cache=False
    )
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=read)
    jar = None if keeps_cookies else aiohttp.DummyCookieJar()
    return aiohttp.ClientSession(
        connector=connector, timeout=timeout, trust_env=False, cookie_jar=jar
    )


def check_url(url: str, allowed: frozenset[str]) -> None:
    """As :meth:`Guard.check_url`, without a guard."""
    Guard(allowed).check_url(url)


@contextmanager
def refusing(url: str) -> Iterator[None]:
    """Turn an HTTP client's error for a blocked connection into a clear reason.

    Raises:
        Refused: names the URL and that its host is private.
    """
    try:
        yield
    except Exception as error:
        if was_blocked(error):
            host = urlsplit(url).hostname
            raise Refused(
                f"{shown_url(url)}: {host} resolves to a private address; {ADVICE}"
            ) from None
        raise


def was_blocked(error: BaseException | None) -> bool:
    """Whether the guard caused an error, however it is wrapped."""
    if error is None:
        return False
    if isinstance(error, Blocked):
        return True
    return was_blocked(getattr(error, "os_error", None)) or was_blocked(
        error.__cause__ or error.__context__
    )


def connection_failure(error: Exception) -> str:
    """Why there is no connection to a user's server, in words that show no address it resolves to.

    What aiohttp and the system say of it names the address that was tried.
    """
    match error:
        case aiohttp.ClientConnectorCertificateError() | aiohttp.ClientConnectorSSLError():
            return f"no secure connection: {error}"
        case aiohttp.ClientConnectorDNSError():
            return f"the name {error.host} cannot be resolved"
        case aiohttp.ClientConnectorError():
            return f"no connection to {error.host}:{error.port}{_in_words(error.errno)}"
        case aiohttp.ServerDisconnectedError():
            return "the server closed the connection without an answer"
        case OSError():
            return f"the connection failed{_in_words(error.errno)}"
    return f"the connection failed ({type(error).__name__})"


def _in_words(number: int | None) -> str:
    return f" ({os.strerror(number)})" if number else ""
