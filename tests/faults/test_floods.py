"""If clients flood the bridge, it reads from them no faster than its limits allow.

Other clients hardly notice the flood.

A client that floods must wait when it writes, because the kernel buffers only a few bytes for it.
"""

import asyncio
import multiprocessing
import selectors
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator, Awaitable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from aio_pika.abc import AbstractConnection

from bridge.server.access.read_limiter import (
    CLIENT_BUDGET_BYTES,
    FRAME_COST_BYTES,
    MAX_READ_BYTES,
    PERIOD_S,
    RESUMED_PER_PERIOD,
    THROTTLED_READ_BYTES,
    TOTAL_BUDGET_BYTES,
)
from bridge.server.listeners.sockets import RECEIVE_BUFFER_BYTES
from tests.support import figures
from tests.support.broker.find import Broker
from tests.support.certificates import certificate
from tests.support.clients import PING, PONG, TEXT, client_frame, request
from tests.support.healthy import COUNT, Stream, healthy_clients
from tests.support.process_stats import MB, Memory, cpu_s, metric, sockets
from tests.support.running import BridgeProcess, bridge_process
from tests.support.waiting import eventually

alone = pytest.mark.alone
"""These tests run alone: other tests would distort the measured delays, and floods would disturb other tests."""

CONTINUATION, BINARY = 0, 2
GIB = 2**30
CHUNK = b"x" * 65536

FLOOD_S = 3.0
"""The time for which a client sends as fast as it can, in seconds."""

SEND_BUFFER_BYTES = 65536
"""The size that the test requests for a client's send buffer. The kernel makes the buffer twice as large."""

ENCRYPTED = 20
"""The number of clients that flood through TLS."""

TLS_BYTES = 128 * 1024
"""For each client that floods through TLS, the bridge may hold this much memory.

The memory is for the buffers of TLS, and for bytes that were read but not processed.
"""

FLOODERS = 400
"""The number of clients that flood at the same time."""

MEMORY_BYTES = 12 * MB
"""In any flood, the bridge may grow by this much memory: its update log of 1 MiB, and rounding by the allocator."""

DELAY_S = 0.05
"""During a flood, 90% of the updates must reach a healthy client within this delay.

If the bridge kept reading from one client for as long as data arrives, the delay would be 0.1 to 0.4 s.
"""

TOGETHER_DELAY_S = 0.25
"""While hundreds of clients flood, 90% of the updates must reach a healthy client within this delay.

Without a read limit for all clients together, not even one update would arrive within 20 s.
"""

CPU_SHARE = 0.6
"""While hundreds of clients flood, the bridge may use at most this share of a core.

This share includes the processor time for handshakes and updates.
"""

VARIABLES = {"BRIDGE_LOG_BYTES": "1 MiB", "BRIDGE_MAX_MESSAGE_BYTES": "100 KiB"}


def head(opcode: int, length: int, *, fin: bool = True) -> bytes:
    """Returns the header of a frame with a payload of `length` bytes.

    The mask is zero, so that the payload is sent unchanged.
    """
    return struct.pack("!BBQ", opcode | (0x80 if fin else 0), 0x80 | 127, length) + b"\x00" * 4


def may_be_read(frame_bytes: int, seconds: float) -> int:
    """Returns how many bytes the bridge may read from one client in `seconds` if each frame is `frame_bytes` long.

    The result includes an additional period at the start, another at the end, and one additional read, because the
    bridge processes each read as a whole.
    """
    of_a_frame = frame_bytes / (frame_bytes + FRAME_COST_BYTES)
    return int((seconds / PERIOD_S + 2) * CLIENT_BUDGET_BYTES * of_a_frame) + MAX_READ_BYTES


