"""What clients cost the bridge and other clients if they read nothing, send too slowly, or come and go."""

import asyncio
import socket
import struct
import time

import pytest
from aio_pika.abc import AbstractConnection

from bridge.broadcast.polls import PIECE_BYTES
from bridge.server.access.log_limiter import MAX_LINES
from bridge.timing import Timing
from tests.support import figures
from tests.support.broker.find import Broker
from tests.support.clients import CLOSE, RawClient, client_frame, request
from tests.support.event_streams import StreamClient
from tests.support.healthy import COUNT, healthy_clients
from tests.support.process_stats import MB, Memory, metric, sockets
from tests.support.running import bridge_process, timed_command
from tests.support.waiting import eventually

STALLED = 500

UNREAD = 200
"""The number of responses with JSON, of 1 MB each, that are not read."""

LOG_BYTES = 2 * MB

MEMORY_BYTES = 12 * MB
"""The bridge may use this much memory in addition to its update log.

The memory is for connections and for rounding by the allocator.
"""

DRIPPING = 300
DRIP_S = 0.02
"""The pause between two bytes of a slow request. At this speed, 170 bytes take three times the handshake timeout."""

RATE, STORM_S = 1000, 8
"""The number of clients that connect and disconnect per second, and the duration of the storm in seconds."""


