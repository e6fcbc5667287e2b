"""Measures the bridge's memory while clients read nothing: by number of clients, size of updates, and transport."""

import asyncio
import contextlib
import functools
import shutil
import socket
import ssl
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.bench.amqp import Channel, Publication
from tests.bench.candidates import Candidate, Place, Server, serving
from tests.bench.cases import Case, Figure, Row
from tests.bench.process import Failed, await_true
from tests.bench.publish import Events
from tests.support.broker.ports import LOOPBACK
from tests.support.certificates import certificate
from tests.support.clients import request
from tests.support.process_stats import MB, Memory, metric
from tests.support.running import UNPINGED

CLIENTS, QUICK_CLIENTS = (100, 2000), (50,)
SIZES = {"300 B": 300, "16 KB": 16_000, "256 KB": 256_000, "3.9 MB": 3_900_000}
"""The sizes of updates in bytes, by their names in the table."""

LOG_BYTES = 16 * MB
OWN_BYTES = 250
"""The size of an update without padding, in bytes."""

KERNEL_BYTES = 131_072
"""The maximum number of bytes that the kernel buffers for a client that does not read.

A single update that is larger than this stalls every client.
"""

STEP_BYTES = 65_536
"""Updates are published in steps of about this many bytes until all clients lag.

An update that is larger than a step is published as a step of its own.
"""

SAMPLE_S = 0.005
LIMIT_S = 120.0
HANDSHAKES = 8
"""The number of simultaneous handshakes.

Handshakes in several threads run in parallel, because OpenSSL releases Python's lock.
"""

_UPDATES = 'bridge_updates_total{type="killmail"}'
_LAGGING = 'bridge_connections_lagging{transport="websocket"}'
_EVICTED = 'bridge_evictions_total{reason="too-slow"}'


def cases(quick: bool) -> list[Case]:
    """Returns a case for each transport and size of updates."""
    counts = QUICK_CLIENTS if quick else CLIENTS
    return [
        Case(
            f"stalled: clients read nothing, {'TLS' if tls else 'plain'}, updates of {name}",
            [figure for clients in counts for figure in _figures(size, clients)],
            functools.partial(_measure_all, counts=counts, size=size, tls=tls),
            max(counts),
            only_ours=True,
        )
        for tls in (False, True)
        for name, size in SIZES.items()
    ]


def _figures(size: int, clients: int) -> list[Figure]:
    one = Figure(f"one_mb_{clients}", f"{clients} clients: MB grown after one update", 1)
    full = Figure(f"full_mb_{clients}", f"{clients} clients: MB grown after a full log, clients evicted", 1)
    return [one, full] if size > KERNEL_BYTES else [full]


def _measure_all(place: Place, candidate: Candidate, *, counts: Sequence[int], size: int, tls: bool) -> Row:
    """Starts a bridge for each number of clients: one that has run before reuses its memory and grows less."""
    return {
        f"{key}_{clients}": value
        for clients in counts
        for key, value in measure(place, candidate, clients=clients, size=size, tls=tls).items()
    }


def measure(place: Place, candidate: Candidate, *, clients: int, size: int, tls: bool) -> Row:
    """Returns the maximum growth of the bridge's memory after all clients have connected, in MB."""
    settings = {**UNPINGED, "BRIDGE_LOG_BYTES": str(LOG_BYTES)}
    row = {}
    with contextlib.ExitStack() as stack:
        context = None
        if tls:
            chain, key = _certificate(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-"))))
            context = ssl.create_default_context(cafile=chain)
            settings |= {"BRIDGE_TLS_CERTIFICATE": str(chain), "BRIDGE_TLS_KEY": str(key)}
        server = stack.enter_context(serving(candidate, place, **settings))
        publisher = _Publisher(stack.enter_context(Channel(place.amqp)), place.exchange, size, server, context)
        stack.enter_context(_stalled(server, clients, context))
        server.settle()
        memory = Memory(server.pid)
        with _sampled(memory):
            if size > KERNEL_BYTES:
                publisher.publish(1)
                publisher.await_metric(_LAGGING, clients)
                server.settle()
            else:
                publisher.stall(clients)
        if size > KERNEL_BYTES:
            row["one_mb"] = memory.look() / MB
        with _sampled(memory):
            publisher.publish(LOG_BYTES // size + 1)
            publisher.await_metric(_EVICTED, clients)
        row["full_mb"] = memory.look() / MB
    return row


class _Publisher:
    """Publishes updates of one size, and reads the bridge's metrics."""

    def __init__(
        self, channel: Channel, exchange: str, size: int, server: Server, context: ssl.SSLContext | None
    ) -> None:
        self._channel = channel
        self._size = size
        self._publication = Publication(exchange)
        self._events = Events(size - OWN_BYTES)
        self._server = server
        self._context = context
        self._count = self.metric(_UPDATES)

    def publish(self, count: int) -> None:
        """Publishes updates. Returns when the bridge has broadcast all updates that were published so far."""
        for _ in range(count):
            self._channel.write(self._publication.of(self._events.next()))
        self._count += count
        self.await_metric(_UPDATES, self._count)

    def stall(self, clients: int) -> None:
        """Publishes until the sockets of all clients are full, so that all clients lag.

        A client can also lag for a moment because nothing has been written to it yet.
        """
        step = max(1, STEP_BYTES // self._size)
        while True:
            self.publish(step)
            if self.metric(_LAGGING) == clients:
                self._server.settle()
                if self.metric(_LAGGING) == clients:
                    return

    def metric(self, name: str) -> float:
        """Returns a sample of the bridge's metrics."""
        return asyncio.run(metric(self._server.port, name, self._context))

    def await_metric(self, name: str, value: float) -> None:
        """Returns as soon as a sample of the metric has the value."""
        await_true(f"{name} is {value:.0f}", lambda: self.metric(name) == value, LIMIT_S, 0.02)


@contextlib.contextmanager
def _sampled(memory: Memory) -> Iterator[None]:
    """Samples the memory until the end of the context."""
    over = threading.Event()

    def look() -> None:
        while not over.wait(SAMPLE_S):
            memory.look()

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextlib.contextmanager
def _stalled(server: Server, count: int, context: ssl.SSLContext | None) -> Iterator[None]:
    """Connects clients that read the response to their handshake, and nothing after it."""
    with contextlib.ExitStack() as clients, ThreadPoolExecutor(HANDSHAKES) as pool:
        try:
            for client in pool.map(lambda _: _client(server, context), range(count)):
                clients.enter_context(client)
        except OSError as error:
            raise Failed(f"a client can't connect: {error}") from error
        yield


def _client(server: Server, context: ssl.SSLContext | None) -> socket.socket:
    client = socket.socket()
    client.settimeout(LIMIT_S)
    # The buffer size must be set before the connection is opened, because the TCP handshake announces a window of this
    # size. The kernel raises a size of 1 to the smallest size that it allows.
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    client.connect((LOOPBACK, server.port))
    if context is not None:
        client = context.wrap_socket(client, server_hostname=LOOPBACK)
    client.sendall(request(server.port))
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = client.recv(1)
        if not byte:
            raise Failed(f"a client was refused: {head!r}")
        head += byte
    if not head.startswith(b"HTTP/1.1 101 "):
        raise Failed(f"a client was refused: {head!r}")
    return client


def _certificate(folder: Path) -> tuple[Path, Path]:
    if shutil.which("openssl") is None:
        raise Failed("the command openssl, which makes the certificate, is missing")
    return certificate(folder, "bridge")
