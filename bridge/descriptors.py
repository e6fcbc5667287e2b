"""File descriptors: each client takes one, and most shells allow a process 1024."""

import resource

import structlog

OWN = 64
"""What the bridge needs beside its clients: listeners, brokers, files, and some to refuse clients with."""

_log = structlog.get_logger("bridge")


def allow(connections: int) -> None:
    """Raises this process's limit to what it may be; says so where that is not enough for so many connections."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard != resource.RLIM_INFINITY and hard < connections + OWN:
        _log.warning(
            "fewer file descriptors than connections allowed; raise the limit (ulimit -n, LimitNOFILE), "
            "or lower BRIDGE_MAX_CONNECTIONS",
            descriptors=hard,
            max_connections=connections,
        )
