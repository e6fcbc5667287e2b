"""The sockets that clients connect to: every address of every host, on one port."""

import errno
import socket
import struct
import sys
from array import array
from collections.abc import Sequence

LOCALHOST = ("127.0.0.1", "::1")
"""Both, because many clients try ::1 first."""

BACKLOG = 4096
"""Connections that may wait to be accepted: everyone reconnects at once after a restart."""

SEND_BUFFER_BYTES = 65536
"""What the kernel may hold of what a client has not read; Linux takes twice as much, for its own structures.

Left to itself it takes 2.5 to 4 MB: memory that no limit of ours would count, though a container's does, and in which
a client that reads nothing looks for a thousand updates like one that does (`make bench`, slow: the readers' p99 was
2.8 times what it is without such clients). Nobody near needs more: at 1 ms of round trip it is enough for 100 MB a
second, at 50 ms for 2.5.
"""

RECEIVE_BUFFER_BYTES = 16384
"""What the kernel may hold of what a client has said and nobody has read yet: room for a request. Clients say next to
nothing beside that, and of one that says a lot no more is read than `allowance` lets. Left to itself the kernel takes
up to 6 MB for each: memory of the machine's, which no limit of the process counts."""

PORT_ATTEMPTS = 20
"""How often another port is tried, where any will do and one of the addresses has it taken."""

REMEDIES = {
    errno.EADDRINUSE: "end the program that has it, or name another port in BRIDGE_PORT",
    errno.EADDRNOTAVAIL: "this machine has no such address, or not yet: BRIDGE_HOST names it",
    errno.EACCES: "a port below 1024 is root's: name another one in BRIDGE_PORT",
}

SO_ATTACH_FILTER = 26
"""The number of this option on Linux (asm-generic/socket.h). Python's `socket` does not define it."""

_DROP_SYN = (
    (0x30, 0, 0, 13),  # load the byte of flags: the filter of a TCP socket gets the packet without its IP header
    (0x54, 0, 0, 0x12),  # keep only the flags SYN and ACK
    (0x15, 0, 1, 0x02),  # if only SYN is set,
    (0x06, 0, 0, 0),  # drop the packet
    (0x06, 0, 0, 0xFFFFFFFF),  # else keep the entire packet
)
"""A classic BPF program. Each step is a code, a jump if true, a jump if false, and an operand (linux/filter.h)."""

NO_SUCH_ADDRESS = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})


def open_listeners(hosts: Sequence[str], port: int, reuse_port: bool) -> list[socket.socket]:
    """Bound, not yet accepting sockets, all on the same port; `port` 0 picks one that is free on all addresses.

    `localhost` is 127.0.0.1 and, where the machine has it, ::1. Raises OSError, its text naming the address.
    """
    addresses = [address for host in hosts for address in (LOCALHOST if host == "localhost" else (host,))]
    for _ in range(PORT_ATTEMPTS):
        try:
            return _bind_all(addresses, port, reuse_port, optional=LOCALHOST[1] if "localhost" in hosts else None)
        except OSError as error:
            if port != 0 or error.errno != errno.EADDRINUSE:
                raise
    raise OSError(errno.EADDRINUSE, "no port is free on all of " + ", ".join(addresses))


def _bind_all(addresses: Sequence[str], port: int, reuse_port: bool, optional: str | None) -> list[socket.socket]:
    listeners: list[socket.socket] = []
    try:
        for address in addresses:
            try:
                listener = _bind(address, port, reuse_port)
            except OSError as error:
                if address == optional and error.errno in NO_SUCH_ADDRESS:
                    continue  # a machine without IPv6
                raise
            listeners.append(listener)
            port = listener.getsockname()[1]
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def remedy(error: OSError) -> str:
    """What an operator does where an address can't be listened on."""
    return REMEDIES.get(error.errno or 0, "BRIDGE_HOST and BRIDGE_PORT name others")


def _bind(address: str, port: int, reuse_port: bool) -> socket.socket:
    try:
        [(family, kind, protocol, _, name), *_] = socket.getaddrinfo(
            address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise OSError(error.errno, f"{address} port {port}: {error.strerror}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Whoever is accepted inherits it.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        if reuse_port:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(name)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"{address} port {port}: {error.strerror}") from error
    return listener


def drop_connection_requests(listener: socket.socket) -> bool:
    """Makes the kernel drop each new connection request (SYN). Returns False if the kernel can't, as outside Linux.

    The client repeats its request after a second, and then reaches another listener on the port. The kernel still
    establishes connections whose TCP handshake has begun. Without the filter, the kernel would choose this listener for
    new clients until it is closed, and would then reset these clients.
    """
    if sys.platform != "linux":
        return False
    program = array("B", b"".join(struct.pack("=HBBI", *step) for step in _DROP_SYN))
    address, _ = program.buffer_info()
    try:
        listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("@HP", len(_DROP_SYN), address))
    except OSError:
        return False  # a sandbox that emulates the kernel
    return True