class Flooder:
    """A client that floods the bridge.

    The client uses a blocking socket in a thread, so it hardly disturbs the measurement.
    """

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        """Connects, and sends the request. `read_answer` must be called later."""
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        self.socket.settimeout(30)
        self.socket.connect(("127.0.0.1", port))
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_hostname="127.0.0.1")
        self.socket.sendall(request(port))
        self.sent_bytes = 0

    def read_answer(self) -> None:
        """Reads the answer to the handshake. Fails if the client is refused."""
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            answer += self.socket.recv(1)
        assert answer.startswith(b"HTTP/1.1 101 ")

    def flood(self, first: bytes, piece: bytes, seconds: float) -> None:
        """For `seconds`, sends `first` once and then `piece` repeatedly, as fast as the bridge reads."""
        self.socket.sendall(first)
        until_s = time.monotonic() + seconds
        rest = memoryview(piece)
        while (left_s := until_s - time.monotonic()) > 0:
            self.socket.settimeout(left_s)
            with suppress(TimeoutError):
                sent = self.socket.send(rest)
                self.sent_bytes += sent
                rest = rest[sent:] or memoryview(piece)

    def read_for(self, seconds: float) -> int:
        """Reads everything for `seconds`, and returns the number of pongs."""
        until_s = time.monotonic() + seconds
        pongs, received = 0, b""
        while (left_s := until_s - time.monotonic()) > 0:
            self.socket.settimeout(left_s)
            with suppress(TimeoutError):
                received = self.socket.recv(2**16)
                pongs += received.count(bytes((0x80 | PONG, 0)))
        return pongs


def opened(port: int, tls: ssl.SSLContext | None = None) -> Flooder:
    """Returns a client that is connected."""
    flooder = Flooder(port, tls)
    flooder.read_answer()
    return flooder


@asynccontextmanager
async def bridge_with_healthy_clients(
    broker: Broker, amqp: AbstractConnection, exchange: str, **variables: str
) -> AsyncIterator[tuple[BridgeProcess, int, Stream, Memory]]:
    """Yields a bridge, its port, healthy clients that get updates, and a measurement of the memory growth."""
    variables = {"BRIDGE_EXCHANGES": f"{exchange}=killmail", **VARIABLES, **variables}
    async with bridge_process(broker.url, **variables) as process:
        await process.consuming()
        port = await process.port()
        async with healthy_clients(amqp, exchange, port) as stream:
            await stream.further(20)
            memory = Memory(process.process.pid)
            yield process, port, stream, memory


async def verify(stream: Stream, memory: Memory) -> None:
    """Checks that the healthy clients got all updates, and that the bridge has grown by no more than MEMORY_BYTES."""
    await stream.verify()
    assert memory.look() <= MEMORY_BYTES, f"{memory.look() / MB:.1f} MB"


