"""Clients that connect and send nothing, a bridge with TLS, and clients that don't trust it."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from bridge.app import Bridge
from bridge.demo.broker import Broker
from tests.support.certificates import certificate
from tests.support.running import running, sample

Line = tuple[asyncio.StreamReader, asyncio.StreamWriter]

PENDING = 5
"""Connections without a complete request, in tests of that limit."""


@asynccontextmanager
async def lines(port: int, count: int) -> AsyncIterator[list[Line]]:
    """Clients that connect and send nothing."""
    made = [await asyncio.open_connection("127.0.0.1", port) for _ in range(count)]
    yield made
    for _, writer in made:
        writer.transport.abort()


async def answer(line: Line) -> bytes:
    """All that the bridge sends until it ends the connection."""
    with suppress(ConnectionError):
        return await line[0].read(-1)
    return b""


def pending(bridge: Bridge) -> float:
    """Connections without a complete request."""
    return sample(bridge, "bridge_handshakes_pending")


@asynccontextmanager
async def secure(broker: Broker, exchange: str, folder: Path, **flags: object) -> AsyncIterator[tuple[Bridge, Path]]:
    """A bridge with a certificate, which clients are to trust."""
    chain, key = certificate(folder, "limits")
    flags |= {"exchanges": f"{exchange}=killmail", "tls_certificate": chain, "tls_key": key}
    async with running(broker.url, **flags) as bridge:
        yield bridge, chain


def distrust(port: int) -> None:
    """A TLS handshake by a client that knows no certificate. Not asyncio's: that one ends without saying why."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as line:
        ssl.create_default_context().wrap_socket(line, server_hostname="127.0.0.1")
