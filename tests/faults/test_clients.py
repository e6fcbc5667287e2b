"""Clients that do too little, and clients that come and go: what they may cost the bridge, and those who behave."""

import asyncio
import socket
import struct
import time

import pytest
from aio_pika.abc import AbstractConnection

from bridge.server.access.log_limiter import MAX_LINES
from tests.support import figures
from tests.support.broker.find import Broker
from tests.support.clients import CLOSE, RawClient, client_frame, request
from tests.support.healthy import COUNT, healthy_clients
from tests.support.process_stats import MB, Memory, metric, sockets
from tests.support.running import bridge_process
from tests.support.waiting import eventually

STALLED = 500

LOG_BYTES = 2 * MB

MEMORY_BYTES = 12 * MB
"""What the bridge may grow by beside its log: connections, and what an allocator rounds up."""

DRIPPING = 300
DRIP_S = 0.02
"""Between two bytes of a request, which has about 170: it would take three times the handshake timeout."""

RATE, STORM_S = 1000, 8
"""Connects and disconnects a second, and for how long."""


async def test_clients_that_never_read_are_evicted_and_cost_a_log_and_no_more(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    """Clients that read nothing are all evicted with 4008, for no more memory than the log; readers lose nothing."""
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

            await eventually("all are evicted", all_are_evicted)
            await eventually("that is logged", lambda: process.logged("client evicted"))
            evicted = [line for line in process.lines if line["event"] == "client evicted"]
            assert {(line["reason"], line["code"]) for line in evicted} == {("too-slow", 4008)}
            assert all(int(str(line["updates_behind"])) > 0 for line in evicted)
            # Only the first evictions of a minute are logged. The first line of the next minute counts the others.
            assert sum("suppressed" not in line for line in evicted) <= 2 * MAX_LINES
            assert await metric(port, 'bridge_connections{transport="websocket"}') == COUNT
            # The whole of them find out why, whenever they read on.
            for client in stalled:
                client.resume()
            assert set(await asyncio.gather(*(client.closed() for client in stalled))) == {4008}
            await stream.verify()
        assert memory.look() <= LOG_BYTES + MEMORY_BYTES, f"{memory.look() / MB:.1f} MB"
        figures.record(
            f"{STALLED} clients read nothing",
            f"closes them with 4008; grows by {memory.look() / MB:.0f} MB, with a log of {LOG_BYTES // MB} MB",
            f"0 of {stream.published}, by those who read",
        )
        for client in stalled:
            await client.close()


async def test_requests_that_drip_are_refused_in_time_and_keep_no_place(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    """A request a byte at a time is refused at the handshake timeout, and its client is gone at twice that."""
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
            # They go on with it whatever they are answered, and never end the connection themselves.
            while sockets(pid) > before or not all(answer.done() for answer in answers):
                drop = bytes([next(drops)])
                for _, writer in lines:
                    writer.write(drop)
                await asyncio.sleep(DRIP_S)
            assert {answer.result() for answer in answers} == {b"HTTP/1.1 408 Request Timeout\r\n"}
            assert await metric(port, 'bridge_clients_refused_total{rule="timeout"}') == DRIPPING
            # The first of them have a line, and no more: who comes again and again can't fill a disk.
            refusals = [line for line in process.lines if line["event"] == "client refused"]
            assert [line["rule"] for line in refusals] == ["timeout"] * MAX_LINES
            assert memory.look() <= MEMORY_BYTES
            await stream.verify()
        for _, writer in lines:
            writer.transport.abort()


def come_and_go(port: int, count: int) -> float:
    """So many clients, one after the other, none of which stays; how many a second they were."""
    hello, bye = request(port), client_frame(CLOSE, b"\x03\xe8")
    began_s = time.monotonic()
    for number in range(count):
        ahead_s = began_s + number / RATE - time.monotonic()
        if ahead_s > 0:
            time.sleep(ahead_s)
        with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
            # In turn: nothing is asked for; the end comes before the answer; behind it; with a closing handshake.
            if number % 4:
                client.sendall(hello)
            if number % 4 > 1:
                client.recv(4096)
            if number % 4 == 3:
                client.sendall(bye)
            elif number % 8 < 4:
                # A reset instead of an orderly end.
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return count / (time.monotonic() - began_s)


@pytest.mark.alone  # so many a second take all of the machine
async def test_a_thousand_clients_a_second_come_and_go_and_leave_nothing_behind(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    """A storm of connects and disconnects costs no update, no descriptor and no memory that stays."""
    async with bridge_process(broker.url, BRIDGE_EXCHANGES=f"{exchange}=killmail") as process:
        await process.consuming()
        port, pid = await process.port(), process.process.pid
        async with healthy_clients(amqp, exchange, port) as stream:
            await stream.further(20)
            before = sockets(pid)
            # What the first of them brings in, modules and caches, is there for good.
            await asyncio.to_thread(come_and_go, port, RATE // 2)
            await eventually("the first are gone", lambda: sockets(pid) == before)
            memory = Memory(pid)
            rate = await asyncio.to_thread(come_and_go, port, RATE * STORM_S)
            await eventually("all are gone", lambda: sockets(pid) == before)
            assert memory.look() <= MEMORY_BYTES, f"{memory.look() / MB:.1f} MB at {rate:.0f} a second"
            assert await metric(port, 'bridge_connections{transport="websocket"}') == COUNT
            await stream.verify()
            figures.record(
                f"{rate:,.0f} clients a second come and go, for {STORM_S} s",
                f"lets them; grows by {memory.look() / MB:.0f} MB, keeps no descriptor",
                f"0 of {stream.published}, by those who stay",
            )
