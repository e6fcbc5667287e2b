"""The nodes of the broker: their addresses, with credentials, from the settings or from a file that may be renewed."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import overload
from urllib.parse import urlsplit

import structlog

from bridge.config.amqp_urls import amqp_urls, virtual_host
from bridge.config.sources import content
from bridge.config.text_files import NotPlainTextError

PORTS = {"amqp": 5672, "amqps": 5671}

_log = structlog.get_logger("bridge.amqp")


@dataclass(frozen=True, slots=True)
class Node:
    """The address of one node, with credentials. Its text never shows the password."""

    url: str = field(repr=False)

    def __str__(self) -> str:
        parts = urlsplit(self.url)
        user = f"{parts.username}:***@" if parts.username else ""
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        return f"{parts.scheme}://{user}{host}:{parts.port or PORTS[parts.scheme]}{parts.path}"

    @property
    def virtual_host(self) -> str:
        """The virtual host that the URL's path names; `/` where it names none."""
        return virtual_host(self.url)


class RenewedNodes(Sequence[Node]):
    """Nodes from a file. Each iteration reads the file again, so that a secret can be renewed there."""

    def __init__(self, urls: Sequence[str], read: Callable[[], Sequence[str]]) -> None:
        """If `read` raises OSError or ValueError, the last nodes stay in use."""
        self._nodes = tuple(map(Node, urls))
        self._read = read
        self._unusable = False

    def __iter__(self) -> Iterator[Node]:
        """All of them, as the file names them now."""
        try:
            self._nodes = tuple(map(Node, self._read()))
        except (OSError, ValueError) as error:
            if not self._unusable:
                self._unusable = True
                if isinstance(error, OSError):
                    reason = error.strerror
                else:
                    # Of a text that can't be used, nothing is said: it may be a password.
                    reason = str(error) if isinstance(error, NotPlainTextError) else "it holds no usable URL"
                _log.warning("BRIDGE_AMQP_URL_FILE can't be read again; its last content is used", error=reason)
        else:
            self._unusable = False
        return iter(self._nodes)

    @overload
    def __getitem__(self, index: int) -> Node: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Node]: ...

    def __getitem__(self, index: int | slice) -> Node | Sequence[Node]:
        """Those that were read last."""
        return self._nodes[index]

    def __len__(self) -> int:
        """How many were read last."""
        return len(self._nodes)


def broker_nodes(urls: Sequence[str], file: Path | None) -> Sequence[Node]:
    """The nodes of the URLs. If `file` is given, it is read again for each connection."""
    if file is None:
        return tuple(map(Node, urls))
    return RenewedNodes(urls, lambda: amqp_urls(content(file).strip()))


def rotated(nodes: Sequence[Node], count: int) -> Sequence[Node]:
    """The same nodes, so many places on: what was first is last after one."""
    found = deque(nodes)
    found.rotate(-count)
    return tuple(found)
