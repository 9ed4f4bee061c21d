"""Which addresses users may name, judged by the text alone: nothing is resolved or connected to.

URLs are parsed by the library that the HTTP clients use, so that no spelling (full-width digits,
other dots, IPv6 forms) means one host here and another one there.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from yarl import URL

PUBLIC_V6 = ip_network("2000::/3")

FORBIDDEN = tuple(
    ip_network(network)
    for network in (
        "100.64.0.0/10",  # carrier-grade NAT
        "192.0.0.0/24",  # protocol assignments; some count as global
        "192.88.99.0/24",  # 6to4 relays
        "2001::/23",  # Teredo and other protocol assignments
        "2002::/16",  # 6to4: contains any IPv4 address
        "3fff::/20",  # documentation
    )
)

ADVICE = "the operator can allow it with EVERYDREAM_ALLOWED_PRIVATE_HOSTS"
ENTRY = re.compile(r"(?P<host>\[[^\[\]]*\]|[^:\[\]]+)(:(?P<port>[0-9]{1,5}))?")
"""A host allowed by the operator; an IPv6 address with a port has brackets, as in URLs."""
HOST_NAME = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\.?")
NUMBER_AT_THE_END = re.compile(r"(^|\.)([0-9]+|0x[0-9a-f]*)\.?$")
THIS_MACHINE = re.compile(r"(^|\.)localhost\.?$")
PRIVATE = f"the host is a private address; {ADVICE}"
START = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*:)?[/\\]*")
PLAIN = re.compile(r"(\[[^\]]*\]|[^:]*)(:[0-9]+)?")
"""Host and port without anything that may be a password."""


def is_forbidden(address: str) -> bool:
    """Whether an IP address is not clearly public: private, loopback, link-local, shared,
    multicast, reserved, unspecified, or one that wraps an IPv4 address (6to4, NAT64, Teredo).

    An IPv4 address mapped into IPv6 counts as that IPv4 address. Anything that is not an address,
    or has a zone, is forbidden.
    """  # noqa: D205 - one list
    try:
        ip = ip_address(address)
    except ValueError:
        return True
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped:
        ip = ip.ipv4_mapped
    return (
        not ip.is_global or ip.is_multicast or ip.is_reserved or _is_special(ip) or "%" in address
    )


def _is_special(ip: IPv4Address | IPv6Address) -> bool:
    outside = isinstance(ip, IPv6Address) and ip not in PUBLIC_V6
    return outside or any(ip.version == network.version and ip in network for network in FORBIDDEN)


def is_literal(host: str) -> bool:
    """Whether a host is an IP address in its usual form, which needs no resolving."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


class AllowedHosts:
    """The operator's exceptions: ``host`` or ``host:port``, names or addresses."""

    def __init__(self, entries: frozenset[str]) -> None:
        self._allowed = frozenset(_host_and_port(entry) for entry in entries)

    def __call__(self, host: str, port: int) -> bool:
        """Whether users may reach this host, a name or an address, on this port."""
        normalized = _normalized(host)
        return not self._allowed.isdisjoint({(normalized, None), (normalized, port)})


def _host_and_port(entry: str) -> tuple[str, int | None]:
    found = ENTRY.fullmatch(entry.strip())
    if found is None:  # an IPv6 address without brackets
        return _normalized(entry.strip()), None
    return _normalized(found["host"]), int(found["port"]) if found["port"] else None


def _normalized(host: str) -> str:
    """The normalized spelling of a host."""
    text = host.lower().removesuffix(".")
    text = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    return str(ip_address(text)) if is_literal(text) else text


def why_not(url: str, allows: AllowedHosts) -> str | None:
    """Why a URL may not be connected to, judged by its text; None: nothing is wrong with it.

    The reason shows no part of the URL. A name may still resolve to anything.
    """
    try:
        address = URL(url)
        port, host = address.port or 0, address.raw_host
    except ValueError:
        return "not a URL"
    if address.scheme not in ("http", "https") or not host:
        return "expected an http or https URL"
    if "@" in address.raw_authority:
        return "a URL with a user name or password is not taken"
    return None if allows(host, port) else _why_not_host(host)


def _why_not_host(host: str) -> str | None:
    if is_literal(host):
        return PRIVATE if is_forbidden(host) else None
    if THIS_MACHINE.search(host):
        return PRIVATE
    if NUMBER_AT_THE_END.search(host):
        return "the host is a number: write an IPv4 address as 203.0.113.7, four decimal numbers"
    return None if HOST_NAME.fullmatch(host) else "the host is not a name that a server can have"


def has_credentials(url: str) -> bool:
    """Whether a user name or password stands before the host; also for no valid URLs."""
    start, rest, authority = _parts_of(url)
    odd = "@" in rest and not PLAIN.fullmatch(authority)  # a password with a sign such as ?
    return bool(start) and ("@" in authority or odd)


def _parts_of(url: str) -> tuple[str, str, str]:
    """The start with the scheme, what follows it, and the host with what belongs to it."""
    scheme = START.match(url)
    start = scheme[0] if scheme else ""
    rest = url[len(start) :]
    return start, rest, re.split(r"[/?#\\]", rest, maxsplit=1)[0]


def shown_url(url: str) -> str:
    """A URL as messages show it: without credentials and without its query, which may hold a key.

    Also for texts that are not valid URLs.
    """
    start, rest, authority = _parts_of(url)
    if "@" in authority:
        rest = rest[authority.rindex("@") + 1 :]
    elif not PLAIN.fullmatch(authority):  # a password that contains one of those signs
        rest = rest.rpartition("@")[2]
    return (start + re.split("[?#]", rest, maxsplit=1)[0])[:200]
