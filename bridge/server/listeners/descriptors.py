"""File descriptors: each client takes one, and most shells allow a process 1024."""

import resource
from dataclasses import dataclass

import structlog

OWN = 64
"""What the bridge needs beside its clients: listeners, brokers, files."""

RESERVE = 256
"""Clients beyond the limit that are told so, in HTTP or with a close code. Any more are dropped without a word: what a
full bridge says must not use up the descriptors that it needs for its broker."""

_log = structlog.get_logger("bridge")


@dataclass(frozen=True, slots=True)
class Places:
    """How many clients there is room for, and how many more while they are told that there is none."""

    connections: int
    reserve: int = RESERVE


def allow() -> None:
    """Raises this process's limit to what it may be."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def places(connections: int) -> Places:
    """So many, or what this process's limit leaves room for; says so where that is less.

    Clients alone can't use up the descriptors then.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY or limit >= connections + RESERVE + OWN:
        return Places(connections)
    room = max(2, limit - OWN)
    # Where there is little, no more than a fourth is for those who are turned away.
    reserve = min(RESERVE, max(1, room // 4))
    found = Places(min(connections, room - reserve), reserve)
    if found.connections < connections:
        _log.warning(
            "fewer file descriptors than BRIDGE_MAX_CONNECTIONS needs: the limit of connections is lower; raise that "
            "of descriptors (ulimit -n, LimitNOFILE)",
            descriptors=limit,
            max_connections=connections,
            connections=found.connections,
        )
    return found