async def delay_during(stream: Stream, memory: Memory, flooding: Awaitable[object], limit_s: float = DELAY_S) -> float:
    """Measures the growth of the bridge during a flood, and the delay of the updates to healthy clients.

    Returns the delay in seconds within which 90% of the updates arrived. Fails if the delay is above the limit.
    """
    first = stream.published
    flood = asyncio.ensure_future(flooding)
    while not flood.done():
        memory.look()
        await asyncio.wait([flood], timeout=0.02)
    await flood
    await stream.further(1)
    delays_s = stream.delays_s(first)
    late_s = delays_s[len(delays_s) * 9 // 10]
    assert late_s <= limit_s, f"{late_s:.3f} s, and {delays_s[-1]:.3f} s at most"
    return late_s


@alone
@pytest.mark.parametrize(
    ("first", "piece", "frame_bytes"),
    [
        (b"", client_frame(BINARY, b"") * 10_000, 6),
        (b"", client_frame(TEXT, b"x") * 10_000, 7),
        (b"", client_frame(PONG, b"") * 10_000, 6),
        (b"", client_frame(PING, b"") * 10_000, 6),
        (head(BINARY, GIB), CHUNK, GIB),
        (head(TEXT, GIB), CHUNK, GIB),
        (client_frame(BINARY, b"", fin=False), head(CONTINUATION, len(CHUNK), fin=False) + CHUNK, len(CHUNK)),
    ],
    ids=["binary", "text", "pong", "ping-unread", "huge-binary", "huge-text", "fragments"],
)
async def test_client_that_floods_is_read_from_no_faster_than_is_allowed(
    broker: Broker, amqp: AbstractConnection, exchange: str, first: bytes, piece: bytes, frame_bytes: int
) -> None:
    """If a client sends as fast as it can, its writes block, no update is late, and the bridge buffers nothing."""
    async with bridge_with_healthy_clients(broker, amqp, exchange) as (process, port, stream, memory):
        flooder = opened(port)
        with flooder.socket:
            late_s = await delay_during(stream, memory, asyncio.to_thread(flooder.flood, first, piece, FLOOD_S))
        held = 2 * (SEND_BUFFER_BYTES + RECEIVE_BUFFER_BYTES)
        most = may_be_read(frame_bytes, FLOOD_S) + held
        assert flooder.sent_bytes <= most, f"{flooder.sent_bytes:,} bytes, of {most:,}"
        assert await metric(port, "bridge_client_throttles_total") > 0
        assert process.logged("client throttled") is not None
        # The check above would also pass if the bridge read nothing, so this check requires at least a quarter of the
        # maximum.
        assert flooder.sent_bytes >= most / 4
        assert process.logged("client evicted") is None
        await verify(stream, memory)
        if frame_bytes < FRAME_COST_BYTES:
            figures.record(
                f"a client sends tiny frames (opcode {piece[0] & 15}) as fast as it can",
                f"reads {flooder.sent_bytes / 1000 / FLOOD_S:,.0f} KB/s of them",
                f"0 of {stream.published}, for the other clients; 90% within {late_s * 1000:.0f} ms",
            )


@alone
async def test_flood_through_tls_is_not_buffered(
    broker: Broker, amqp: AbstractConnection, exchange: str, tmp_path: Path
) -> None:
    """TLS buffers some bytes that the bridge has not read yet, but only a bounded number for each client."""
    chain, key = certificate(tmp_path, "floods")
    secure = {"BRIDGE_TLS_CERTIFICATE": str(chain), "BRIDGE_TLS_KEY": str(key)}
    variables = {"BRIDGE_EXCHANGES": f"{exchange}=killmail", **VARIABLES, **secure}
    async with bridge_process(broker.url, **variables) as process:
        await process.consuming()
        port = await process.port()
        flooders = [opened(port, ssl.create_default_context(cafile=chain)) for _ in range(ENCRYPTED)]
        memory = Memory(process.process.pid)
        most = may_be_read(GIB, FLOOD_S) + 2 * (SEND_BUFFER_BYTES + RECEIVE_BUFFER_BYTES) + TLS_BYTES
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(ENCRYPTED) as threads:
            floods = [loop.run_in_executor(threads, each.flood, head(BINARY, GIB), CHUNK, FLOOD_S) for each in flooders]
            await asyncio.gather(*floods)
        assert memory.look() <= ENCRYPTED * TLS_BYTES, f"{memory.look() / MB:.1f} MB"
        for each in flooders:
            assert each.sent_bytes <= most, f"{each.sent_bytes:,} bytes, of {most:,}"
            each.socket.close()


@alone
async def test_pings_beyond_the_limit_are_answered_no_faster(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    """The bridge reads and answers only as many of a client's pings as the limit allows.

    Other clients get their updates in time.
    """
    ping = client_frame(PING, b"")
    async with bridge_with_healthy_clients(broker, amqp, exchange) as (_, port, stream, memory):
        flooder = opened(port)
        with flooder.socket:
            reading = asyncio.to_thread(flooder.read_for, FLOOD_S)
            flooding = asyncio.to_thread(flooder.flood, b"", ping * 10_000, FLOOD_S)
            both = asyncio.gather(reading, flooding)
            await delay_during(stream, memory, both)
        pongs, _ = await both
        most = may_be_read(len(ping), FLOOD_S) // len(ping)
        assert most / 4 <= pongs <= most
        await verify(stream, memory)


@alone
async def test_hundreds_of_flooding_clients_leave_the_processor_to_others(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    """A single limit applies to all flooding clients together.

    Updates are sent in time, and the pongs of healthy clients are read.
    """
    idle = {"BRIDGE_IDLE_TIMEOUT": "2s", "BRIDGE_PING_INTERVAL": "500ms"}
    # The flood runs in another process, because in a thread it would delay the healthy clients of this process.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        async with bridge_with_healthy_clients(broker, amqp, exchange, **idle) as (process, port, stream, memory):
            before_s, since_s = cpu_s(process.process.pid), time.monotonic()
            sent = asyncio.get_running_loop().run_in_executor(pool, flood_together, port, FLOODERS, FLOOD_S)
            late_s = await delay_during(stream, memory, sent, TOGETHER_DELAY_S)
            sent_bytes, flood_s = await sent
            share = (cpu_s(process.process.pid) - before_s) / (time.monotonic() - since_s)
            assert share <= CPU_SHARE, f"{share:.0%} of a processor"
            all_bytes = (flood_s / PERIOD_S + 2) * (
                TOTAL_BUDGET_BYTES * 6 / (6 + FRAME_COST_BYTES) + RESUMED_PER_PERIOD * THROTTLED_READ_BYTES
            )
            assert sent_bytes <= all_bytes + FLOODERS * 2 * (SEND_BUFFER_BYTES + RECEIVE_BUFFER_BYTES)
            # The flooding clients reset their connections at the end. The bridge notices these resets, although it
            # reads nothing from most of these clients.
            await eventually("the connections are closed", lambda: connections(port, COUNT))
            # The bridge kept reading from the healthy clients: otherwise, it would have evicted them as idle.
            assert await metric(port, 'bridge_evictions_total{reason="idle"}') == 0
            await verify(stream, memory)
            figures.record(
                f"{FLOODERS} clients send pings as fast as they can",
                f"uses {share:.0%} of a core for them",
                f"0 of {stream.published}, for the other clients; 90% within {late_s * 1000:.0f} ms",
            )


async def connections(port: int, count: int) -> bool:
    return await metric(port, 'bridge_connections{transport="websocket"}') == count


def flood_together(port: int, count: int, seconds: float) -> tuple[int, float]:
    """Sends pings from `count` clients as fast as the bridge reads, and reads nothing.

    The clients connect, and then send for `seconds`. Returns the number of sent bytes, and the time of the whole flood
    in seconds.
    """
    frames = client_frame(PING, b"") * 5000
    flooders: list[Flooder] = []
    rests: dict[socket.socket, memoryview] = {}
    sent_bytes = 0
    with selectors.DefaultSelector() as selector:
        began_s = time.monotonic()
        for _ in range(count):
            flooder = Flooder(port)
            flooder.socket.setblocking(False)
            # The pings follow the request at once. A busy machine may need longer than the idle timeout to connect all
            # clients, and the bridge would evict the first clients if they were silent meanwhile.
            sent = flooder.socket.send(frames)
            sent_bytes += sent
            flooders.append(flooder)
            rests[flooder.socket] = memoryview(frames)[sent:] or memoryview(frames)
            selector.register(flooder.socket, selectors.EVENT_WRITE)
        until_s = time.monotonic() + seconds
        while (left_s := until_s - time.monotonic()) > 0:
            for key, _ in selector.select(left_s):
                client = key.fileobj
                assert isinstance(client, socket.socket)
                with suppress(BlockingIOError):
                    sent = client.send(rests[client])
                    sent_bytes += sent
                    rests[client] = rests[client][sent:] or memoryview(frames)
    flood_s = time.monotonic() - began_s
    for flooder in flooders:
        flooder.socket.settimeout(30)
        flooder.read_answer()
        # Unread pongs are left, so the kernel resets the connection.
        flooder.socket.close()
    return sent_bytes, flood_s


async def test_half_a_frame_and_silence_is_idle_and_an_endless_frame_is_not_buffered(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    """A client that stops in the middle of a frame is evicted as idle.

    A client that slowly sends an endless frame stays connected, and the bridge buffers nothing for it.
    """
    # The idle timeout is long enough for the healthy clients to answer even while other tests run.
    idle = {"BRIDGE_IDLE_TIMEOUT": "4s", "BRIDGE_PING_INTERVAL": "1s"}
    async with bridge_with_healthy_clients(broker, amqp, exchange, **idle) as (process, port, stream, memory):
        before = sockets(process.process.pid)
        silent, dripping = opened(port), opened(port)
        with silent.socket, dripping.socket:
            silent.socket.sendall(head(TEXT, GIB)[:7])
            dripping.socket.sendall(head(TEXT, GIB))

            def silent_one_is_evicted() -> bool:
                dripping.socket.sendall(b"x")
                return process.logged("client evicted") is not None

            await eventually("the silent client is evicted", silent_one_is_evicted)
            line = process.logged("client evicted")
            assert line is not None
            assert (line["reason"], line["code"]) == ("idle", 4009)
            assert float(str(line["silent_s"])) >= 4
            assert await metric(port, 'bridge_evictions_total{reason="idle"}') == 1
            silent.socket.close()
            await eventually("the connection is closed", lambda: sockets(process.process.pid) == before + 1)
            dripping.socket.sendall(b"x")
            await stream.further(1)
        await verify(stream, memory)
