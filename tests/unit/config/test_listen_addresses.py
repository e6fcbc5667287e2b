"""Tests which clients can reach a listening address, and which host is in the URLs of the address."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

import pytest

from bridge.config.listen_addresses import announced_host, client_host, out_of_reach
from bridge.config.networks import DEFAULT_NETWORKS

if TYPE_CHECKING:
    from collections.abc import Callable

    from bridge.config.networks import Network


def networks(text: str) -> tuple[Network, ...]:
    return tuple(map(ipaddress.ip_network, text.split())) if text else DEFAULT_NETWORKS


def machine(*own: str) -> Callable[[Network], str | None]:
    """Returns a function.

    The returned function takes a network, and returns the machine's first address of the same IP version.
    """
    return lambda network: next((each for each in own if ipaddress.ip_address(each).version == network.version), None)


@pytest.mark.parametrize(
    ("listener", "allowed", "lack"),
    [
        *((address, "", None) for address in ("127.0.0.1", "::1", "0.0.0.0", "::", "10.1.2.3", "8.8.8.8", "fd00::1")),
        ("::1", "127.0.0.0/8", "no IPv6 network"),
        ("::", "127.0.0.0/8 10.0.0.0/8", "no IPv6 network"),
        ("fd00::1", "10.0.0.0/8", "no IPv6 network"),
        ("0.0.0.0", "::1 fd00::/8", "no IPv4 network"),
        ("127.0.0.1", "::1", "no IPv4 network"),
        ("0.0.0.0", "127.0.0.0/8", None),
        ("::", "::1", None),
        ("127.0.0.1", "10.0.0.0/8 ::1", "no IPv4 loopback network"),
        ("::1", "127.0.0.0/8 fd00::/8", "no IPv6 loopback network"),
        ("127.0.0.1", "127.0.0.1", None),
        ("127.0.0.2", "127.0.0.1", None),
        ("127.0.0.1", "0.0.0.0/0", None),
        ("::1", "::/0", None),
        ("10.1.2.3", "127.0.0.0/8 ::1 fd00::/8", "no IPv4 network but loopback"),
        ("fd00::1", "127.0.0.0/8 ::1 10.0.0.0/8", "no IPv6 network but loopback"),
        ("10.1.2.3", "127.0.0.0/8 192.168.0.0/16", None),
        ("10.1.2.3", "0.0.0.0/1", None),
        ("fe80::1%eth0", "", "no IPv6 link-local network"),
        ("fe80::1%eth0", "fe80::/10", None),
        ("fe80::1%eth0", "::/0", None),
    ],
)
def test_listener_is_out_of_reach_without_an_allowed_network(listener: str, allowed: str, lack: str | None) -> None:
    assert out_of_reach(listener, networks(allowed)) == lack


@pytest.mark.parametrize(
    ("listener", "allowed", "own", "host"),
    [
        ("127.0.0.1", "", (), "127.0.0.1"),
        ("10.1.2.3", "127.0.0.0/8", (), "10.1.2.3"),
        ("0.0.0.0", "", ("10.1.2.3",), "127.0.0.1"),
        ("::", "", ("fd00::5",), "::1"),
        ("0.0.0.0", "10.0.0.0/8", ("10.1.2.3",), "10.1.2.3"),
        ("0.0.0.0", "192.168.0.0/16 10.0.0.0/8", ("10.1.2.3",), "10.1.2.3"),
        ("::", "10.0.0.0/8 fd00::/8", ("10.1.2.3", "fd00::5"), "fd00::5"),
        ("0.0.0.0", "10.0.0.0/8", ("192.168.1.5",), None),
        ("0.0.0.0", "10.0.0.0/8", (), None),
        ("::", "10.0.0.0/8", ("10.1.2.3", "fd00::5"), None),
    ],
)
def test_wildcard_is_named_by_an_address_that_the_rules_allow(
    listener: str, allowed: str, own: tuple[str, ...], host: str | None
) -> None:
    assert client_host(listener, networks(allowed), machine(*own)) == host


@pytest.mark.parametrize(
    ("listeners", "allowed", "host"),
    [
        (("127.0.0.1", "::1"), "", "localhost"),
        (("127.0.0.1",), "", "localhost"),
        (("::1",), "", "::1"),
        (("0.0.0.0",), "", "localhost"),
        (("::", "0.0.0.0"), "", "localhost"),
        (("127.0.0.1", "::1"), "127.0.0.0/8", "127.0.0.1"),
        (("::", "0.0.0.0"), "127.0.0.0/8", "127.0.0.1"),
        (("127.0.0.1", "::1"), "::1", "::1"),
        (("::", "0.0.0.0"), "10.0.0.0/8", "10.1.2.3"),
        (("10.1.2.3",), "", "10.1.2.3"),
        (("10.1.2.3", "127.0.0.1"), "", "localhost"),
        (("10.1.2.3", "127.0.0.1"), "10.0.0.0/8", "10.1.2.3"),
        (("127.0.0.1",), "10.0.0.0/8", "127.0.0.1"),
        (("0.0.0.0",), "172.16.0.0/12", "localhost"),
        (("::", "0.0.0.0"), "172.16.0.0/12", "localhost"),
        (("0.0.0.0", "10.1.2.3"), "172.16.0.0/12", "10.1.2.3"),
    ],
)
def test_announced_host_works_with_every_client_of_this_machine(
    listeners: tuple[str, ...], allowed: str, host: str
) -> None:
    assert announced_host(listeners, networks(allowed), machine("10.1.2.3", "fd00::5")) == host
