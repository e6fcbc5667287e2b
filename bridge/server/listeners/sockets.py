"""The listening sockets for clients, which cover every address of every configured host on one port."""

import errno
import ipaddress
import socket
import struct
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bridge.config.listen_addresses import EVERY, EVERY_IPV4, LOCALHOST
from bridge.config.networks import Network
from bridge.errors import AddressUnavailable, redact

BACKLOG = 4096
"""The length of the kernel's queue of new connections. This queue is long, because all clients connect at the same time
after a restart."""

SEND_BUFFER_BYTES = 65536
"""The size of the kernel's send buffer for each client. Linux doubles this size, for the kernel's own structures.

By default, the kernel holds 2.5 to 4 MB for a client that does not read. The kernel's memory counts toward a
container's memory limit, but the bridge's own limits do not include it. With the default size, a client could stop
reading, and the bridge would not notice until a thousand updates later. With the default size instead of 64 KiB, slow
clients made the other clients' p99 latency 2.8 times as high (`make bench`, slow). With a send buffer of 64 KiB, a
client can receive 100 MB a second if the round trip takes 1 ms, and 2.5 MB a second if it takes 50 ms.
"""

RECEIVE_BUFFER_BYTES = 16384
"""The size of the kernel's receive buffer for each client, which must hold a request.

After their request, clients send almost nothing, and `read_limiter` throttles clients that send more. By default, the
kernel holds up to 6 MB of received data for each client, and no limit of the process counts this data.
"""

PORT_ATTEMPTS = 20
"""The maximum number of ports that are tried to find a port that is free on all addresses."""

_HINTS = {
    errno.EADDRINUSE: "another program uses the port (`ss -ltnp` shows which): end it, or set BRIDGE_PORT (--port) to "
    "another port",
    errno.EADDRNOTAVAIL: "this machine does not have this address: set BRIDGE_HOST to its own addresses",
    errno.EACCES: "a port below 1024 needs privileges: set BRIDGE_PORT (--port) to a higher port",
    errno.EAFNOSUPPORT: "this machine does not have this kind of address: set BRIDGE_HOST to its own addresses",
}

SO_ATTACH_FILTER = 26
"""The number of the socket option SO_ATTACH_FILTER on Linux (asm-generic/socket.h). Python's module `socket` does not
define SO_ATTACH_FILTER."""

_DROP_SYN = (
    (0x30, 0, 0, 13),  # load the byte of TCP flags, at offset 13 of the packet without its IP header
    (0x54, 0, 0, 0x12),  # keep only the flags SYN and ACK
    (0x15, 0, 1, 0x02),  # if only SYN is set, run the next step; otherwise, skip it
    (0x06, 0, 0, 0),  # drop the packet
    (0x06, 0, 0, 0xFFFFFFFF),  # keep the entire packet
)
"""A classic BPF program that drops connection requests. Each step has a code, a jump if true, a jump if false, and an
operand (linux/filter.h)."""

NO_SUCH_ADDRESS = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})


@dataclass(frozen=True, slots=True)
class _Target:
    """An address to bind to."""

    host: str
    """The host as the operator wrote it, and as errors show it."""
    family: socket.AddressFamily
    name: tuple[Any, ...]
    """The argument for `socket.bind`. The port in this argument is replaced later."""
    optional: bool
    """Whether it is acceptable that the machine does not have this address."""

    @property
    def is_wildcard(self) -> bool:
        return self.name[0] in {EVERY, EVERY_IPV4}


def open_listeners(hosts: Sequence[str], port: int, reuse_port: bool) -> list[socket.socket]:
    """Returns bound sockets, one for each address, all on the same port. The sockets do not listen yet.

    If `port` is 0, the function chooses a port that is free on all addresses. The host `localhost` means 127.0.0.1 and,
    if the machine has IPv6, ::1. The host `::` means all addresses, and gets a second socket for IPv4. If IPv6 and IPv4
    shared a single socket, IPv4 clients would appear with IPv6 addresses. An address is bound only once, or not at all
    if the wildcard address of its family is bound. Raises OSError with the address in its text.
    """
    targets = _targets(hosts, port)
    for _ in range(PORT_ATTEMPTS):
        try:
            return _bind_all(targets, port, reuse_port)
        except OSError as error:
            if port != 0 or error.errno != errno.EADDRINUSE:
                raise
    raise OSError(errno.EADDRINUSE, "no port is free on all of " + ", ".join(target.host for target in targets))


