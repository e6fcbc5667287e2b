"""Who may connect: a verdict on a request, from what its socket and its headers say.

Three strangers are kept out. The world beyond the internal networks: by the peer's address, and by every address
that a forwarding header names, so that a proxy on the same host never lets it in. A page whose name was rebound to
an internal address: by ``Host``. A page from elsewhere in an internal browser: by ``Origin``. Whatever a peer puts
into its forwarding headers can only exclude it.

This file must never know of sockets, of WebSocket, or of what a path means.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

DEFAULT_NETWORKS: tuple[Network, ...] = (
    ipaddress.IPv4Network("127.0.0.0/8"),
    ipaddress.IPv4Network("10.0.0.0/8"),
    ipaddress.IPv4Network("172.16.0.0/12"),
    ipaddress.IPv4Network("192.168.0.0/16"),
    ipaddress.IPv6Network("::1/128"),
    ipaddress.IPv6Network("fc00::/7"),
)

DETAIL_CHARACTERS = 200

# None of these has a place for anything of the peer's: the sentence is sent back as it stands.
_PEER = "Your address is in none of the networks that may connect (BRIDGE_ALLOWED_NETWORKS)."
_FORWARDED = (
    "A forwarding header names an address outside the networks that may connect (BRIDGE_ALLOWED_NETWORKS), "
    "or none that can be read."
)
_HOST_COUNT = "A request must have exactly one Host header."
_HOST_FORM = "The Host header must be a host name or an address, with or without a port."
_HOST_NAME = (
    "The host asked for is not localhost, a name without a dot, an address in BRIDGE_ALLOWED_NETWORKS "
    "or one of BRIDGE_ALLOWED_HOSTS."
)
_TARGET_FORM = "A request target that is a whole URL must begin with http or https and a host, with or without a port."
_TARGET_HOST = "The request target and the Host header must name the same host and port."
_ORIGIN_COUNT = "A request must have no more than one Origin header."
_ORIGIN = "Pages of this origin may not connect (BRIDGE_ALLOWED_ORIGINS)."

# Each expression reads a whole text, and only in ASCII: what is not matched is not understood, and refused. An IPv6
# zone has no place in a header (RFC 7239 section 6, RFC 3986 section 3.2.2), so "%" is in none of them.
_IPV6 = r"[0-9a-f.]*:[0-9a-f:.]*"
_AUTHORITY = re.compile(
    rf"(?:\[(?P<boxed>{_IPV6})\]|(?P<name>[\w-]+(?:\.[\w-]+)*)\.?)(?::(?P<port>[0-9]{{1,5}}))?",
    re.ASCII | re.IGNORECASE,
)
_ABSOLUTE = re.compile(r"(?P<scheme>https?)://(?P<authority>[^/?#]*)(?:[/?].*)?", re.ASCII | re.IGNORECASE)
_ORIGIN_FORM = re.compile(r"(?P<scheme>https?)://(?P<authority>[^/]*)", re.ASCII | re.IGNORECASE)
# RFC 7239 section 6: a node may have a port, and that may be obfuscated.
_NODE_PORT = r"(?::(?:[0-9]{1,5}|_[\w.-]+))?"
_NODE = re.compile(
    rf"\[(?P<boxed>{_IPV6})\]{_NODE_PORT}|(?P<v4>[0-9.]+){_NODE_PORT}|(?P<v6>{_IPV6})", re.ASCII | re.IGNORECASE
)
# RFC 7239 section 4, but without escapes in quoted strings.
_PAIR = re.compile(r"""(?P<name>[\w!#$%&'*+.^`|~-]+)=(?P<value>"[^"\\]*"|[^"\\\s]+)""", re.ASCII)
# What inet_aton and browsers take for an IPv4 address although it has no dot, 0x7f000001 say.
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)

_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is turned away: ``status`` and ``sentence`` for the peer, the rest for the operator.

    ``rule`` is a metric label: peer, forwarded, host or origin. ``detail`` is the offending value in printable ASCII,
    up to ``DETAIL_CHARACTERS``.
    """

    status: int
    sentence: str
    rule: str
    detail: str


class _Authority(NamedTuple):
    """A host and its port; an address is written in its canonical form, without brackets."""

    host: str
    address: Address | None
    port: int | None

    def agrees(self, other: _Authority, scheme: str) -> bool:
        """Whether both are the same place, where a missing port is the scheme's."""
        default = _DEFAULT_PORTS[scheme]
        return self.host == other.host and (
            (default if self.port is None else self.port) == (default if other.port is None else other.port)
        )

    @property
    def is_localhost(self) -> bool:
        return self.host == "localhost" or self.host.endswith(".localhost")


@dataclass(frozen=True, slots=True)
class Access:
    """The operator's word on who may connect.

    ``hosts`` are names in lower case; ``origins`` are ``scheme://host[:port]`` in lower case, without a trailing slash
    (``null`` may be one).
    """

    networks: tuple[Network, ...]
    hosts: frozenset[str]
    origins: frozenset[str]

    def admits_peer(self, address: str) -> bool:
        """Whether a socket's peer address is internal; an IPv6 zone counts for nothing."""
        parsed = _address(address)
        return parsed is not None and self._is_internal(parsed)

    def stranger(self, peer: str) -> Refusal | None:
        """Why whoever has this address is turned away, before it says anything; None where it may speak."""
        return None if self.admits_peer(peer) else _refused(_PEER, "peer", peer)

    def refusal(self, headers: Sequence[tuple[str, str]], target: str) -> Refusal | None:
        """The first rule that the request of somebody who may speak breaks, if any.

        ``headers`` are all that came, in order, names in any case, values decoded as Latin-1.
        """
        hosts: list[str] = []
        origins: list[str] = []
        for name, value in headers:
            match name.lower():
                case "host":
                    hosts.append(value.strip(" \t"))
                case "origin":
                    origins.append(value.strip(" \t"))
                case "forwarded" | "x-forwarded-for" | "x-real-ip" as header:
                    if (stranger := self._stranger(header, value)) is not None:
                        return _refused(_FORWARDED, "forwarded", f"{header}: {stranger}")
        if len(hosts) != 1:
            return _refused(_HOST_COUNT, "host", ", ".join(hosts), status=400)
        if (host := _authority(hosts[0])) is None:
            return _refused(_HOST_FORM, "host", hosts[0], status=400)
        if not self._answers_to(host):
            return _refused(_HOST_NAME, "host", hosts[0])
        return self._target_refusal(target, host) or self._origin_refusal(origins, host)

    def _is_internal(self, address: Address) -> bool:
        return any(address in network for network in self.networks)

    def _stranger(self, header: str, value: str) -> str | None:
        """The first element of a forwarding header that is not, or not known to be, an internal address."""
        for element in value.split(","):
            nodes = _forwarded_nodes(element) if header == "forwarded" else [element.strip(" \t")]
            for node in nodes:
                address = _node_address(node)
                if address is None or not self._is_internal(address):
                    return element
        return None

    def _answers_to(self, host: _Authority) -> bool:
        if host.is_localhost or host.host in self.hosts:
            return True
        if host.address is not None:
            return self._is_internal(host.address)
        return "." not in host.host and _NUMBER.fullmatch(host.host) is None

    def _target_refusal(self, target: str, host: _Authority) -> Refusal | None:
        """RFC 9112 section 3.2.2: an absolute target names a host of its own, and it counts before ``Host``."""
        if target.startswith("/") or "://" not in target:
            return None
        form = _ABSOLUTE.fullmatch(target)
        authority = None if form is None else _authority(form["authority"])
        if form is None or authority is None:
            return _refused(_TARGET_FORM, "host", target, status=400)
        # What agrees with Host has passed the rule for Host.
        return None if authority.agrees(host, form["scheme"].lower()) else _refused(_TARGET_HOST, "host", target)

    def _origin_refusal(self, origins: list[str], host: _Authority) -> Refusal | None:
        if not origins:
            return None
        if len(origins) > 1:
            return _refused(_ORIGIN_COUNT, "origin", ", ".join(origins))
        return None if self._admits_origin(origins[0], host) else _refused(_ORIGIN, "origin", origins[0])

    def _admits_origin(self, origin: str, host: _Authority) -> bool:
        if origin.lower() in self.origins:
            return True
        form = _ORIGIN_FORM.fullmatch(origin)
        authority = None if form is None else _authority(form["authority"])
        if form is None or authority is None:
            return False
        if authority.is_localhost or (authority.address is not None and authority.address.is_loopback):
            return True
        # The same host can't be a rebound name: Host has passed its own rule by now.
        return authority.agrees(host, form["scheme"].lower())


def _address(text: str) -> Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return address if isinstance(address, ipaddress.IPv4Address) else address.ipv4_mapped or address


def _authority(text: str) -> _Authority | None:
    """``host[:port]``, read strictly: no user, no escapes, no empty label, one trailing dot at most."""
    form = _AUTHORITY.fullmatch(text)
    if form is None:
        return None
    boxed, name, digits = form["boxed"], form["name"], form["port"]
    port = None if digits is None else int(digits)
    # A name that does not begin with a digit spares the attempt to read it as an address.
    address = _address(name if boxed is None else boxed) if boxed is not None or name[0].isdigit() else None
    if (boxed is not None and address is None) or (port is not None and port > 65535):
        return None
    return _Authority(name.lower() if address is None else str(address), address, port)


def _forwarded_nodes(element: str) -> list[str]:
    """What an element of ``Forwarded`` names with ``for=``; an empty node where it names nobody or can't be read.

    Elements and pairs are divided at every comma and semicolon, quoted or not. Without this, a peer's unclosed quote
    could swallow the element that a proxy appends; and no address has either in it.
    """
    nodes: list[str] = []
    for pair in element.split(";"):
        text = pair.strip(" \t")
        if not text:
            continue
        form = _PAIR.fullmatch(text)
        if form is None:
            return [""]
        if form["name"].lower() == "for":
            nodes.append(form["value"].strip('"'))
    return nodes or [""]


def _node_address(node: str) -> Address | None:
    form = _NODE.fullmatch(node)
    return None if form is None else _address(form["boxed"] or form["v4"] or form["v6"])


def _refused(sentence: str, rule: str, value: str, *, status: int = 403) -> Refusal:
    # Without the first cut, escaping would cost as much as the peer likes.
    detail = value[: DETAIL_CHARACTERS + 1].encode("unicode_escape").decode("ascii")
    if len(detail) > DETAIL_CHARACTERS:
        detail = detail[: DETAIL_CHARACTERS - 3] + "..."
    return Refusal(status, sentence, rule, detail)
