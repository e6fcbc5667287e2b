"""Reads the state of a TCP connection from the kernel, and sets how the connection ends (tcp(7), socket(7))."""

import errno
import socket
import struct
from contextlib import suppress
from typing import NamedTuple

_CLOSED, _CLOSE_WAIT = 7, 8
"""The kernel's states TCP_CLOSE, which follows a reset or a timeout, and TCP_CLOSE_WAIT (tcp_states.h)."""

_ENDED = frozenset({_CLOSED, _CLOSE_WAIT})

_BYTES_ACKED = struct.Struct("=Q")
_BYTES_ACKED_AT = 120
"""The offset of `tcpi_bytes_acked` in `struct tcp_info`, since Linux 4.1."""

_HAS_TCP_INFO = hasattr(socket, "TCP_INFO")

_USER_TIMEOUT: int | None = getattr(socket, "TCP_USER_TIMEOUT", None)

_TIMEOUTS = frozenset({errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH})
"""The errors with which the kernel ends a connection whose client acknowledges nothing.

If a router or the bridge's own kernel has reported meanwhile that it can't reach the client, the error is this report
instead of ETIMEDOUT (`sk_err_soft` in the kernel).
"""

RESET = struct.pack("ii", 1, 0)
"""The value of the socket option SO_LINGER with which `close` resets the connection."""


class PeerName(NamedTuple):
    """The address and the port of a client's socket."""

    address: str
    """The IP address, as the kernel formats it."""
    port: int

    @property
    def text(self) -> str:
        """The address and the port, for logs."""
        return f"{self.address} port {self.port}"


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


def set_user_timeout(client: socket.socket, timeout_s: float) -> None:
    """Makes the kernel end the connection if the client's kernel acknowledges none of the sent data for `timeout_s`.

    `timeout_s` is at most 24 days. Does nothing if the socket is closed, or on kernels without TCP_USER_TIMEOUT.
    """
    if _USER_TIMEOUT is not None:
        with suppress(OSError):
            client.setsockopt(socket.IPPROTO_TCP, _USER_TIMEOUT, max(1, round(timeout_s * 1000)))


def has_timed_out(client: socket.socket, error: Exception | None) -> bool:
    """Whether the kernel ended a connection because its client acknowledged nothing for too long.

    `error` is the error with which the connection was lost, or None.
    """
    if isinstance(error, OSError) and error.errno in _TIMEOUTS:
        return True
    # The kernel reports its error only once. A flush writes to many sockets at once, and ignores their errors.
    if not _HAS_TCP_INFO or not (error is None or isinstance(error, BrokenPipeError)):
        return False
    with suppress(OSError):
        state, _, retransmissions = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 3)
        return state == _CLOSED and retransmissions > 0
    return False


def reset_on_close(client: socket.socket | None) -> None:
    """Ensures that a later `close` resets the connection, so that the kernel drops the data that it has not sent.

    Does nothing if the socket is closed or None. A TLS connection that has just ended has no socket.
    """
    with suppress(OSError):
        if client is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