def _targets(hosts: Sequence[str], port: int) -> Sequence[_Target]:
    several = {"localhost": LOCALHOST, EVERY: (EVERY, EVERY_IPV4)}
    found: dict[tuple[Any, ...], _Target] = {}
    for host in hosts:
        first, *others = several.get(host, (host,))
        for address in (first, *others):
            target = _resolved(address, port, optional=address in others and address not in hosts)
            found.setdefault((target.family, *target.name), target)
    wildcards = {target.family for target in found.values() if target.is_wildcard}
    return [target for target in found.values() if target.is_wildcard or target.family not in wildcards]


def _resolved(host: str, port: int, optional: bool) -> _Target:
    try:
        [(family, _, _, _, name), *_] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise socket.gaierror(error.errno, f"{_shown(host)} port {port}: {error.strerror}", host) from error
    return _Target(host, family, name, optional)


def _bind_all(targets: Sequence[_Target], port: int, reuse_port: bool) -> list[socket.socket]:
    listeners: list[socket.socket] = []
    try:
        for target in targets:
            try:
                listener = _bind(target, port, reuse_port)
            except OSError as error:
                if target.optional and error.errno in NO_SUCH_ADDRESS:
                    continue  # this machine does not support IPv6, or does not support IPv4
                raise
            listeners.append(listener)
            port = listener.getsockname()[1]
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def address_unavailable(error: OSError) -> AddressUnavailable:
    """Converts an error of `open_listeners` to the error of a command.

    The new error names the address, and tells the operator what to do.
    """
    # The operator may have set the host to a URL with a password by mistake.
    return AddressUnavailable(f"can't listen on {redact(str(error.strerror))}; {listen_hint(error)}")


def listen_hint(error: OSError) -> str:
    """Returns the hint for the operator about an error of `open_listeners`."""
    if error.filename == EVERY and error.errno in NO_SUCH_ADDRESS:
        return f"this machine has no IPv6; set BRIDGE_HOST={EVERY_IPV4} for all IPv4 addresses"
    address, _, zone = str(error.filename).partition("%")
    if isinstance(error, socket.gaierror):
        if zone:
            return f"BRIDGE_HOST: {zone!r} must be a network interface of this machine, and can't be used"
        return "BRIDGE_HOST must hold addresses or names of this machine"
    if error.errno == errno.EINVAL and not zone and _is_link_local(address):
        return f"a link-local address needs its network interface, as in BRIDGE_HOST={address}%eth0"
    return _HINTS.get(error.errno or 0, "set BRIDGE_HOST and BRIDGE_PORT to other values")


def _is_link_local(host: str) -> bool:
    return _is_address(host) and ipaddress.ip_address(host).is_link_local


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _shown(host: str) -> str:
    """Returns the text of a host for an error.

    Names of hosts are shown in quotes, because a name may be a word such as `any`.
    """
    return host if _is_address(host) else repr(host)


def source_address(network: Network) -> str | None:
    """Returns the address from which this machine sends to a network, or None if it has no route to the network.

    Sends nothing.
    """
    family = socket.AF_INET if network.version == 4 else socket.AF_INET6
    # The first address of a network stands for the network itself, unless the network has only one address.
    target = network[1] if network.num_addresses > 1 else network[0]
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((str(target), 9))
            return str(probe.getsockname()[0])
    except OSError:
        return None


def _bind(target: _Target, port: int, reuse_port: bool) -> socket.socket:
    listener = None
    try:
        listener = socket.socket(target.family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted sockets inherit these options from the listening socket.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if reuse_port:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if target.family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        address, _, *rest = target.name
        listener.bind((address, port, *rest))
        listener.setblocking(False)
    except OSError as error:
        if listener is not None:
            listener.close()
        # The error's attribute `filename` holds the address, which `listen_hint` needs.
        raise OSError(error.errno, f"{_shown(target.host)} port {port}: {error.strerror}", target.host) from error
    return listener


def drop_connection_requests(listener: socket.socket) -> bool:
    """Makes the kernel drop each new connection request (SYN).

    Returns False if the kernel can't drop these requests, as on systems other than Linux. A dropped client repeats its
    request after a second, and the repeated request reaches another listener on the port. The kernel still establishes
    connections that have begun their TCP handshake. Without the filter, the kernel would still assign new clients to
    this listener, and reset these clients when the listener is closed.
    """
    if sys.platform != "linux":
        return False
    program = array("B", b"".join(struct.pack("=HBBI", *step) for step in _DROP_SYN))
    address, _ = program.buffer_info()
    try:
        listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("@HP", len(_DROP_SYN), address))
    except OSError:
        return False  # a sandbox that emulates the kernel may lack the option SO_ATTACH_FILTER
    return True
