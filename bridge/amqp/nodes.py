"""The addresses of the broker's nodes, with credentials, from the settings or from a file that can change."""

from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import overload
from urllib.parse import unquote, urlsplit

import structlog

from bridge.amqp.timeouts import rpc_timeout
from bridge.config.amqp_urls import amqp_urls, virtual_host
from bridge.config.sources import content
from bridge.config.text_files import NotPlainTextError

PORTS = {"amqp": 5672, "amqps": 5671}

_log = structlog.get_logger("bridge.amqp")


@dataclass(frozen=True, slots=True)
class Node:
    """The address of one broker node, with credentials. `str(node)` never contains the password."""

    url: str = field(repr=False)

    def __str__(self) -> str:
        parts = urlsplit(self.url)
        user = f"{parts.username}:***@" if parts.username else ""
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        return f"{parts.scheme}://{user}{host}:{parts.port or PORTS[parts.scheme]}{parts.path}"

    @property
    def user(self) -> str:
        """The user name in the URL, or `guest` if the URL has no user name."""
        return unquote(urlsplit(self.url).username or "guest")

    @property
    def virtual_host(self) -> str:
        """The virtual host named in the path of the URL, or `/` if the URL has no path."""
        return virtual_host(self.url)


class NodesFile(Sequence[Node]):
    """The broker nodes in a file. Each iteration reads the file again, so that a new password takes effect."""

    def __init__(self, urls: Sequence[str], read: Callable[[], Sequence[str]]) -> None:
        """`urls` contains the URLs from the first read of the file.

        If `read` raises OSError or ValueError, the nodes from the last successful read stay in use.
        """
        self._nodes = tuple(map(Node, urls))
        self._read = read
        self._is_unusable = False

    def __iter__(self) -> Iterator[Node]:
        """Reads the file, and iterates over all nodes in the file."""
        try:
            self._nodes = tuple(map(Node, self._read()))
        except (OSError, ValueError) as error:
            if not self._is_unusable:
                self._is_unusable = True
                if isinstance(error, OSError):
                    reason = error.strerror
                else:
                    # The text of the file is not logged, because it may contain a password.
                    reason = str(error) if isinstance(error, NotPlainTextError) else "it contains no usable URL"
                _log.warning("BRIDGE_AMQP_URL_FILE can't be read again; using its last content", error=reason)
        else:
            self._is_unusable = False
        return iter(self._nodes)

    @overload
    def __getitem__(self, index: int) -> Node: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Node]: ...

    def __getitem__(self, index: int | slice) -> Node | Sequence[Node]:
        """Returns one node or a slice of the nodes that were in the file when it was last read."""
        return self._nodes[index]

    def __len__(self) -> int:
        """Returns the number of nodes that were in the file when it was last read."""
        return len(self._nodes)


def broker_nodes(urls: Sequence[str], file: Path | None) -> Sequence[Node]:
    """Returns the nodes for the URLs. If `file` is given, each iteration over the nodes reads the file again."""
    if file is None:
        return tuple(map(Node, urls))
    return NodesFile(urls, lambda: amqp_urls(content(file).strip()))


class NodeRotation:
    """The order in which the bridge tries the nodes.

    A node that accepts a connection but can't be used moves to the end.
    """

    def __init__(self, nodes: Sequence[Node]) -> None:
        self._nodes = nodes
        self._failed_setups = 0

    def order(self) -> Sequence[Node]:
        """Returns all nodes, beginning with the next node to try."""
        ordered = deque(self._nodes)
        ordered.rotate(-self._failed_setups)
        return tuple(ordered)

    @asynccontextmanager
    async def setup(self, limit_s: float) -> AsyncIterator[None]:
        """Raises ConnectionError if all setup requests on a new connection take longer than `limit_s` in total."""
        try:
            async with rpc_timeout(limit_s):
                yield
        except ConnectionError:
            self._failed_setups += 1
            raise
