"""The rules by which the bridge refuses clients, and the checks of a request's address and headers.

Three checks exclude external clients. The peer's address and every forwarded address must be internal. A check of only
the peer's address would let external clients in through a proxy on the same host. The header `Host` must not be a
public name, because DNS may have rebound such a name to an internal address. The header `Origin` must be allowed, or,
if it is missing, `Sec-Fetch-Site` must not be `cross-site`. A client that forges a forwarding header can only exclude
itself.

The module is pure, and does not depend on sockets, on WebSocket or on paths.
"""

from __future__ import annotations

import ipaddress
import re
from bisect import bisect_right
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING, TypeAlias

from bridge.authority import (
    DEFAULT_PORTS,
    IPV6,
    MAX_ORIGIN_CHARACTERS,
    NUMBER,
    Address,
    Authority,
    canonical_origin,
    parse_address,
    parse_authority,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from bridge.config.networks import Network

Headers: TypeAlias = "Mapping[str, Sequence[str]]"
"""Maps each header's name, in lower case, to its values in the order of the request, decoded as Latin-1."""

FORWARDING = ("forwarded", "x-forwarded-for", "x-real-ip")

MAX_FORWARDED = 32
"""The maximum number of addresses in the forwarding headers of a request.

Real proxy chains are much shorter than this maximum. A maximum is needed because the check of each address blocks the
event loop for 5 microseconds.
"""

MAX_FORWARDED_PAIRS = 4 * MAX_FORWARDED
"""The maximum number of pairs in the header `Forwarded`.

Each element of `Forwarded` has at most the four pairs `for`, `by`, `host` and `proto`.
"""

MAX_FORWARDED_CHARACTERS = 160 * MAX_FORWARDED
"""The maximum total length of all forwarding headers of a request."""

MAX_KNOWN_PEERS = 1024
"""The number of peer addresses whose check is remembered, because most clients connect more than once."""

DETAIL_CHARACTERS = 200

# The texts of refusals are sent to the client, and never quote the request.
_PEER = "Your address is not in an allowed network (BRIDGE_ALLOWED_NETWORKS)."
_FORWARDED = (
    "A forwarding header has an address that is malformed, or not in an allowed network (BRIDGE_ALLOWED_NETWORKS)."
)
_FORWARDED_MANY = (
    f"The forwarding headers have more than {MAX_FORWARDED} addresses or {MAX_FORWARDED_CHARACTERS} characters."
)
_HOST_COUNT = "A request must have exactly one Host header."
_HOST_FORM = "The Host header must be a host name or an address, with or without a port."
_HOST_NAME = (
    "The Host header must name localhost, a host without a dot, an address in BRIDGE_ALLOWED_NETWORKS "
    "or one of BRIDGE_ALLOWED_HOSTS."
)
_TARGET_FORM = "A request target that is an absolute URL must begin with http:// or https:// and a host."
_TARGET_HOST = "The request target and the Host header must name the same host and port."
_ORIGIN_COUNT = "A request must have no more than one Origin header."
_ORIGIN = "Pages of this origin may not connect (BRIDGE_ALLOWED_ORIGINS)."
_CROSS_SITE = "Pages of other sites may not connect without an Origin header (Sec-Fetch-Site: cross-site)."

_ABSOLUTE = re.compile(r"(?P<scheme>https?)://(?P<authority>[^/?#]*)(?:[/?].*)?", re.ASCII | re.IGNORECASE)
# According to RFC 7239, section 6, a node's address may have a port, which may be replaced by an obfuscated name.
_NODE_PORT = r"(?::(?:[0-9]{1,5}|_[\w.-]+))?"
_NODE = re.compile(
    rf"\[(?P<boxed>{IPV6})\]{_NODE_PORT}|(?P<v4>[0-9.]+){_NODE_PORT}|(?P<v6>{IPV6})", re.ASCII | re.IGNORECASE
)
# The syntax of a pair in RFC 7239, section 4, but without escapes in quoted strings.
_PAIR = re.compile(r"""(?P<name>[\w!#$%&'*+.^`|~-]+)=(?P<value>"[^"\\]*"|[^"\\\s]+)""", re.ASCII)


class Rule(StrEnum):
    """A requirement that clients must meet. Each refusal names the rule that the client does not meet.

    Each value can appear as a label of `bridge_clients_refused_total`, and in the log field `rule`. From version 0.1.0
    on, the values of `Rule` do not change.
    """

    PEER = "peer"
    """The client's address is in the allowed networks."""
    FORWARDED = "forwarded"
    """The addresses in the forwarding headers are in the allowed networks."""
    HOST = "host"
    ORIGIN = "origin"
    MALFORMED = "malformed"
    """The request is valid HTTP/1.1 or HTTP/1.0, without a body."""
    SIZE = "size"
    """The request is not larger than the limits of `http/request.py`."""
    QUERY = "query"
    UPGRADE = "upgrade"
    """The request asks for the WebSocket protocol, as RFC 6455 requires."""
    TLS = "tls"
    TIMEOUT = "timeout"
    """The client completes the TLS handshake and the request in time."""
    PENDING = "pending"
    """The number of connections without a complete request is below its limit.

    When the limit is reached, the oldest connection without a complete request is refused.
    """
    ADDRESS_LIMIT = "address-limit"
    """The client's address has not reached its limit of connections."""
    FULL = "full"
    """The bridge has not reached its limit of connections."""
    LOST = "lost"
    """The kernel can watch the accepted socket."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """The reason why a client is refused.

    The attributes `status`, `text` and `headers` are for the client, and `rule` and `detail` are for the operator.
    """

    status: HTTPStatus
    text: str
    """The reason of the refusal in one sentence, which is sent to the client."""
    rule: Rule
    detail: str
    """The invalid value in printable ASCII, shortened to DETAIL_CHARACTERS, or a copy of `text`."""
    headers: tuple[tuple[str, str], ...] = ()
    """Additional headers of the response to the refused client."""


class Access:
    """The networks, hosts and origins that the operator allows."""

    def __init__(self, networks: Iterable[Network], hosts: frozenset[str], origins: frozenset[str]) -> None:
        """`hosts` and `origins` are in canonical form (`canonical_host`, `canonical_origin`)."""
        self._networks = _Ranges(networks)
        self.hosts = hosts
        self.origins = origins
        self._admits_peer = lru_cache(MAX_KNOWN_PEERS)(self._is_internal)

    def admits_peer(self, address: str) -> bool:
        """Returns whether a socket's peer address is internal. The zone of an IPv6 address is ignored."""
        return self._admits_peer(address)

    def _is_internal(self, address: str) -> bool:
        parsed = parse_address(address)
        return parsed is not None and parsed in self._networks

    def check_peer(self, address: str) -> Refusal | None:
        """Returns why a client with this address is refused, or None if the address is allowed."""
        return None if self._admits_peer(address) else _refused(_PEER, Rule.PEER, address)

    def check_request(self, headers: Headers, target: str, *, requires_host: bool = True) -> Refusal | None:
        """Returns why a request's forwarding headers, `Host` or target are refused, or None for an allowed request.

        `requires_host` is False if the request is valid without the header `Host`.
        """
        if (refusal := self._check_forwarded(headers)) is not None:
            return refusal
        hosts = headers.get("host", ())
        if not hosts and not requires_host and target.startswith("/"):
            return None
        if len(hosts) != 1:
            return _refused(_HOST_COUNT, Rule.HOST, ", ".join(hosts[:2]), status=HTTPStatus.BAD_REQUEST)
        if (host := parse_authority(hosts[0].strip(" \t"))) is None:
            return _refused(_HOST_FORM, Rule.HOST, hosts[0], status=HTTPStatus.BAD_REQUEST)
        if not self._is_allowed_host(host):
            return _refused(_HOST_NAME, Rule.HOST, hosts[0])
        return _check_target(target, host)

    def check_origin(self, headers: Headers) -> Refusal | None:
        """Returns why a page of this origin is refused, or None if the page is allowed to connect.

        Call `check_request` before `check_origin`.
        """
        origins = headers.get("origin", ())
        if len(origins) > 1:
            return _refused(_ORIGIN_COUNT, Rule.ORIGIN, ", ".join(origins[:2]))
        # Browsers never send an empty Origin header, so an empty Origin is treated as missing.
        if any(origin.strip(" \t") for origin in origins):
            return None if self.allowed_origin(headers) is not None else _refused(_ORIGIN, Rule.ORIGIN, origins[0])
        # Browsers send no Origin header for <img>, for <script>, and for fetch in the mode no-cors.
        if any(site.strip(" \t").lower() == "cross-site" for site in headers.get("sec-fetch-site", ())):
            return _refused(_CROSS_SITE, Rule.ORIGIN, "Sec-Fetch-Site: cross-site")
        return None

    def allowed_origin(self, headers: Headers, *, trusts_host: bool = True) -> str | None:
        """Returns the request's `Origin` if there is exactly one, and if pages of this origin are allowed to connect.

        `trusts_host` is False if `Host` has not passed `check_request`, and may therefore be a rebound name.
        """
        origins = headers.get("origin", ())
        if len(origins) != 1:
            return None
        origin = origins[0].strip(" \t")
        if not origin.isascii() or len(origin) > MAX_ORIGIN_CHARACTERS:
            return None
        try:
            canonical = canonical_origin(origin)
        except ValueError:
            return None
        return origin if self._is_allowed_origin(canonical, headers.get("host", ()) if trusts_host else ()) else None

    def _is_allowed_origin(self, canonical: str, hosts: Sequence[str]) -> bool:
        if canonical in self.origins:
            return True
        scheme, _, rest = canonical.partition("://")
        authority = parse_authority(rest) if scheme in DEFAULT_PORTS else None
        if authority is None:
            return False
        if authority.is_loopback:
            return True
        # If the origin's host equals the header Host, the origin can't be a rebound name, because Host has passed its
        # own rule.
        host = parse_authority(hosts[0].strip(" \t")) if hosts else None
        return host is not None and authority.agrees(host, scheme)

    def _check_forwarded(self, headers: Headers) -> Refusal | None:
        given = [(name, value) for name in FORWARDING for value in headers.get(name, ())]
        if not given:
            return None
        # The limits are checked before any forwarding header is parsed. Parsing only the first addresses is not an
        # option, because the last address may be external.
        if (
            sum(value.count(",") + 1 for _, value in given) > MAX_FORWARDED
            or sum(value.count(";") for _, value in given) > MAX_FORWARDED_PAIRS
            or sum(len(value) for _, value in given) > MAX_FORWARDED_CHARACTERS
        ):
            return _refused(_FORWARDED_MANY, Rule.FORWARDED, "{}: {}".format(*given[0]))
        for name, value in given:
            if (external := self._external(name, value)) is not None:
                return _refused(_FORWARDED, Rule.FORWARDED, f"{name}: {external}")
        return None

    def _external(self, header: str, value: str) -> str | None:
        """Returns the first element with a missing, malformed or external address in a forwarding header, or None."""
        for element in value.split(","):
            nodes = _forwarded_nodes(element) if header == "forwarded" else [element.strip(" \t")]
            for node in nodes:
                address = _node_address(node)
                if address is None or address not in self._networks:
                    return element
        return None

    def _is_allowed_host(self, host: Authority) -> bool:
        if host.is_localhost or host.host in self.hosts:
            return True
        if host.address is not None:
            return host.address in self._networks
        return "." not in host.host and NUMBER.fullmatch(host.host) is None


class _Ranges:
    """Networks as sorted ranges of addresses, so that a lookup is fast even in thousands of networks."""

    def __init__(self, networks: Iterable[Network]) -> None:
        self._starts: dict[int, list[int]] = {4: [], 6: []}
        self._ends: dict[int, list[int]] = {4: [], 6: []}
        given = tuple(networks)
        v4 = ipaddress.collapse_addresses([each for each in given if isinstance(each, ipaddress.IPv4Network)])
        v6 = ipaddress.collapse_addresses([each for each in given if isinstance(each, ipaddress.IPv6Network)])
        collapsed: tuple[Network, ...] = (*v4, *v6)
        for network in collapsed:
            self._starts[network.version].append(int(network.network_address))
            self._ends[network.version].append(int(network.broadcast_address))

    def __contains__(self, address: Address) -> bool:
        number = int(address)
        index = bisect_right(self._starts[address.version], number) - 1
        return index >= 0 and number <= self._ends[address.version][index]


def _check_target(target: str, host: Authority) -> Refusal | None:
    """Checks a request's target if it is an absolute URL.

    The target's host takes precedence over `Host` (RFC 9112, section 3.2.2).
    """
    if target.startswith("/") or "://" not in target:
        return None
    form = _ABSOLUTE.fullmatch(target)
    authority = None if form is None else parse_authority(form["authority"])
    if form is None or authority is None:
        return _refused(_TARGET_FORM, Rule.HOST, target, status=HTTPStatus.BAD_REQUEST)
    # If the target has the same host as the header Host, the target has passed the rule for Host.
    return None if authority.agrees(host, form["scheme"].lower()) else _refused(_TARGET_HOST, Rule.HOST, target)


def _forwarded_nodes(element: str) -> list[str]:
    """Returns the values of `for=` in an element of `Forwarded`, or `[""]` if it has no `for=` or can't be parsed.

    The header is divided at every comma and semicolon, even within quotes. If quotes were respected, an unclosed quote
    from the client could hide the element that a proxy appends. No address contains a comma or a semicolon.
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
    return None if form is None else parse_address(form["boxed"] or form["v4"] or form["v6"])


def _refused(text: str, rule: Rule, value: str, *, status: HTTPStatus = HTTPStatus.FORBIDDEN) -> Refusal:
    # The value is shortened before it is escaped, so that a client can't make the bridge escape a long value.
    detail = value[: DETAIL_CHARACTERS + 1].encode("unicode_escape").decode("ascii")
    if len(detail) > DETAIL_CHARACTERS:
        detail = detail[: DETAIL_CHARACTERS - 3] + "..."
    return Refusal(status, text, rule, detail)
