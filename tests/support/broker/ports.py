"""Free TCP ports of this machine."""

import secrets
import socket

from bridge.demo.amqp_probe import LOOPBACK

__all__ = ["LOOPBACK", "free_port", "why_not_free"]

# Tests use ports below those that Linux assigns to outgoing connections (32768 and up). While a broker on an assigned
# port is down, a client that reconnects repeatedly can get the same port as its own, and connect to itself.
_FIRST_PORT, _LAST_PORT = 20000, 32000

_returned: set[int] = set()
"""The ports that this process has returned, because a node may listen on its port only later, or start again."""


def free_port() -> int:
    """Returns a TCP port on which nothing listens at 127.0.0.1, and never the same port twice.

    The port stays free while its broker is down.
    """
    for _ in range(1000):
        port = _FIRST_PORT + secrets.randbelow(_LAST_PORT - _FIRST_PORT)
        if port not in _returned and why_not_free(LOOPBACK, port) is None:
            _returned.add(port)
            return port
    raise OSError(f"no free TCP port found from {_FIRST_PORT} to {_LAST_PORT}")


def why_not_free(host: str, port: int) -> OSError | None:
    """Returns the error of listening on this IP address and port, or None if listening works."""
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
