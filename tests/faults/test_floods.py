"""Clients that send what nobody asked for: it costs the bridge no memory, and the other clients next to no time."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager

import pytest
from aio_pika.abc import AbstractConnection

from bridge.demo.broker import Broker
from tests.support.clients import PING, PONG, TEXT, client_frame, request
from tests.support.healthy import Stream, healthy_clients
from tests.support.measured import MB, Memory, descriptors, metric
from tests.support.running import UNMEASURED, BridgeProcess, bridge_process
from tests.support.waiting import eventually

CONTINUATION, BINARY = 0, 2
GIB = 2**30
CHUNK = b"x" * MB

FRAMES = 150_000
"""Tiny frames that one client sends as fast as it can."""

MEMORY_BYTES = 12 * MB
"""What a bridge may grow by, whatever it is sent: its log of updates, 1 MiB here, and what an allocator rounds up."""

DELAY_S = 0.05
"""What nine of ten updates may take to a healthy client beside a flood. Most take 0.1 to 0.4 s where a client is read
from for as long as it has more to say."""

LAST = b"the last"

VARIABLES = {"BRIDGE_LOG_BYTES": "1 MiB", "BRIDGE_MAX_MESSAGE_BYTES": "100 KiB", **UNMEASURED}


def head(opcode: int, length: int, *, fin: bool = True) -> bytes:
    """The header of a frame of that length, whose mask is zero: its payload is sent as it is."""
    return struct.pack("!BBQ", opcode | (0x80 if fin else 0), 0x80 | 127, length) + b"\x00" * 4


class Flooder:
    """A client whose socket blocks, for a thread: it takes next to no processor time from who measures."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self.socket.sendall(request(port))
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            answer += self.socket.recv(1)
        assert answer.startswith(b"HTTP/1.1 101 ")

    def send(self, *pieces: bytes) -> None:
        """All of it, as fast as the bridge reads."""
        for piece in pieces:
            self.socket.sendall(piece)

    def read_until_the_last(self) -> None:
        """Returns when the bridge has answered a ping of `LAST`, and so has read all that was sent before."""
        tail = b""
        while LAST not in tail:
            received = self.socket.recv(2**16)
            assert received, "the bridge ended the connection"
            tail = tail[-len(LAST) :] + received

    def flood(self, pieces: Sequence[bytes]) -> None:
        """Sends everything, and then reads until the bridge has read it."""
        self.send(*pieces, client_frame(PING, LAST))
        self.read_until_the_last()


@asynccontextmanager
async def scene(
    broker: Broker, amqp: AbstractConnection, exchange: str, **variables: str
) -> AsyncIterator[tuple[BridgeProcess, int, Stream, Memory]]:
    """A bridge, its port, healthy clients that get updates, and a look at what it grows by, which is bounded."""
    variables = {"BRIDGE_EXCHANGES": f"{exchange}=killmail", **VARIABLES, **variables}
    async with bridge_process(broker.url, **variables) as process:
        await process.consuming()
        port = await process.port()
        async with healthy_clients(amqp, exchange, port) as stream:
            await stream.further(20)
            memory = Memory(process.process.pid)
            yield process, port, stream, memory
            assert memory.look() <= MEMORY_BYTES, f"{memory.look() / MB:.1f} MB"


async def beside(stream: Stream, memory: Memory, flooding: Awaitable[object]) -> None:
    """Looks at what the bridge grows by during a flood, and at how late updates were to healthy clients meanwhile."""
    first = stream.published
    flood = asyncio.ensure_future(flooding)
    while not flood.done():
        memory.look()
        await asyncio.wait([flood], timeout=0.02)
    await flood
    await stream.further(1)
    delays_s = stream.delays_s(first)
    late_s = delays_s[len(delays_s) * 9 // 10]
    assert late_s <= DELAY_S, f"{late_s:.3f} s, and {delays_s[-1]:.3f} s at most"


@pytest.mark.parametrize(
    ("frame", "reading"),
    [
        (client_frame(BINARY, b""), False),
        (client_frame(TEXT, b"x"), False),
        (client_frame(PONG, b""), False),
        (client_frame(PING, b""), False),
        (client_frame(PING, b""), True),
    ],
    ids=["binary", "text", "pong", "ping-unread", "ping-read"],
)
async def test_flood_of_tiny_frames_delays_no_other_client(
    broker: Broker, amqp: AbstractConnection, exchange: str, frame: bytes, *, reading: bool
) -> None:
    """One client's tiny frames, its pings included, delay no update to others, and what it does not read is bounded."""
    async with scene(broker, amqp, exchange) as (_, port, stream, memory):
        flooder = Flooder(port)
        with flooder.socket:
            if reading:
                sending = asyncio.to_thread(flooder.send, frame * FRAMES, client_frame(PING, LAST))
                await beside(stream, memory, asyncio.gather(sending, asyncio.to_thread(flooder.read_until_the_last)))
            else:
                await beside(stream, memory, asyncio.to_thread(flooder.flood, [frame * FRAMES]))


@pytest.mark.parametrize(
    "pieces",
    [
        [head(BINARY, GIB), *[CHUNK] * (GIB // MB)],
        [
            head(BINARY, GIB // 4, fin=False),
            *[CHUNK] * (GIB // MB // 4),
            *[head(CONTINUATION, MB, fin=False) + CHUNK] * (GIB // MB * 3 // 4 - 1),
            head(CONTINUATION, MB) + CHUNK,
        ],
        [head(TEXT, GIB // 4), *[CHUNK] * (GIB // MB // 4)],
    ],
    ids=["binary", "fragmented", "text"],
)
async def test_message_of_a_gibibyte_takes_no_memory(
    broker: Broker, amqp: AbstractConnection, exchange: str, pieces: list[bytes]
) -> None:
    """A message as large as a client likes is dropped as it comes: it takes no memory and delays nobody."""
    async with scene(broker, amqp, exchange) as (process, port, stream, memory):
        flooder = Flooder(port)
        with flooder.socket:
            await beside(stream, memory, asyncio.to_thread(flooder.flood, pieces))
            assert process.logged("client evicted") is None


async def test_half_a_frame_and_silence_is_idle_and_bytes_for_ever_are_held_nowhere(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    """Half a frame keeps nobody from being evicted as idle; a frame that never ends keeps its client, at no cost."""
    idle = {"BRIDGE_IDLE_TIMEOUT": "1s", "BRIDGE_PING_INTERVAL": "400ms"}
    async with scene(broker, amqp, exchange, **idle) as (process, port, stream, memory):
        before = descriptors(process.process.pid)
        silent, dripping = Flooder(port), Flooder(port)
        with silent.socket, dripping.socket:
            silent.send(head(TEXT, GIB)[:7])
            dripping.send(head(TEXT, GIB))

            def evicted_beside_one_that_drips() -> bool:
                dripping.send(b"x")
                return process.logged("client evicted") is not None

            await eventually("the silent one is evicted", evicted_beside_one_that_drips)
            line = process.logged("client evicted")
            assert line is not None
            assert (line["reason"], line["code"]) == ("idle", 4009)
            assert float(str(line["silent_s"])) >= 1
            assert await metric(port, 'bridge_evictions_total{reason="idle"}') == 1
            silent.socket.close()
            await eventually("it is gone", lambda: descriptors(process.process.pid) == before + 1)
            dripping.send(b"x")
            await stream.further(1)
        memory.look()
