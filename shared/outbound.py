"""The guard for URLs that users give us: no connection to a private address, by whatever name.

A resolver alone is bypassed by IP literals, and a look at the URL alone by names, redirects and
rebinding; so a :class:`Guard` sees the address of every connection attempt. Ours are made by
:func:`guarded_session`; other aiohttp clients take a guard's resolver and its ``open_socket``.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any
from urllib.parse import SplitResult, urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from shared.errors import Refused

AddressInfo = tuple[Any, Any, int, str, tuple[Any, ...]]
"""As :func:`socket.getaddrinfo` gives it; the last part begins with address and port."""

PUBLIC_V6 = ip_network("2000::/3")

FORBIDDEN = tuple(
    ip_network(network)
    for network in (
        "100.64.0.0/10",  # carrier-grade NAT
        "192.0.0.0/24",  # protocol assignments; some count as global
        "192.88.99.0/24",  # 6to4 relays
        "2001::/23",  # Teredo and other protocol assignments
        "2002::/16",  # 6to4: holds an IPv4 address of anybody's choice
        "3fff::/20",  # documentation
    )
)

ADVICE = "the operator can allow it with EVERYDREAM_ALLOWED_PRIVATE_HOSTS"


class Blocked(OSError):
    """A connection that the guard did not allow; HTTP clients wrap it in errors of their own."""


def is_forbidden(address: str) -> bool:
    """Whether an IP address is not plainly a public one: private, loopback, link-local, shared,
    multicast, reserved, unspecified, or one that wraps an IPv4 address (6to4, NAT64, Teredo).

    An IPv4 address mapped into IPv6 counts as what it is; what is no address is forbidden.
    """  # noqa: D205 - one list
    try:
        ip = ip_address(address)
    except ValueError:
        return True
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped:
        ip = ip.ipv4_mapped
    return not ip.is_global or ip.is_multicast or ip.is_reserved or _is_special(ip)


def _is_special(ip: IPv4Address | IPv6Address) -> bool:
    outside = isinstance(ip, IPv6Address) and ip not in PUBLIC_V6
    return outside or any(ip.version == network.version and ip in network for network in FORBIDDEN)


class Guard:
    """Decides about connections; ``allowed`` holds hosts or ``host:port``, names or addresses.

    A name that is allowed may resolve to a private address. Its connection then passes, because the
    address and port that were resolved for it are remembered; nothing else at that address opens.
    """

    def __init__(self, allowed: frozenset[str]) -> None:
        self._allowed = frozenset(_plain(entry) for entry in allowed)
        self._granted: set[tuple[str, int]] = set()

    def allows(self, host: str, port: int) -> bool:
        """Whether the operator lets users reach this host, a name or an address, on this port."""
        return not self._allowed.isdisjoint({_plain(host), _plain(f"{host}:{port}")})

    def check_answers(self, host: str, port: int, addresses: list[str]) -> None:
        """Look at what a name resolved to.

        Raises:
            Blocked: an address is forbidden and the name is not allowed.
        """
        if self.allows(host, port):
            self._granted.update((address, port) for address in addresses)
        elif not all(self.passes(address, port) for address in addresses):
            raise Blocked("the guard does not allow this address")

    def passes(self, address: str, port: int) -> bool:
        """Whether a connection to an address may be opened."""
        granted = (address, port) in self._granted or self.allows(address, port)
        return granted or not is_forbidden(address)

    def open_socket(self, info: AddressInfo) -> socket.socket:
        """The socket for one connection attempt.

        Raises:
            Blocked: the address is forbidden.
        """
        family, kind, protocol, _, (address, port, *_) = info
        if not self.passes(address, port):
            raise Blocked("the guard does not allow this address")
        return socket.socket(family, kind, protocol)


def _plain(entry: str) -> str:
    return entry.strip().lower().replace("[", "").replace("]", "").rstrip(".")


class GuardedResolver(AbstractResolver):
    """Resolves names like any other, and refuses answers that the guard does not pass."""

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
    allowed: frozenset[str],
    *,
    total: float | None = None,
    connect: float = 15.0,
    read: float = 60.0,
) -> aiohttp.ClientSession:
    """A session that opens no connection to a forbidden address; times are in seconds.

    ``total`` bounds a whole request, ``connect`` its connection, ``read`` the silence between two
    pieces of an answer. Wrap requests in :func:`refusing` to have the guard's reason.
    """
    guard = Guard(allowed)
    connector = aiohttp.TCPConnector(
        resolver=GuardedResolver(guard), socket_factory=guard.open_socket, use_dns_cache=False
    )
    timeout = aiohttp.ClientTimeout(total=total, sock_connect=connect, sock_read=read)
    return aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=False)


def check_url(url: str, allowed: frozenset[str]) -> None:
    """Refuse what can be told from the URL alone: its scheme, credentials, a forbidden IP literal.

    Raises:
        Refused: names the URL and the reason.
    """
    parts = _split(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Refused(f"{shown_url(url)}: expected an http or https URL")
    if "@" in parts.netloc:
        raise Refused(f"{shown_url(url)}: a URL with a user name or password is not taken")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    if _is_literal(parts.hostname) and not Guard(allowed).passes(parts.hostname, port):
        raise Refused(f"{shown_url(url)}: {parts.hostname} is a private address; {ADVICE}")


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise Refused(f"{url[:200]}: not a URL ({error})") from None
    return parts


def _is_literal(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


@contextmanager
def refusing(url: str) -> Iterator[None]:
    """Turn what an HTTP client raises for a blocked connection into a clear reason.

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
    """Whether the guard is behind an error, however it was wrapped."""
    if error is None or isinstance(error, Blocked):
        return error is not None
    return was_blocked(getattr(error, "os_error", None)) or was_blocked(
        error.__cause__ or error.__context__
    )


def shown_url(url: str) -> str:
    """A URL as messages show it: without credentials and without its query, which may be a key."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return url.partition("?")[0][:200]
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"[:200]
