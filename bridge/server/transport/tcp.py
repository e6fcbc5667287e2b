"""What the kernel knows of a TCP connection and no read or write tells (Linux: `struct tcp_info`, tcp(7))."""

import socket
import struct

_ENDED = frozenset({7, 8})
"""TCP_CLOSE, after a reset, and TCP_CLOSE_WAIT (tcp_states.h)."""

_BYTES_ACKED = struct.Struct("=Q")
_BYTES_ACKED_AT = 120
"""Where `tcpi_bytes_acked` is, since Linux 4.1."""

_HAS_TCP_INFO = hasattr(socket, "TCP_INFO")


def has_ended(client: socket.socket) -> bool:
    """Whether the client has ended its side, or the connection was reset. False where the kernel doesn't say.

    Raises OSError if the socket is closed.
    """
    return _HAS_TCP_INFO and client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] in _ENDED


def acknowledged_bytes(client: socket.socket) -> int | None:
    """How many bytes the client's kernel has acknowledged. None where this kernel doesn't say.

    Raises OSError if the socket is closed.
    """
    if not _HAS_TCP_INFO:
        return None
    size = _BYTES_ACKED_AT + _BYTES_ACKED.size
    info = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, size)
    return int(_BYTES_ACKED.unpack_from(info, _BYTES_ACKED_AT)[0]) if len(info) == size else None
