"""Converts hosts and origins to a canonical form, so that settings can be compared with headers.

Settings and headers are both converted. A setting therefore matches a header even if the two are spelled differently,
for example with upper case letters, a default port, a non-ASCII name, or a slash at the end.
"""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache
from socket import AF_INET, AF_INET6, inet_pton
from typing import NamedTuple, TypeAlias

import idna

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

MAX_HOST_CHARACTERS = 255
"""The maximum length of a host name, including its dots (RFC 1035, section 2.3.4)."""

MAX_ORIGIN_CHARACTERS = MAX_HOST_CHARACTERS + 64
"""The maximum length of an origin (a scheme, a host and a port).

A text that exceeds this maximum is not parsed as an origin.
"""

IPV6 = r"[0-9a-f.]*:[0-9a-f:.]*"
"""A pattern that matches all IPv6 addresses and some other texts.

The pattern does not match an address with a zone, because headers contain no zones (RFC 7239 section 6, RFC 3986
section 3.2.2).
"""

DEFAULT_PORTS = {"http": 80, "https": 443}

_WEBSOCKET_SCHEMES = {"ws": "http", "wss": "https"}
"""Some WebSocket libraries (ws4py) send an origin with the scheme of the WebSocket URL.

Browsers never send an origin with the scheme ws or wss.
"""

_WITHOUT_ORIGIN = frozenset({"about", "blob", "data", "ftp", "javascript"})

# The regular expressions below are used with `fullmatch`, and match only ASCII.
_AUTHORITY = re.compile(
    rf"(?:\[(?P<boxed>{IPV6})\]|(?P<name>[\w-]+(?:\.[\w-]+)*)\.?)(?::(?P<port>[0-9]{{1,5}}))?",
    re.ASCII | re.IGNORECASE,
)
_ORIGIN = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<rest>[!-~]*)", re.ASCII | re.IGNORECASE)
# What can follow `://` in an origin that is neither http nor https: the identifier of a browser extension, a dot, or
# nothing.
_OTHER_REST = re.compile(r"[\w.:-]*", re.ASCII)
# If the last label of a host is a number such as 0x7f000001, inet_aton and browsers parse the host as an IPv4 address
# or refuse it.
NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)


class Authority(NamedTuple):
    """A host and its port. A host name is in lower case without a trailing dot; an address is in canonical form."""

    host: str
    address: Address | None
    port: int | None

    def agrees(self, other: Authority, scheme: str) -> bool:
        """Whether both authorities have the same host and port.

        A missing port means the default port of `scheme` (http or https).
        """
        default = DEFAULT_PORTS[scheme]
        return self.host == other.host and (
            (default if self.port is None else self.port) == (default if other.port is None else other.port)
        )

    @property
    def is_localhost(self) -> bool:
        """Whether the host is `localhost` or a name that ends with `.localhost` (RFC 6761, section 6.3)."""
        return self.host == "localhost" or self.host.endswith(".localhost")

    @property
    def is_loopback(self) -> bool:
        """Whether the host is this machine, by name or by address."""
        return self.is_localhost or (self.address is not None and self.address.is_loopback)


def parse_address(text: str) -> Address | None:
    """Parses an IP address; returns None for any other text. An IPv4-mapped IPv6 address becomes an IPv4 address."""
    try:
        if ":" not in text:
            return ipaddress.IPv4Address(inet_pton(AF_INET, text))
        # The C library's `inet_pton` does not support zones. `inet_pton` takes a fifth of the time that `ipaddress`
        # takes.
        address = ipaddress.IPv6Address(text if "%" in text else inet_pton(AF_INET6, text))
    except (OSError, ValueError):
        return None
    return address.ipv4_mapped or address


def parse_authority(text: str) -> Authority | None:
    """Parses `host[:port]`. The text must contain no user, no escapes and no empty label, and at most one trailing dot.

    Returns None if the text is malformed.
    """
    return None if len(text) > MAX_HOST_CHARACTERS + len(".:65535") else _parse_authority(text)


