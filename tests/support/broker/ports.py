"""Local ports: choosing one, and waiting until a broker answers on it. Knows nothing of who listens there."""

import contextlib
import secrets
import socket
import time
from collections.abc import Callable

LOOPBACK = "127.0.0.1"

# Below the ports that Linux gives to outgoing connections (32768 and up). A port from among those can be lost while its
# broker is down: a client that dials it again and again is one day given it as its own, and is connected to itself.
_FIRST_PORT, _LAST_PORT = 20000, 32000

# AMQP 0-9-1, section 4.2.2: the protocol header that a client opens with, and the type of a method frame.
_AMQP_HEADER = b"AMQP\x00\x00\x09\x01"
_METHOD_FRAME = b"\x01"


def free_port() -> int:
    """A TCP port on which nothing listens at 127.0.0.1, and which stays free while its owner is away."""
    for _ in range(1000):
        port = _FIRST_PORT + secrets.randbelow(_LAST_PORT - _FIRST_PORT)
        if why_not_free(LOOPBACK, port) is None:
            return port
    raise OSError(f"no free TCP port found from {_FIRST_PORT} to {_LAST_PORT}")


def why_not_free(host: str, port: int) -> OSError | None:
    """The error that listening on this literal address would end with, or None where it would work."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            # Without it, connections that were closed a moment ago would pass for a listener.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            listener.listen()
    except OSError as error:
        return error
    return None


def answers_amqp(host: str, port: int) -> bool:
    """Whether a broker of AMQP 0-9-1 listens there: it answers the protocol header with a method frame."""
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=2) as connection:
        connection.sendall(_AMQP_HEADER)
        return connection.recv(1) == _METHOD_FRAME
    return False


def await_amqp(host: str, port: int, timeout_s: float, alive: Callable[[], bool] = lambda: True) -> None:
    """Return when a broker answers AMQP 0-9-1 at the address.

    Raises TimeoutError when none did for timeout_s, and ChildProcessError as soon as `alive` says that none will.
    """
    deadline = time.monotonic() + timeout_s
    while not answers_amqp(host, port):
        if not alive():
            raise ChildProcessError(f"the broker for {host}:{port} ended before it answered AMQP")
        if time.monotonic() > deadline:
            raise TimeoutError(f"no broker answered AMQP on {host}:{port} within {timeout_s:.0f} s")
        time.sleep(0.05)
