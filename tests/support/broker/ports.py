"""Free TCP ports of this machine."""

import secrets
import socket

from bridge.demo.amqp_probe import LOOPBACK

__all__ = ["LOOPBACK", "free_port", "why_not_free"]

# Tests use ports below those that Linux assigns to outgoing connections (32768 and up). If a broker listened on an
# assigned port, a client that reconnects while the broker is down could get this port as its own, and connect to
# itself.
_FIRST_PORT, _LAST_PORT = 20000, 32000

_returned: set[int] = set()
"""The returned ports stay reserved, because a node may start to listen later, or may be started again."""


def free_port() -> int:
    """Returns a TCP port on which nothing listens at 127.0.0.1. No port is returned twice.

    Linux does not assign the port to an outgoing connection, even while no broker listens on it.
    """
    for _ in range(1000):
        port = _FIRST_PORT + secrets.randbelow(_LAST_PORT - _FIRST_PORT)
        if port not in _returned and why_not_free(LOOPBACK, port) is None:
            _returned.add(port)
            return port
    raise OSError(f"no free TCP port found from {_FIRST_PORT} to {_LAST_PORT}")


def why_not_free(host: str, port: int) -> OSError | None:
    """Tries to listen on this IP address and port. Returns the error, or None if listening works."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            # Without SO_REUSEADDR, a connection in TIME_WAIT would look like a listener.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            listener.listen()
    except OSError as error:
        return error
    return None
