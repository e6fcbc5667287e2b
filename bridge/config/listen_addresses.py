"""The canonical form of addresses that the bridge listens on, and the hosts by which clients reach the bridge.

The module is pure: no function resolves a name or opens a socket. Only `source_address`, a function that callers pass
as an argument, opens a socket.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from bridge.authority import Address, canonical_name

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bridge.config.networks import Network

EVERY_IPV4 = "0.0.0.0"  # noqa: S104 - the name of a setting's value; SECURITY.md says what binding to it means
"""All IPv4 addresses of this machine."""

EVERY = "::"
"""In a setting, `::` means all addresses of this machine.

As the address of a listening socket, `::` means all IPv6 addresses.
"""

LOCALHOST = ("127.0.0.1", "::1")
"""The addresses of `localhost`. The bridge listens on both addresses of `localhost`, because many clients try ::1
first."""

_LOOPBACK: dict[int, Network] = {4: ipaddress.IPv4Network("127.0.0.0/8"), 6: ipaddress.IPv6Network("::1/128")}
_LINK_LOCAL = ipaddress.IPv6Network("fe80::/10")
_BROADCAST = ipaddress.IPv4Address("255.255.255.255")


def canonical_listener(text: str) -> str:
    """Converts an address or a name to its canonical form. Raises ValueError with the reason."""
    if "*" in text:
        raise ValueError(f"use {EVERY_IPV4} for all IPv4 addresses of this machine, or {EVERY} for all addresses")
    if "/" in text:
        raise ValueError("give only the address, without scheme, path and network")
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        # A link-local address has a zone, which names the network interface: `fe80::1%eth0`.
        address: Address = ipaddress.ip_address(bare)
    except ValueError:
        return canonical_name(text, "give the address without a port; BRIDGE_PORT is the port")
    if isinstance(address, ipaddress.IPv6Address):
        address = address.ipv4_mapped or address
    if address.is_multicast or address == _BROADCAST:
        raise ValueError("no client can connect to a multicast or broadcast address")
    return str(address)


def out_of_reach(listener: str, networks: Sequence[Network]) -> str | None:
    """The kind of network that must still be allowed so that clients can reach a listener.

    The result is None if clients can already reach the listener. `listener` is the address of a listening socket. Only
    a client that connects from a loopback address can reach a loopback address. A client on this machine connects from
    a loopback address only if it connects to a loopback address.
    """
    address = ipaddress.ip_address(listener)
    of_family = [network for network in networks if network.version == address.version]
    loopback = _LOOPBACK[address.version]
    family = f"IPv{address.version}"
    if not of_family:
        return f"no {family} network"
    if address.is_unspecified:
        return None
    if address in loopback:
        return None if any(network.overlaps(loopback) for network in of_family) else f"no {family} loopback network"
    if all(_within(network, loopback) for network in of_family):
        return f"no {family} network but loopback"
    if address in _LINK_LOCAL and not any(network.overlaps(_LINK_LOCAL) for network in of_family):
        return "no IPv6 link-local network"
    return None


def client_host(
    listener: str, networks: Sequence[Network], source_address: Callable[[Network], str | None]
) -> str | None:
    """The address by which an allowed client reaches a listener.

    For a listener with a wildcard address, the result is the loopback address if this address is allowed, or else an
    allowed address of this machine, or else None. `source_address` returns the address that this machine uses for
    sending to a network, or None.
    """
    address = ipaddress.ip_address(listener)
    if not address.is_unspecified:
        return listener
    of_family = [network for network in networks if network.version == address.version]
    loopback = LOCALHOST[0 if address.version == 4 else 1]
    own = (source_address(network) for network in of_family)
    return next((host for host in (loopback, *own) if host is not None and _allows(of_family, host)), None)


def announced_host(
    listeners: Sequence[str], networks: Sequence[Network], source_address: Callable[[Network], str | None]
) -> str:
    """The host by which clients reach the bridge.

    The host is `localhost` if every client on this machine can use this name.

    The result is also `localhost` if all listeners have wildcard addresses, and this machine has no allowed address.
    """

    def hosts_of(addresses: Sequence[str]) -> list[str]:
        found = (client_host(each, networks, source_address) for each in addresses)
        return [host for host in found if host is not None]

    hosts = hosts_of([each for each in listeners if out_of_reach(each, networks) is None])
    # `localhost` is usable only if a client that tries ::1 first is not refused at ::1.
    if LOCALHOST[0] in hosts and (LOCALHOST[1] in hosts or not {LOCALHOST[1], EVERY} & {*listeners}):
        return "localhost"
    return (hosts or hosts_of(listeners) or ["localhost"])[0]


def _allows(networks: Sequence[Network], host: str) -> bool:
    return any(ipaddress.ip_address(host) in network for network in networks)


def _within(network: Network, other: Network) -> bool:
    return network.network_address in other and network.broadcast_address in other
