"""The networks that clients may connect from."""

import ipaddress
from typing import TypeAlias

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

DEFAULT_NETWORKS: tuple[Network, ...] = (
    ipaddress.IPv4Network("127.0.0.0/8"),
    ipaddress.IPv4Network("10.0.0.0/8"),
    ipaddress.IPv4Network("172.16.0.0/12"),
    ipaddress.IPv4Network("192.168.0.0/16"),
    ipaddress.IPv6Network("::1/128"),
    ipaddress.IPv6Network("fc00::/7"),
)
"""The networks with loopback and internal addresses: RFC 1122, RFC 1918 and RFC 4193."""

_THIS_NETWORK = ipaddress.IPv4Network("0.0.0.0/8")
"""The network `0.0.0.0/8`, from which no connection can come (RFC 1122, section 3.2.1.3)."""

_BROADCAST = ipaddress.IPv4Network("255.255.255.255/32")

_UNSPECIFIED = ipaddress.IPv6Network("::/128")

_WILDCARDS = frozenset({"*", "any", "all"})
"""The words that other programs use for all networks."""


def parse_network(text: str) -> Network:
    """Parses a network or a single address. Raises ValueError with the reason if the text is not valid.

    If the text is a network with host bits, a wildcard, `localhost` or an IPv4-mapped network, the error's text shows
    the accepted spelling. A network in which no client can have an address is an error.
    """
    if "%" in text:
        raise ValueError("a zone has no effect here; remove the % and the text after it")
    if text in _WILDCARDS:
        raise ValueError("0.0.0.0/0 and ::/0 are all addresses")
    if text.lower() == "localhost":
        raise ValueError("write 127.0.0.0/8 and ::1")
    try:
        network = ipaddress.ip_network(text)
    except ValueError:
        address, _, _ = text.partition("/")
        try:
            whole = ipaddress.ip_network(text, strict=False)
        except ValueError:
            raise ValueError("not a network; write it as 10.0.0.0/8 or fd00::/8") from None
        raise ValueError(f"write {whole}, or {address} for one address") from None
    if isinstance(network, ipaddress.IPv4Network):
        is_empty = network.subnet_of(_THIS_NETWORK) or network == _BROADCAST
    else:
        is_empty = network == _UNSPECIFIED
        # An IPv4-mapped client address is compared as an IPv4 address, so an IPv4-mapped network would never match.
        if network.network_address.ipv4_mapped is not None:
            raise ValueError("write IPv4 networks in IPv4 form, as in 10.0.0.0/8")
    if is_empty or network.is_multicast:
        raise ValueError("no client has such an address; 0.0.0.0/0 and ::/0 are all addresses")
    return network
