"""Computes how many clients the process's limit of file descriptors allows.

Each client takes one descriptor, and most shells allow 1024 descriptors for a process.
"""

import fcntl
import os
import resource
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

OWN_DESCRIPTORS = 64
"""The number of descriptors that the bridge needs for listeners, connections to the broker, and files."""

MAX_OVERFLOW = 256
"""The number of connections beyond the limit that get an HTTP response or a close code.

Connections beyond the limit plus this overflow are closed without an answer, so that refused clients never use the
descriptors for the connection to the broker.
"""

_log = structlog.get_logger("bridge")


@dataclass(frozen=True, slots=True)
class Capacity:
    """The number of connections for which this process has enough descriptors."""

    connections: int
    overflow: int = MAX_OVERFLOW
    """How many connections beyond the limit `connections` get an answer."""


def raise_nofile_limit() -> None:
    """Raises the soft limit of file descriptors to the hard limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def grow_descriptor_table(capacity: Capacity) -> None:
    """Makes the kernel allocate its table of this process's descriptors for all connections at once.

    Otherwise, the kernel doubles the table while clients connect. If the process has several threads, the kernel then
    waits until no processor uses the old table. Each doubling therefore stops the process for 10 to 20 ms.
    """
    highest = capacity.connections + capacity.overflow + OWN_DESCRIPTORS - 1
    with Path(os.devnull).open("rb") as file, suppress(OSError):  # the limit is lower than OWN_DESCRIPTORS
        os.close(fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, highest))


def connection_capacity(max_connections: int) -> Capacity:
    """Returns the capacity for `max_connections`, or logs a warning and returns a lower capacity.

    With the returned capacity, clients can't use up all descriptors.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY or limit >= max_connections + MAX_OVERFLOW + OWN_DESCRIPTORS:
        return Capacity(max_connections)
    available = max(2, limit - OWN_DESCRIPTORS)
    # Refused clients get at most a quarter of the descriptors.
    overflow = min(MAX_OVERFLOW, max(1, available // 4))
    capacity = Capacity(min(max_connections, available - overflow), overflow)
    if capacity.connections < max_connections:
        _log.warning(
            "connection limit lowered: BRIDGE_MAX_CONNECTIONS needs more file descriptors",
            descriptors=limit,
            max_connections=max_connections,
            connections=capacity.connections,
            hint="raise the limit of descriptors (ulimit -n, LimitNOFILE), or lower BRIDGE_MAX_CONNECTIONS",
        )
    return capacity