@lru_cache(maxsize=256)
def _parse_authority(text: str) -> Authority | None:
    form = _AUTHORITY.fullmatch(text)
    if form is None:
        return None
    boxed, name, digits = form["boxed"], form["name"], form["port"]
    port = None if digits is None else int(digits)
    # If a host does not begin with a digit, it can't be an IPv4 address.
    address = parse_address(name if boxed is None else boxed) if boxed is not None or name[0].isdigit() else None
    if (boxed is not None and address is None) or (port is not None and port > 65535):
        return None
    return Authority(name.lower() if address is None else str(address), address, port)


def format_authority(host: str, port: int) -> str:
    """Formats a host and a port for a URL (RFC 3986, section 3.2.2; RFC 6874 for the zone)."""
    return f"[{host.replace('%', '%25')}]:{port}" if ":" in host else f"{host}:{port}"


def canonical_host(text: str) -> str:
    """Converts a host to the form of `Authority.host`. Raises ValueError if the host is not valid."""
    if "%" in text:
        raise ValueError("an address in a Host header has no zone")
    address = parse_address(text[1:-1] if text.startswith("[") and text.endswith("]") else text)
    if address is not None:
        return str(address)
    if "*" in text:
        raise ValueError("wildcards are not supported; give each name")
    if "://" in text or "/" in text:
        raise ValueError("give the name alone, without scheme and path; networks belong to BRIDGE_ALLOWED_NETWORKS")
    return canonical_name(text, "give the name without a port: every port matches")


def canonical_name(text: str, port_reason: str) -> str:
    """Converts a host name to its canonical form.

    Raises ValueError if the name is not valid. If the text has a port, the error's text is `port_reason`.
    """
    authority = parse_authority(_ascii(text))
    if authority is None:
        raise ValueError("not a host name")
    if authority.port is not None:
        raise ValueError(port_reason)
    _check_name(authority)
    return authority.host


def canonical_origin(text: str) -> str:
    """Converts an origin to the form in which origins are compared. Raises ValueError for an invalid origin.

    `null` and `file://` are valid origins, because a sandboxed frame sends `null`, and a page in Electron sends
    `file://`.
    """
    if len(text) > MAX_ORIGIN_CHARACTERS:
        raise ValueError(f"more than {MAX_ORIGIN_CHARACTERS} characters")
    if text.lower() == "null":
        return "null"
    if "*" in text:
        raise ValueError("wildcards are not supported; give each origin")
    form = _ORIGIN.fullmatch(_ascii(text))
    if form is None:
        raise ValueError("an origin has a scheme and a host, such as https://kills.example.org")
    scheme = form["scheme"].lower()
    scheme = _WEBSOCKET_SCHEMES.get(scheme, scheme)
    rest = form["rest"].removesuffix("/")
    if scheme in _WITHOUT_ORIGIN:
        raise ValueError(f"a page with a {scheme}: address has no origin of its own")
    if scheme not in DEFAULT_PORTS:
        if _OTHER_REST.fullmatch(rest) is None or not (rest or scheme == "file"):
            raise ValueError("after the scheme, give a valid host and port, without a path")
        return f"{scheme}://{rest.lower()}"
    authority = parse_authority(rest)
    if authority is None:
        raise ValueError("after the scheme, give a valid host and port, without user and path")
    _check_name(authority)
    host = f"[{authority.host}]" if isinstance(authority.address, ipaddress.IPv6Address) else authority.host
    is_default = authority.port in {None, DEFAULT_PORTS[scheme]}
    return f"{scheme}://{host}" if is_default else f"{scheme}://{host}:{authority.port}"


def _check_name(authority: Authority) -> None:
    """Raises ValueError for a name that a browser would take for an IPv4 address and send in the form of an address."""
    if authority.address is None and NUMBER.fullmatch(authority.host.rpartition(".")[2]):
        raise ValueError("write an IPv4 address with four decimal numbers")


def _ascii(text: str) -> str:
    """Converts a host name, alone or in an origin, to ASCII in the same way as browsers (UTS 46)."""
    if text.isascii():
        return text
    scheme, separator, rest = text.rpartition("://")
    host, slash, path = rest.partition("/")
    name, colon, port = host.partition(":")
    try:
        return f"{scheme}{separator}{idna.encode(name, uts46=True).decode()}{colon}{port}{slash}{path}"
    except idna.IDNAError as error:
        raise ValueError(f"not a host name: {error}; give the form that begins with xn--") from error
