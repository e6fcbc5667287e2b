"""Tests of listening sockets: their addresses and ports, and the errors that an unavailable address or port causes."""

from __future__ import annotations

import errno
import ipaddress
import socket
import sys
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from bridge.server.listeners.sockets import (
    PORT_ATTEMPTS,
    RECEIVE_BUFFER_BYTES,
    SEND_BUFFER_BYTES,
    address_unavailable,
    drop_connection_requests,
    listen_hint,
    open_listeners,
    source_address,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def ipv6_is_there() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not ipv6_is_there(), reason="this machine has no ::1")


@contextmanager
def opened(*hosts: str, port: int = 0, reuse_port: bool = False) -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        yield [stack.enter_context(listener) for listener in open_listeners(hosts, port, reuse_port)]


def addresses(opened_listeners: Sequence[socket.socket]) -> list[str]:
    return [listener.getsockname()[0] for listener in opened_listeners]


def ports(opened_listeners: Sequence[socket.socket]) -> set[int]:
    return {listener.getsockname()[1] for listener in opened_listeners}


class Machine:
    """A machine on which sockets of one address family can't be made, or can't be bound."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self.made: list[socket.socket] = []

    def refuse(self, family: socket.AddressFamily, error: int, *, when: str, times: int = 1_000) -> None:
        made, left = self.made, iter(range(times))

        class Socket(socket.socket):
            def __init__(self, family_: int = -1, *arguments: Any) -> None:
                if when == "made" and family_ == family and next(left, None) is not None:
                    raise OSError(error, "refused in this test")
                super().__init__(family_, *arguments)
                made.append(self)

            def bind(self, address: Any, /) -> None:
                if when == "bound" and self.family == family and next(left, None) is not None:
                    raise OSError(error, "refused in this test")
                super().bind(address)

        self._monkeypatch.setattr("bridge.server.listeners.sockets.socket.socket", Socket)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    machine = Machine(monkeypatch)
    yield machine
    assert all(made.fileno() == -1 for made in machine.made), "a socket was left open"


@needs_ipv6
def test_localhost_is_both_addresses_on_one_port() -> None:
    with opened("localhost") as both:
        assert addresses(both) == ["127.0.0.1", "::1"]
        assert len(ports(both)) == 1
        assert ports(both) != {0}


def test_single_address_is_one_listener_that_does_not_block() -> None:
    with opened("127.0.0.1") as [listener]:
        assert listener.family == socket.AF_INET
        assert not listener.getblocking()
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)


@needs_ipv6
def test_ipv6_listener_takes_no_ipv4_clients() -> None:
    # The listener is on `::`, because a listener on a single IPv6 address never takes IPv4 clients.
    with opened("::") as [listener, _]:
        assert listener.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)


@needs_ipv6
def test_every_address_is_a_listener_for_each_kind_on_one_port() -> None:
    with opened("::") as both:
        assert addresses(both) == ["::", "0.0.0.0"]
        assert len(ports(both)) == 1


@needs_ipv6
@pytest.mark.parametrize(
    ("hosts", "bound"),
    [
        (("localhost", "127.0.0.1"), ["127.0.0.1", "::1"]),
        (("::1", "localhost"), ["::1", "127.0.0.1"]),
        (("127.0.0.1", "127.0.0.1"), ["127.0.0.1"]),
        (("127.0.0.1", "0.0.0.0", "127.0.0.2"), ["0.0.0.0"]),
        (("0.0.0.0", "::1"), ["0.0.0.0", "::1"]),
        (("0.0.0.0", "localhost"), ["0.0.0.0", "::1"]),
        (("0.0.0.0", "::"), ["0.0.0.0", "::"]),
        (("::", "localhost", "127.0.0.2"), ["::", "0.0.0.0"]),
    ],
)
@pytest.mark.parametrize("reuse_port", [False, True])
def test_each_address_is_bound_once(hosts: tuple[str, ...], bound: list[str], *, reuse_port: bool) -> None:
    with opened(*hosts, reuse_port=reuse_port) as listeners:
        assert addresses(listeners) == bound


@pytest.mark.parametrize(("error", "when"), [(errno.EAFNOSUPPORT, "made"), (errno.EADDRNOTAVAIL, "bound")])
def test_every_address_without_ipv6_is_an_error_that_names_the_other_wildcard(
    machine: Machine, error: int, when: str
) -> None:
    machine.refuse(socket.AF_INET6, error, when=when)
    with pytest.raises(OSError, match=r":: port 0: refused in this test") as raised:
        open_listeners(["::"], 0, reuse_port=False)
    assert listen_hint(raised.value) == "this machine has no IPv6; set BRIDGE_HOST=0.0.0.0 for all IPv4 addresses"


@needs_ipv6
def test_every_address_is_those_of_ipv6_if_the_machine_has_no_ipv4(machine: Machine) -> None:
    machine.refuse(socket.AF_INET, errno.EAFNOSUPPORT, when="made")
    with opened("::") as one:
        assert addresses(one) == ["::"]
    with pytest.raises(OSError, match=r"0\.0\.0\.0 port \d+: refused in this test"):
        open_listeners(["::", "0.0.0.0"], 0, reuse_port=False)


def test_optional_address_of_localhost_is_required_if_it_is_named(machine: Machine) -> None:
    machine.refuse(socket.AF_INET6, errno.EADDRNOTAVAIL, when="bound")
    with pytest.raises(OSError, match=r"::1 port \d+: refused in this test"):
        open_listeners(["localhost", "::1"], 0, reuse_port=False)


def test_source_address_is_one_of_this_machine_and_none_without_a_route(machine: Machine) -> None:
    assert source_address(ipaddress.ip_network("127.0.0.0/8")) == "127.0.0.1"
    assert source_address(ipaddress.ip_network("127.0.0.1/32")) == "127.0.0.1"
    machine.refuse(socket.AF_INET6, errno.EAFNOSUPPORT, when="made")
    assert source_address(ipaddress.ip_network("::1/128")) is None


def test_several_addresses_share_a_port() -> None:
    with opened("127.0.0.1", "127.0.0.2") as both:
        assert addresses(both) == ["127.0.0.1", "127.0.0.2"]
        assert len(ports(both)) == 1


def test_port_that_is_asked_for_is_the_port() -> None:
    with opened("127.0.0.1") as [first]:
        port = first.getsockname()[1]
    with opened("127.0.0.1", port=port) as again:
        assert ports(again) == {port}


def test_taken_port_is_an_error_that_names_address_and_port() -> None:
    with opened("127.0.0.1") as [listener]:
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(OSError, match=rf"127\.0\.0\.1 port {port}: Address already in use") as raised:
            open_listeners(["127.0.0.1"], port, reuse_port=False)
    assert raised.value.errno == errno.EADDRINUSE


def test_second_address_that_is_taken_leaves_no_first_one_open(machine: Machine) -> None:
    # Only a listening socket makes a port taken for the bridge, because all its sockets set SO_REUSEADDR. The other
    # socket keeps other programs from using the port on the first address.
    with opened("127.0.0.1", "127.0.0.2") as [_, taken]:
        taken.listen()
        port = taken.getsockname()[1]
        machine.refuse(socket.AF_INET6, 0, when="never")
        with pytest.raises(OSError, match=r"127\.0\.0\.2 port"):
            open_listeners(["127.0.0.1", "127.0.0.2"], port, reuse_port=False)


def test_port_may_be_shared_by_several_bridges() -> None:
    with opened("127.0.0.1", reuse_port=True) as [first]:
        first.listen()
        port = first.getsockname()[1]
        with opened("127.0.0.1", port=port, reuse_port=True) as second:
            assert ports(second) == {port}


@pytest.mark.parametrize(("error", "when"), [(errno.EAFNOSUPPORT, "made"), (errno.EADDRNOTAVAIL, "bound")])
def test_localhost_is_ipv4_alone_if_the_machine_has_no_ipv6(machine: Machine, error: int, when: str) -> None:
    machine.refuse(socket.AF_INET6, error, when=when)
    with opened("localhost") as one:
        assert addresses(one) == ["127.0.0.1"]


@pytest.mark.parametrize(("error", "when"), [(errno.EAFNOSUPPORT, "made"), (errno.EADDRNOTAVAIL, "bound")])
def test_address_asked_for_by_name_must_be_there(machine: Machine, error: int, when: str) -> None:
    machine.refuse(socket.AF_INET6, error, when=when)
    with pytest.raises(OSError, match=r"::1 port \d+: refused in this test"):
        open_listeners(["127.0.0.1", "::1"], 0, reuse_port=False)


def test_localhost_without_ipv4_is_an_error(machine: Machine) -> None:
    machine.refuse(socket.AF_INET, errno.EADDRNOTAVAIL, when="bound")
    with pytest.raises(OSError, match=r"127\.0\.0\.1"):
        open_listeners(["localhost"], 0, reuse_port=False)


@needs_ipv6
def test_another_port_is_tried_if_the_first_is_taken_on_the_second_address(machine: Machine) -> None:
    machine.refuse(socket.AF_INET6, errno.EADDRINUSE, when="bound", times=3)
    with opened("localhost") as both:
        assert addresses(both) == ["127.0.0.1", "::1"]
    assert len(machine.made) == 8


def test_no_port_that_is_free_everywhere_is_an_error_after_some_attempts(machine: Machine) -> None:
    machine.refuse(socket.AF_INET6, errno.EADDRINUSE, when="bound")
    with pytest.raises(OSError, match=r"no port is free on all of 127\.0\.0\.1, ::1"):
        open_listeners(["localhost"], 0, reuse_port=False)
    assert len(machine.made) == 2 * PORT_ATTEMPTS


def test_unknown_name_is_an_error_that_contains_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr("bridge.server.listeners.sockets.socket.getaddrinfo", unknown)
    with pytest.raises(OSError, match="'any' port 3000: Name or service not known") as raised:
        open_listeners(["any"], 3000, reuse_port=False)
    assert listen_hint(raised.value) == "BRIDGE_HOST must hold addresses or names of this machine"


@pytest.mark.parametrize(
    ("host", "number", "hint"),
    [
        ("fe80::1", errno.EINVAL, "a link-local address needs its network interface, as in BRIDGE_HOST=fe80::1%eth0"),
        ("fe80::1%eth0", errno.EINVAL, "set BRIDGE_HOST and BRIDGE_PORT to other values"),
        ("fd00::1", errno.EINVAL, "set BRIDGE_HOST and BRIDGE_PORT to other values"),
        ("kills", errno.EINVAL, "set BRIDGE_HOST and BRIDGE_PORT to other values"),
    ],
)
def test_link_local_address_without_its_interface_has_a_hint_to_it(host: str, number: int, hint: str) -> None:
    assert listen_hint(OSError(number, "Invalid argument", host)) == hint


@needs_ipv6
def test_link_local_address_on_a_missing_interface_is_an_error_that_names_it() -> None:
    with pytest.raises(OSError, match="fe80::1%none0 port 3000: ") as raised:
        open_listeners(["fe80::1%none0"], 3000, reuse_port=False)
    assert "'none0' must be a network interface of this machine" in listen_hint(raised.value)


@needs_ipv6
def test_link_local_address_without_its_interface_can_not_be_listened_on() -> None:
    with pytest.raises(OSError, match="fe80::1 port 3000: Invalid argument") as raised:
        open_listeners(["fe80::1"], 3000, reuse_port=False)
    assert "fe80::1%eth0" in listen_hint(raised.value)


def test_kernel_holds_little_for_a_client_that_is_accepted() -> None:
    with opened("127.0.0.1") as [listener]:
        listener.listen()
        with socket.create_connection(listener.getsockname()):
            accepted, _ = listener.accept()
            with accepted:
                assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) <= 2 * SEND_BUFFER_BYTES
                assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) <= 2 * RECEIVE_BUFFER_BYTES


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EADDRINUSE, "BRIDGE_PORT"),
        (errno.EACCES, "1024"),
        (errno.EIO, "set BRIDGE_HOST and BRIDGE_PORT to other values"),
    ],
)
def test_unavailable_address_has_a_hint(number: int, words: str) -> None:
    assert words in listen_hint(OSError(number, "why"))


def test_error_of_a_listener_exits_with_2_and_shows_no_password() -> None:
    error = address_unavailable(OSError(errno.EADDRNOTAVAIL, "'amqp://user:secret@host' port 3000: no such address"))
    assert error.exit_code == 2
    assert str(error).startswith("can't listen on ***@host' port 3000: no such address; ")


@pytest.mark.parametrize(("error", "when"), [(errno.EAFNOSUPPORT, "made"), (errno.EADDRNOTAVAIL, "bound")])
def test_addresses_after_localhost_are_bound_if_the_machine_has_no_ipv6(
    machine: Machine, error: int, when: str
) -> None:
    machine.refuse(socket.AF_INET6, error, when=when)
    with opened("localhost", "127.0.0.2") as both:
        assert addresses(both) == ["127.0.0.1", "127.0.0.2"]
        assert len(ports(both)) == 1


@needs_ipv6
def test_every_address_of_every_host_is_bound_in_their_order() -> None:
    with opened("127.0.0.2", "localhost", "127.0.0.3") as all_of_them:
        assert addresses(all_of_them) == ["127.0.0.2", "127.0.0.1", "::1", "127.0.0.3"]


def test_ipv6_of_localhost_that_fails_for_another_reason_is_an_error(machine: Machine) -> None:
    machine.refuse(socket.AF_INET6, errno.EACCES, when="bound")
    with pytest.raises(OSError, match=r"::1 port \d+: refused in this test") as raised:
        open_listeners(["localhost"], 0, reuse_port=False)
    assert raised.value.errno == errno.EACCES


def test_port_that_is_asked_for_and_taken_is_tried_once(machine: Machine) -> None:
    machine.refuse(socket.AF_INET, errno.EADDRINUSE, when="bound")
    with pytest.raises(OSError, match=r"127\.0\.0\.1 port 3000: refused in this test"):
        open_listeners(["127.0.0.1"], 3000, reuse_port=False)
    assert len(machine.made) == 1


def test_any_port_is_not_tried_again_after_another_error(machine: Machine) -> None:
    machine.refuse(socket.AF_INET, errno.EACCES, when="bound")
    with pytest.raises(OSError, match=r"127\.0\.0\.1 port 0: refused in this test"):
        open_listeners(["127.0.0.1"], 0, reuse_port=False)
    assert len(machine.made) == 1


@pytest.mark.parametrize("reuse_port", [False, True])
def test_port_is_shared_only_if_that_is_set(*, reuse_port: bool) -> None:
    with opened("127.0.0.1", reuse_port=reuse_port) as [listener]:
        assert bool(listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)) is reuse_port


@needs_ipv6
def test_ipv6_listener_does_not_block_either() -> None:
    with opened("::1") as [listener]:
        assert not listener.getblocking()


def test_connection_requests_are_not_dropped_on_another_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with opened("127.0.0.1") as [listener]:
        assert not drop_connection_requests(listener)


def test_connection_requests_are_not_dropped_if_the_kernel_refuses() -> None:
    with socket.socket() as listener:
        listener.close()
        assert not drop_connection_requests(listener)
