"""Clients that say what nobody asked for: they are read no faster than is allowed, and cost others next to no time.

What they say is bounded at its source: their writes wait, and the kernel holds little of it.
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
"""Other tests would distort the measured delays, and floods would disturb other tests."""

CONTINUATION, BINARY = 0, 2
GIB = 2**30
CHUNK = b"x" * 65536

FLOOD_S = 3.0
"""How long a client sends as fast as it can."""

SEND_BUFFER_BYTES = 65536
"""What the kernel may hold of it on its own side; it takes twice as much."""

ENCRYPTED = 20
"""Clients that flood through TLS."""

TLS_BYTES = 128 * 1024
"""What a bridge may hold of each of these: TLS's own buffers beside what it has read and not handed on."""

FLOODERS = 400
"""Clients that flood together."""

MEMORY_BYTES = 12 * MB
"""What a bridge may grow by, whatever it is sent: its log of updates, 1 MiB here, and what an allocator rounds up."""

DELAY_S = 0.05
"""What nine of ten updates may take to a healthy client beside a flood. Most take 0.1 to 0.4 s where a client is read
from for as long as it has more to say."""

TOGETHER_DELAY_S = 0.25
"""The same beside hundreds that flood. Without a limit for all of them there is not one update in 20 s."""

CPU_SHARE = 0.6
"""Of a processor, at most, for a flood by hundreds of clients, their handshakes, and the updates that they get too."""

VARIABLES = {"BRIDGE_LOG_BYTES": "1 MiB", "BRIDGE_MAX_MESSAGE_BYTES": "100 KiB"}


def head(opcode: int, length: int, *, fin: bool = True) -> bytes:
    """The header of a frame of that length, whose mask is zero: its payload is sent as it is."""
    return struct.pack("!BBQ", opcode | (0x80 if fin else 0), 0x80 | 127, length) + b"\x00" * 4


def may_be_read(frame_bytes: int, seconds: float) -> int:
    """How many bytes of frames of that size are read of one client in so much time, at most.

    A period is begun and one is ended on the way, and the last read is dealt with as a whole.
    """
    of_a_frame = frame_bytes / (frame_bytes + FRAME_COST_BYTES)
    return int((seconds / PERIOD_S + 2) * CLIENT_BUDGET_BYTES * of_a_frame) + MAX_READ_BYTES


class Flooder:
    """A client whose socket blocks, for a thread: it takes next to no processor time from who measures."""

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        self.socket.settimeout(30)
        self.socket.connect(("127.0.0.1", port))
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_hostname="127.0.0.1")
        self.socket.sendall(request(port))
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            answer += self.socket.recv(1)
        assert answer.startswith(b"HTTP/1.1 101 ")
        self.sent_bytes = 0

    def flood(self, first: bytes, piece: bytes, seconds: float) -> None:
        """Sends the first, and then the piece again and again, as fast as the bridge reads."""
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
        """Reads everything for so long; returns how many pongs there were."""
        until_s = time.monotonic() + seconds
        pongs, received = 0, b""
        while (left_s := until_s - time.monotonic()) > 0:
            self.socket.settimeout(left_s)
            with suppress(TimeoutError):
                received = self.socket.recv(2**16)
                pongs += received.count(bytes((0x80 | PONG, 0)))
        return pongs


@asynccontextmanager
async def bridge_with_healthy_clients(
    broker: Broker, amqp: AbstractConnection, exchange: str, **variables: str
) -> AsyncIterator[tuple[BridgeProcess, int, Stream, Memory]]:
    """A bridge, its port, healthy clients that get updates, and the memory that the bridge grows by from now on."""
    variables = {"BRIDGE_EXCHANGES": f"{exchange}=killmail", **VARIABLES, **variables}
    async with bridge_process(broker.url, **variables) as process:
        await process.consuming()
        port = await process.port()
        async with healthy_clients(amqp, exchange, port) as stream:
            await stream.further(20)
            memory = Memory(process.process.pid)
            yield process, port, stream, memory


