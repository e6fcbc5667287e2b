"""Waits until a new broker answers over AMQP."""

import contextlib
import socket
import time
from collections.abc import Callable

LOOPBACK = "127.0.0.1"

# The protocol header that an AMQP client sends first, and the type of a method frame (AMQP 0-9-1, section 4.2.2).
_AMQP_HEADER = b"AMQP\x00\x00\x09\x01"
_METHOD_FRAME = b"\x01"


def answers_amqp(host: str, port: int) -> bool:
    """Returns whether a broker answers the protocol header of AMQP 0-9-1 with a method frame."""
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=2) as connection:
        connection.sendall(_AMQP_HEADER)
        return connection.recv(1) == _METHOD_FRAME
    return False


def await_amqp(host: str, port: int, timeout_s: float, runs: Callable[[], bool]) -> None:
    """Blocks until a broker at this address answers over AMQP.

    Raises TimeoutError after `timeout_s`, and ChildProcessError as soon as `runs` returns False.
    """
    deadline_s = time.monotonic() + timeout_s
    while not answers_amqp(host, port):
        if not runs():
            raise ChildProcessError(f"the broker at {host}:{port} ended before it answered AMQP")
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"no broker answered AMQP at {host}:{port} within {timeout_s:.0f} s")
        time.sleep(0.05)
