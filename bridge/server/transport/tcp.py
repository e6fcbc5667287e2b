"""Reads the state of a TCP connection from the kernel, and sets how the connection ends (tcp(7), socket(7))."""

import asyncio
import socket
import struct
from contextlib import suppress

_ENDED = frozenset({7, 8})
"""The kernel's states TCP_CLOSE, which follows a reset, and TCP_CLOSE_WAIT (tcp_states.h)."""

_BYTES_ACKED = struct.Struct("=Q")
_BYTES_ACKED_AT = 120
"""The offset of `tcpi_bytes_acked` in `struct tcp_info`, since Linux 4.1."""

_HAS_TCP_INFO = hasattr(socket, "TCP_INFO")

RESET = struct.pack("ii", 1, 0)
"""The value of the socket option SO_LINGER with which `close` resets the connection."""


def has_ended(client: socket.socket) -> bool:
    """Whether the client has ended its side of the connection, or the connection was reset.

    Returns False if the kernel does not report the connection's state.

    Raises OSError if the socket is closed.
    """
    return _HAS_TCP_INFO and client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] in _ENDED


def acknowledged_bytes(client: socket.socket) -> int | None:
    """Returns how many bytes the client's kernel has acknowledged, or None if the bridge's kernel does not report this.

    Raises OSError if the socket is closed.
    """
    if not _HAS_TCP_INFO:
        return None
    size = _BYTES_ACKED_AT + _BYTES_ACKED.size
    info = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, size)
    return int(_BYTES_ACKED.unpack_from(info, _BYTES_ACKED_AT)[0]) if len(info) == size else None


def peer_name(transport: asyncio.BaseTransport) -> str | None:
    """Returns the client's address and port, for logs, or None if the transport is closed."""
    name = transport.get_extra_info("peername")
    return _peer_text(*name[:2]) if name else None


def socket_peer_name(client: socket.socket) -> str | None:
    """Makes a system call, and returns the client's address and port for logs.

    Returns None if the client has disconnected.
    """
    try:
        return _peer_text(*client.getpeername()[:2])
    except OSError:
        return None


def _peer_text(address: str, port: int) -> str:
    return f"{address} port {port}"


def reset_on_close(client: socket.socket | None) -> None:
    """Ensures that a later `close` resets the connection, so that the kernel drops the data that it has not sent.

    Does nothing if the socket is closed or None. A TLS connection that has just ended has no socket.
    """
    with suppress(OSError):
        if client is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