async def test_clients_that_never_read_are_evicted_and_take_no_more_memory_than_the_log(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    """Clients that read nothing are evicted with the close code 4008.

    Clients that read nothing take no more memory than the log, and other clients lose nothing.
    """
    variables = {"BRIDGE_LOG_BYTES": str(LOG_BYTES), "BRIDGE_MAX_MESSAGE_BYTES": "100 KiB"}
    async with bridge_process(broker.url, BRIDGE_EXCHANGES=f"{exchange}=killmail", **variables) as process:
        await process.consuming()
        port, pid = await process.port(), process.process.pid
        memory = Memory(pid)
        stalled = [await RawClient.open(port, receive_bytes=4096) for _ in range(STALLED)]
        for client in stalled:
            client.pause()
        async with healthy_clients(amqp, exchange, port, padding="x" * 10_000) as stream:

            async def all_are_evicted() -> bool:
                memory.look()
                return await metric(port, 'bridge_evictions_total{reason="too-slow"}') == STALLED

            await eventually("all clients are evicted", all_are_evicted)
            await eventually("that is logged", lambda: process.logged("client evicted"))
            evicted = [line for line in process.lines if line["event"] == "client evicted"]
            assert {(line["reason"], line["code"]) for line in evicted} == {("too-slow", 4008)}
            assert all(int(str(line["updates_behind"])) > 0 for line in evicted)
            # Only the first evictions of a minute are logged. The first log line of the next minute counts the other
            # evictions.
            assert sum("suppressed" not in line for line in evicted) <= 2 * MAX_LINES
            assert await metric(port, 'bridge_connections{transport="websocket"}') == COUNT
            # Every evicted client gets the close code when it reads again.
            for client in stalled:
                client.resume()
            assert set(await asyncio.gather(*(client.closed() for client in stalled))) == {4008}
            await stream.verify()
        assert memory.look() <= LOG_BYTES + MEMORY_BYTES, f"{memory.look() / MB:.1f} MB"
        figures.record(
            f"{STALLED} clients read nothing",
            f"closes them with 4008; grows by {memory.look() / MB:.0f} MB, with a log of {LOG_BYTES // MB} MB",
            f"0 of {stream.published}, for the other clients",
        )
        for client in stalled:
            await client.close()


async def test_event_streams_that_are_never_read_are_evicted_and_take_no_more_memory_than_the_log(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    """The body of an evicted event stream ends after a whole block, and other clients lose nothing."""
    variables = {"BRIDGE_LOG_BYTES": str(LOG_BYTES), "BRIDGE_MAX_MESSAGE_BYTES": "100 KiB"}
    async with bridge_process(broker.url, BRIDGE_EXCHANGES=f"{exchange}=killmail", **variables) as process:
        await process.consuming()
        port, pid = await process.port(), process.process.pid
        memory = Memory(pid)
        stalled = [await StreamClient.open(port, receive_bytes=4096) for _ in range(STALLED)]
        for client in stalled:
            client.pause()
        async with healthy_clients(amqp, exchange, port, padding="x" * 10_000) as stream:

            async def all_are_evicted() -> bool:
                memory.look()
                return await metric(port, 'bridge_evictions_total{reason="too-slow"}') == STALLED

            await eventually("all clients are evicted", all_are_evicted)
            assert await metric(port, 'bridge_connections{transport="sse"}') == 0
            for client in stalled:
                client.resume()
            bodies = await asyncio.gather(*(client.rest() for client in stalled))
            assert all(body.endswith(b"}\n\n") for body in bodies)
            assert not any(b'"type":"close"' in body for body in bodies)
            await stream.verify()
        assert memory.look() <= LOG_BYTES + MEMORY_BYTES, f"{memory.look() / MB:.1f} MB"
        figures.record(
            f"{STALLED} event streams are not read",
            f"ends them; grows by {memory.look() / MB:.0f} MB, with a log of {LOG_BYTES // MB} MB",
            f"0 of {stream.published}, for the other clients",
        )
        for client in stalled:
            await client.close()


async def test_responses_that_are_never_read_take_one_piece_each_and_are_reset(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    """A response as large as the log is made while the client reads it, not before."""
    variables = {"BRIDGE_LOG_BYTES": str(LOG_BYTES), "BRIDGE_MAX_MESSAGE_BYTES": "100 KiB"}
    command = timed_command(Timing(close_timeout_s=2, keepalive_tick_s=0.5))
    async with bridge_process(
        broker.url, command=command, BRIDGE_EXCHANGES=f"{exchange}=killmail", **variables
    ) as process:
        await process.consuming()
        port, pid = await process.port(), process.process.pid
        async with healthy_clients(amqp, exchange, port, padding="x" * 10_000) as stream:
            await stream.further(LOG_BYTES // 10_000)
            memory, before = Memory(pid), sockets(pid)
            path = "/updates?format=json&after=earliest&limit=1000"
            stalled = [await StreamClient.open(port, path, receive_bytes=4096) for _ in range(UNREAD)]
            for client in stalled:
                client.pause()
            sizes = [int(client.header("Content-Length") or 0) for client in stalled]
            assert min(sizes) > LOG_BYTES // 4

            def all_are_gone() -> bool:
                memory.look()
                return sockets(pid) == before

            await eventually("all responses are reset", all_are_gone)
            await stream.verify()
        assert memory.look() <= UNREAD * PIECE_BYTES + MEMORY_BYTES, f"{memory.look() / MB:.1f} MB"
        figures.record(
            f"{UNREAD} responses with JSON are not read",
            f"resets them; grows by {memory.look() / MB:.0f} MB, for {sum(sizes) // MB} MB of responses",
            f"0 of {stream.published}, for the other clients",
        )
        for client in stalled:
            await client.close()


async def test_slow_requests_are_refused_in_time_and_take_no_capacity(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    """A request that is sent byte by byte is refused at the handshake timeout.

    The client is dropped at twice the handshake timeout.
    """
    variables = {"BRIDGE_EXCHANGES": f"{exchange}=killmail", "BRIDGE_HANDSHAKE_TIMEOUT": "1s"}
    async with bridge_process(broker.url, **variables) as process:
        await process.consuming()
        port, pid = await process.port(), process.process.pid
        async with healthy_clients(amqp, exchange, port) as stream:
            await stream.further(20)
            memory, before = Memory(pid), sockets(pid)
            lines = await asyncio.gather(*(asyncio.open_connection("127.0.0.1", port) for _ in range(DRIPPING)))
            answers = [asyncio.create_task(reader.readuntil(b"\r\n")) for reader, _ in lines]
            drops = iter(request(port, headers=["X-Long: " + "x" * 1000]))
            # The clients send further bytes even after the answer, and never close the connection themselves.
            while sockets(pid) > before or not all(answer.done() for answer in answers):
                drop = bytes([next(drops)])
                for _, writer in lines:
                    writer.write(drop)
                await asyncio.sleep(DRIP_S)
            assert {answer.result() for answer in answers} == {b"HTTP/1.1 408 Request Timeout\r\n"}
            assert await metric(port, 'bridge_clients_refused_total{rule="timeout"}') == DRIPPING
            # The bridge logs only the first refusals, so that a client that reconnects again and again can't fill the
            # disk.
            refusals = [line for line in process.lines if line["event"] == "client refused"]
            assert [line["rule"] for line in refusals] == ["timeout"] * MAX_LINES
            assert memory.look() <= MEMORY_BYTES
            await stream.verify()
        for _, writer in lines:
            writer.transport.abort()


def come_and_go(port: int, count: int) -> float:
    """Connects and disconnects `count` clients, one after another. Returns the number of clients per second."""
    hello, bye = request(port), client_frame(CLOSE, b"\x03\xe8")
    began_s = time.monotonic()
    for number in range(count):
        ahead_s = began_s + number / RATE - time.monotonic()
        if ahead_s > 0:
            time.sleep(ahead_s)
        with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
            # There are four kinds of clients in turn: one sends no request, one leaves before the answer, one leaves
            # after the answer, and one sends a close frame.
            if number % 4:
                client.sendall(hello)
            if number % 4 > 1:
                client.recv(4096)
            if number % 4 == 3:
                client.sendall(bye)
            elif number % 8 < 4:
                # With this option, the client's `close` resets the connection.
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return count / (time.monotonic() - began_s)


@pytest.mark.alone  # the test's clients need the entire machine
async def test_a_thousand_clients_a_second_connect_and_disconnect_without_leaks(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    """A storm of connects and disconnects loses no update, and leaks no descriptor and no memory."""
    async with bridge_process(broker.url, BRIDGE_EXCHANGES=f"{exchange}=killmail") as process:
        await process.consuming()
        port, pid = await process.port(), process.process.pid
        async with healthy_clients(amqp, exchange, port) as stream:
            await stream.further(20)
            before = sockets(pid)
            # For its first clients, the bridge loads modules and fills caches, and it keeps this memory.
            await asyncio.to_thread(come_and_go, port, RATE // 2)
            await eventually("the first connections are closed", lambda: sockets(pid) == before)
            memory = Memory(pid)
            rate = await asyncio.to_thread(come_and_go, port, RATE * STORM_S)
            await eventually("all connections are closed", lambda: sockets(pid) == before)
            assert memory.look() <= MEMORY_BYTES, f"{memory.look() / MB:.1f} MB at {rate:.0f} a second"
            assert await metric(port, 'bridge_connections{transport="websocket"}') == COUNT
            await stream.verify()
            figures.record(
                f"{rate:,.0f} clients a second connect and leave, for {STORM_S} s",
                f"serves them; grows by {memory.look() / MB:.0f} MB, leaks no descriptor",
                f"0 of {stream.published}, for the other clients",
            )