async def verify(stream: Stream, memory: Memory) -> None:
    """The healthy clients have had everything, and the bridge has not grown by more than it may."""
    await stream.verify()
    assert memory.look() <= MEMORY_BYTES, f"{memory.look() / MB:.1f} MB"


async def beside(stream: Stream, memory: Memory, flooding: Awaitable[object], limit_s: float = DELAY_S) -> float:
    """Looks at what the bridge grows by during a flood, and at how late updates were to healthy clients meanwhile.

    Nine of ten were no later than what is returned, in seconds, which is bounded.
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
    """A client that sends as fast as it can: its writes wait, no update comes late, nothing is held of it."""
    async with bridge_with_healthy_clients(broker, amqp, exchange) as (process, port, stream, memory):
        flooder = Flooder(port)
        with flooder.socket:
            late_s = await beside(stream, memory, asyncio.to_thread(flooder.flood, first, piece, FLOOD_S))
        held = 2 * (SEND_BUFFER_BYTES + RECEIVE_BUFFER_BYTES)
        most = may_be_read(frame_bytes, FLOOD_S) + held
        assert flooder.sent_bytes <= most, f"{flooder.sent_bytes:,} bytes, of {most:,}"
        assert await metric(port, "bridge_client_throttles_total") > 0
        assert process.logged("client throttled") is not None
        # Not so slow either that it could not be told from one that is never read from.
        assert flooder.sent_bytes >= most / 4
        assert process.logged("client evicted") is None
        await verify(stream, memory)
        if frame_bytes < FRAME_COST_BYTES:
            figures.record(
                f"a client sends tiny frames (opcode {piece[0] & 15}) as fast as it can",
                f"takes {flooder.sent_bytes / 1000 / FLOOD_S:,.0f} KB a second of it",
                f"0 of {stream.published}, by the others; nine of ten within {late_s * 1000:.0f} ms",
            )


@alone
async def test_client_that_floods_through_tls_is_held_nowhere(
    broker: Broker, amqp: AbstractConnection, exchange: str, tmp_path: Path
) -> None:
    """TLS keeps what is not read of a client, and reads on for it: for each of many no more than without TLS."""
    chain, key = certificate(tmp_path, "floods")
    secure = {"BRIDGE_TLS_CERTIFICATE": str(chain), "BRIDGE_TLS_KEY": str(key)}
    variables = {"BRIDGE_EXCHANGES": f"{exchange}=killmail", **VARIABLES, **secure}
    async with bridge_process(broker.url, **variables) as process:
        await process.consuming()
        port = await process.port()
        flooders = [Flooder(port, ssl.create_default_context(cafile=chain)) for _ in range(ENCRYPTED)]
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
async def test_pings_that_come_too_fast_are_answered_no_faster(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    """A client that reads its pongs gets as many as it may send pings, and others get their updates in time."""
    ping = client_frame(PING, b"")
    async with bridge_with_healthy_clients(broker, amqp, exchange) as (_, port, stream, memory):
        flooder = Flooder(port)
        with flooder.socket:
            reading = asyncio.to_thread(flooder.read_for, FLOOD_S)
            flooding = asyncio.to_thread(flooder.flood, b"", ping * 10_000, FLOOD_S)
            both = asyncio.gather(reading, flooding)
            await beside(stream, memory, both)
        pongs, _ = await both
        most = may_be_read(len(ping), FLOOD_S) // len(ping)
        assert most / 4 <= pongs <= most
        await verify(stream, memory)


@alone
async def test_hundreds_that_flood_together_leave_the_processor_to_others(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    """What all clients together may say is bounded too: updates leave in time, and a pong still comes through."""
    idle = {"BRIDGE_IDLE_TIMEOUT": "2s", "BRIDGE_PING_INTERVAL": "500ms"}
    # In a process of its own: in a thread it would delay the healthy clients, which are in this one.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        async with bridge_with_healthy_clients(broker, amqp, exchange, **idle) as (process, port, stream, memory):
            before_s, since_s = cpu_s(process.process.pid), time.monotonic()
            sent = asyncio.get_running_loop().run_in_executor(pool, flood_together, port, FLOODERS, FLOOD_S)
            late_s = await beside(stream, memory, sent, TOGETHER_DELAY_S)
            share = (cpu_s(process.process.pid) - before_s) / (time.monotonic() - since_s)
            assert share <= CPU_SHARE, f"{share:.0%} of a processor"
            all_bytes = (FLOOD_S / PERIOD_S + 2) * (
                TOTAL_BUDGET_BYTES * 6 / (6 + FRAME_COST_BYTES) + RESUMED_PER_PERIOD * THROTTLED_READ_BYTES
            )
            assert await sent <= all_bytes + FLOODERS * 2 * (SEND_BUFFER_BYTES + RECEIVE_BUFFER_BYTES)
            # Those who flooded are gone, with a reset, and that shows though nothing is read of most of them.
            await eventually("they have no place any more", lambda: connections(port, COUNT))
            # The healthy ones were heard all the time, or they would be gone.
            assert await metric(port, 'bridge_evictions_total{reason="idle"}') == 0
            await verify(stream, memory)
            figures.record(
                f"{FLOODERS} clients send pings as fast as they can",
                f"takes {share:.0%} of a processor for all of it",
                f"0 of {stream.published}, by the others; nine of ten within {late_s * 1000:.0f} ms",
            )


async def connections(port: int, count: int) -> bool:
    return await metric(port, 'bridge_connections{transport="websocket"}') == count


def flood_together(port: int, count: int, seconds: float) -> int:
    """So many clients send pings as fast as the bridge reads, and read nothing; how many bytes that was."""
    frames = client_frame(PING, b"") * 5000
    rests = {Flooder(port).socket: memoryview(frames) for _ in range(count)}
    sent_bytes = 0
    with selectors.DefaultSelector() as selector:
        for each in rests:
            each.setblocking(False)
            selector.register(each, selectors.EVENT_WRITE)
        until_s = time.monotonic() + seconds
        while (left_s := until_s - time.monotonic()) > 0:
            for key, _ in selector.select(left_s):
                client = key.fileobj
                assert isinstance(client, socket.socket)
                with suppress(BlockingIOError):
                    sent = client.send(rests[client])
                    sent_bytes += sent
                    rests[client] = rests[client][sent:] or memoryview(frames)
    for each in rests:
        each.close()
    return sent_bytes


async def test_half_a_frame_and_silence_is_idle_and_bytes_for_ever_are_held_nowhere(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    """Half a frame keeps nobody from being evicted as idle; a frame that never ends keeps its client, at no cost."""
    # Long enough for the healthy clients to answer in time, with other tests beside them.
    idle = {"BRIDGE_IDLE_TIMEOUT": "4s", "BRIDGE_PING_INTERVAL": "1s"}
    async with bridge_with_healthy_clients(broker, amqp, exchange, **idle) as (process, port, stream, memory):
        before = sockets(process.process.pid)
        silent, dripping = Flooder(port), Flooder(port)
        with silent.socket, dripping.socket:
            silent.socket.sendall(head(TEXT, GIB)[:7])
            dripping.socket.sendall(head(TEXT, GIB))

            def evicted_beside_one_that_drips() -> bool:
                dripping.socket.sendall(b"x")
                return process.logged("client evicted") is not None

            await eventually("the silent one is evicted", evicted_beside_one_that_drips)
            line = process.logged("client evicted")
            assert line is not None
            assert (line["reason"], line["code"]) == ("idle", 4009)
            assert float(str(line["silent_s"])) >= 4
            assert await metric(port, 'bridge_evictions_total{reason="idle"}') == 1
            silent.socket.close()
            await eventually("it is gone", lambda: sockets(process.process.pid) == before + 1)
            dripping.socket.sendall(b"x")
            await stream.further(1)
        await verify(stream, memory)
